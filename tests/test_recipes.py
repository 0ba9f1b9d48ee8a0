"""Every recipe in `recipes/`: found by glob, its plugins imported and bound, its stages asked what they need."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from qoqmed import config

FOLDER = Path(__file__).parent.parent / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))


def test_the_promised_recipes_are_there() -> None:
    assert {path.stem for path in RECIPES} >= {
        *("quickstart", "real_smoke", "suite", "dpo", "sft", "ppo", "remax", "reinforce_pp", "rloo", "grpo"),
        *("drpo", "drpo_domain_only", "drpo_no_kl", "medmo"),
    }
    assert all(path.suffix == ".yaml" for path in FOLDER.iterdir())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_sound(path: Path) -> None:
    recipe = config.load(path, deep=True, files=False)
    assert path.stem in recipe.name  # its runs are found under a name that tells the recipe
    assert config.load(yaml.safe_load(config.to_yaml(recipe)), files=False) == recipe
    assert path.read_text(encoding="utf-8").startswith("# ")  # what it is for
