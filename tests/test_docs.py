"""The documentation's lists are those of the code, its links lead somewhere, and no package registry is named."""

from __future__ import annotations

import re
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from tiny_run import place, read

from qoqmed import registry
from qoqmed.config.deep import BESIDE
from qoqmed.config.schema import LoraConfig, Node, Recipe, RewardConfig, StageConfig
from qoqmed.contracts import GROUPS
from qoqmed.fit import fit

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
FENCED = re.compile(r"^(`{3,}).*?^\1`*$", re.MULTILINE | re.DOTALL)
NOT_CONFIGURED = ("backbones", "tasks", "domains")  # groups whose plugins a recipe gives no arguments


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def section(page: str, title: str) -> str:
    """The text under a heading, to the next one of its level or above."""
    level, found = title.split(" ")[0], text(DOCS / page)
    assert f"\n{title}\n" in found, title
    return re.split(rf"\n#{{1,{len(level)}}} ", found.split(f"\n{title}\n", 1)[1])[0]


def rows(part: str) -> Iterator[list[str]]:
    """Cells of every table row but the headings."""
    for line in part.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells and cells[0].startswith("`"):
            yield cells


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def spelled(default: Any) -> str:
    """A default as the tables write it."""
    if default is MISSING:
        return "required"
    if isinstance(default, Node):
        return default.name
    if isinstance(default, (tuple, list)):
        return f"[{', '.join(spelled(item) for item in default)}]"
    if isinstance(default, bool) or default is None:
        return {None: "null", True: "true", False: "false"}[default]
    return str(default)


# ---- recipes.md


def keys(kind: type, path: str = "") -> Iterator[tuple[str, str]]:
    """(key, default) of every key that a recipe may have."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        plugin = kind is RewardConfig and field.name in ("arguments", "where")
        if plugin or (field.name == "arguments" and path == "rollout."):
            continue
        annotation, here = hints[field.name], f"{path}{field.name}"
        inner = [one for one in (annotation, *get_args(annotation)) if one in (RewardConfig, StageConfig, LoraConfig)]
        if inner == [LoraConfig]:
            yield here, "null"
            yield from keys(LoraConfig, f"{here}.")
        elif inner:
            yield from keys(inner[0], f"{here}.{'KEY' if inner[0] is RewardConfig else 'N'}.")
        elif is_dataclass(annotation) and annotation is not Node:
            yield from keys(annotation, f"{here}.")
        elif kind is RewardConfig and field.name == "name":
            yield here, "the key"  # filled in by the loader
        else:
            made = field.default_factory() if field.default_factory is not MISSING else field.default
            yield here, spelled(made)


def test_every_key_of_a_recipe_is_described_with_its_default() -> None:
    told = {cells[0].strip("`"): cells[1].strip("`") for cells in rows(section("recipes.md", "## Keys"))}
    assert told == dict(keys(Recipe))


def test_what_stands_beside_a_data_set_is_described() -> None:
    assert [cells[0].strip("`") for cells in rows(section("recipes.md", "## Mixtures"))] == list(BESIDE["datasets"])


def test_every_argument_of_our_plugins_is_described_with_its_default() -> None:
    part = section("recipes.md", "## Arguments of the built-in plugins")
    told = {(cells[0].strip("`"), cells[1].strip("`")): cells[2].strip("`") for cells in rows(part)}
    groups = [group for group in GROUPS if group not in NOT_CONFIGURED]
    ours = [(group, info.name) for group in groups for info in registry.available(group)]
    known = {
        (f"{group}/{name}", argument.name): "required" if argument.required else spelled(argument.default)
        for group, name in ours
        if registry.find(group, name).distribution == "qoqmed"
        for argument in registry.describe(group, name).arguments or ()
    }
    assert told == known


def test_what_may_change_at_a_resumption_is_told() -> None:
    from qoqmed.run import _FREE

    assert set(names(section("recipes.md", "## What may change when a run is resumed"))) == set(_FREE)


# ---- plugins.md, formats.md


def test_every_group_of_plugins_is_described() -> None:
    assert [names(cells[0])[0] for cells in rows(section("plugins.md", "## Groups"))] == list(GROUPS)


@pytest.fixture(scope="module")
def run(tiny: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, a step of sft and one of DRPO, everything written that can be."""
    here = place(tmp_path_factory.mktemp("docs"))
    short = ["stages.0.steps=1", "stages.1.steps=1", "traces=full", "evaluation.sampled=true", "evaluation.limit=2"]
    result = fit(here.recipe, [*short, "data.test=${data.valid}"])
    assert result.finished
    return result.folder


def pattern(name: str) -> re.Pattern[str]:
    """`rewards/NAME/mean` -> what it stands for."""
    return re.compile(re.sub(r"(?:NAME|DOMAIN|SPLIT|FIGURE)", "[a-z0-9_]+(?:/[a-z0-9_]+)?", re.escape(name)))


def test_every_metric_is_described_and_every_description_is_of_one(run: Path) -> None:
    part = section("formats.md", "## Metrics of a step")
    told = [name for cells in rows(part) for name in names(cells[0])]
    logged = {name for row in read(run / "metrics.jsonl") for name in row} - {"step"}
    assert [name for name in sorted(logged) if not any(pattern(one).fullmatch(name) for one in told)] == []
    assert [one for one in told if not any(pattern(one).fullmatch(name) for name in logged)] == []


def test_every_figure_of_an_evaluation_is_described(run: Path) -> None:
    told = [name for cells in rows(section("formats.md", "## Figures of an evaluation")) for name in names(cells[0])]
    overall = read(run / "evaluations.jsonl")[0]["greedy"]["overall"]
    assert [name for name in overall if not any(pattern(one).fullmatch(name) for one in told)] == []
    assert [one for one in told if not any(pattern(one).fullmatch(name) for name in overall)] == []


def test_every_file_of_a_run_is_described(run: Path) -> None:
    part = section("formats.md", "## The run folder")
    told = {name.split("/")[0] for cells in rows(part) for name in names(cells[0])}
    there = {path.name for path in run.iterdir()}
    assert there <= told
    assert told - there == {"tensorboard", "skipped.jsonl", "dumps"}  # no such logger, nothing skipped, all finite
    (checkpoint, *_) = (run / "checkpoints").glob("step-*")
    held = [name for cells in rows(section("architecture.md", "## Checkpoints")) for name in names(cells[0])]
    assert sorted(held) == sorted(path.name for path in checkpoint.iterdir())


def test_every_field_of_a_trace_is_described(run: Path) -> None:
    told = [names(cells[1]) for cells in rows(section("formats.md", "## Traces"))]
    flat = {name for level in told for name in level} - {"stop", "length", "gold", "ok", "not_applicable", "invalid"}
    (row, *_) = read(sorted((run / "traces").iterdir())[-1])
    assert flat | {"length"} == row.keys()


def test_every_field_of_a_row_is_described() -> None:
    from qoqmed.datasets.rows import FIELDS

    told = [name for cells in rows(section("formats.md", "## Data rows")) for name in names(cells[0])]
    assert sorted(told) == sorted(FIELDS)


def test_the_floors_are_those_of_their_test() -> None:
    from test_floors import FLOORS

    parts = [names(cells[1]) for cells in floors(section("architecture.md", "## Floors"))]
    for number, told in enumerate(parts[:4]):
        there = [name for name in FLOORS[number] if name != "__main__" and exists(name)]
        assert sorted(told) == sorted(there), number
    assert all(exists(name) for name in parts[4])


def floors(part: str) -> Iterator[list[str]]:
    for line in part.splitlines():
        if re.match(r"\| \d ", line):
            yield [cell.strip() for cell in line.split("|")[1:-1]]


def exists(name: str) -> bool:
    return (ROOT / "qoqmed" / name).is_dir() or (ROOT / "qoqmed" / f"{name}.py").is_file()


# ---- links, marks, decisions


def slugs(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    plain = FENCED.sub("", text(page))
    headings = re.findall(r"^#+ (.+)$", plain, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", text(page))):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists() and found.is_relative_to(ROOT), target
        assert not anchor or anchor in slugs(found), target


def test_files_named_in_the_text_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"`((?:qoqmed|tests|benchmarks|recipes|constraints|docs)/[\w./\-]+)`", text(page)):
            assert (ROOT / name).exists(), f"{page}: {name}"


def test_blocks_that_are_filled_in_by_hand_are_marked() -> None:
    for page, mark in ((ROOT / "README.md", "quickstart-results"), (DOCS / "experiments.md", "warm-start")):
        assert text(page).count(f"<!-- {mark} -->") == text(page).count(f"<!-- /{mark} -->") == 1


def test_decisions_are_numbered_listed_and_whole() -> None:
    paths, index = sorted((DOCS / "decisions").glob("0*.md")), text(DOCS / "decisions" / "README.md")
    assert [path.name[:4] for path in paths] == [f"{number:04d}" for number in range(1, len(paths) + 1)]
    for number, path in enumerate(paths, start=1):
        title, found = text(path).splitlines()[0], text(path)
        assert title.startswith(f"# {number}. ")
        assert f"{number}. [{title.removeprefix(f'# {number}. ')}]({path.name})" in index
        assert [found.count(f"**{word}.**") for word in ("Context", "Decision", "Consequence")] == [1, 1, 1]


def test_the_picture_is_well_formed_and_has_a_description() -> None:
    tree = ElementTree.parse(DOCS / "flow.svg").getroot()
    inside = {child.tag.split("}")[1] for child in tree}
    assert {"title", "desc"} <= inside
    assert "flow.svg" in text(DOCS / "architecture.md")


# ---- no package registry

REGISTRIES = [  # written in pieces, or this file would name them
    r"\bpy" + r"pi\.\w",
    r"python" + r"hosted\.",
    r"ana" + r"conda\.(?:org|com|cloud)",
    r"download\.py" + r"torch\.",
    r"npm" + r"js\.",
    r"\bcrates" + r"\.io",
    r"ruby" + r"gems\.org",
    r"\bproxy\.go" + r"lang\.",
    r"\b(?:gh" + r"cr|qu" + r"ay|nv" + r"cr|dock" + r"er)\.io",
    r"--(?:extra-)?index" + r"-url",
]


def test_no_package_registry_is_named() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    found = [ROOT / name for name in listed.stdout.splitlines()]
    files = [path for path in found or [*ROOT.glob("*"), *DOCS.rglob("*")] if path.is_file()]
    assert len(files) > 20
    registry_host = re.compile("|".join(REGISTRIES), re.IGNORECASE)
    named = []
    for path in files:
        match = registry_host.search(path.read_text(encoding="utf-8", errors="ignore"))
        named += [f"{path.relative_to(ROOT)}: {match.group()}"] if match else []
    assert named == []
