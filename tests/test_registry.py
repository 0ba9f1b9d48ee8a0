from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from fake_distribution import install

from qoqmed import registry
from qoqmed.config.schema import Node
from qoqmed.contracts import GROUPS
from qoqmed.errors import DataError, PluginError, Problem

CODE = '''
from __future__ import annotations
from collections.abc import Sequence
from typing import TYPE_CHECKING
from qoqmed.errors import DataError, Problem, UserError
if TYPE_CHECKING:
    from nowhere import Unknown

class Scale:
    """Multiplies."""
    def __init__(self, factor: float, names: Sequence[str] = (), mode: str | None = None, odd: Unknown = None) -> None:
        self.factor, self.names, self.mode = factor, names, mode

class Open:
    def __init__(self, seed: int = 0, **others: int) -> None:
        self.seed, self.others = seed, others

class Strict:
    def __init__(self, size: int) -> None:
        if size > 2:
            raise UserError(Problem("size is out of range", got=str(size)))
        raise DataError(Problem("row 7 is empty", where="rows.jsonl:7"))

def thing(root: str = ".") -> str:
    return f"made in {root}"

DATA = ("an", "object")
'''


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "some_plugins", raising=False)
    rewards = {name.lower(): f"some_plugins:{name}" for name in ("Scale", "Open", "Strict", "thing", "DATA")}
    install(tmp_path, "some-plugins", {"rewards": rewards, "domains": {"data": "some_plugins:DATA"}}, CODE)
    return tmp_path


def only(error: pytest.ExceptionInfo[Any]) -> Problem:
    (problem,) = error.value.problems
    return problem


def test_builtin_plugins_are_found_like_any_other() -> None:
    found = {(info.name, info.distribution) for info in registry.available("rewards")}
    assert found >= {("accuracy", "qoqmed"), ("iou", "qoqmed"), ("format", "qoqmed")}
    assert all(registry.available(group) for group in GROUPS)


def test_a_third_partys_plugin_is_found_without_importing_it(plugins: Path) -> None:
    info = registry.find("rewards", "scale")
    assert (info.distribution, info.version, info.value) == ("some-plugins", "1.0", "some_plugins:Scale")
    assert "some_plugins" not in sys.modules
    assert registry.load("rewards", "scale").__name__ == "Scale"


def test_an_unknown_name_gets_near_matches_and_what_is_installed(plugins: Path) -> None:
    with pytest.raises(PluginError) as error:
        registry.load("rewards", "scales", where="rewards.scales")
    problem = only(error)
    assert (problem.where, problem.got) == ("rewards.scales", "'scales'")
    assert "did you mean 'scale'" in problem.mend
    assert "accuracy" in problem.expected and "scale" in problem.expected


def test_an_unknown_group_gets_near_matches() -> None:
    with pytest.raises(PluginError, match="did you mean 'rewards'"):
        registry.available("reward")


def test_two_distributions_of_one_name_are_an_error_naming_both(plugins: Path) -> None:
    install(plugins, "other-plugins", {"rewards": {"scale": "other_plugins:Scale"}}, version="2.1")
    registry.discovery._scan.cache_clear()
    with pytest.raises(PluginError) as error:
        registry.find("rewards", "scale")
    assert "some-plugins 1.0" in str(error.value) and "other-plugins 2.1" in str(error.value)
    assert len([info for info in registry.available("rewards") if info.name == "scale"]) == 2


def test_one_distribution_listed_twice_is_one(plugins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = plugins / "again"
    again.mkdir()
    install(again, "Some_Plugins", {"rewards": {"scale": "some_plugins:Scale"}}, version="0.9")
    monkeypatch.syspath_prepend(again)
    monkeypatch.syspath_prepend(plugins)
    assert registry.find("rewards", "scale").version == "1.0"  # the first on the path, which Python would import too


def test_damaged_metadata_hides_no_other_plugin(plugins: Path) -> None:
    broken = plugins / "broken_one-1.0.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-one\nVersion: 1.0\n")
    (broken / "entry_points.txt").write_text("[qoqmed.rewards]\nno equals sign\n")
    registry.discovery._scan.cache_clear()
    assert registry.find("rewards", "scale").distribution == "some-plugins"
    assert len(registry.unreadable()) == 1


@pytest.mark.parametrize(
    ("name", "arguments", "provided", "where", "text"),
    [
        ("scale", {"factor": 1}, (), None, ""),
        ("scale", {}, ("factor",), None, ""),
        ("scale", {}, (), "rewards.x", "missing argument 'factor'"),
        ("scale", {"factor": "2"}, (), "rewards.x.factor", "wrong type"),
        ("scale", {"factor": True}, (), "rewards.x.factor", "wrong type"),
        ("scale", {"factor": 1.0, "names": "ab"}, (), "rewards.x.names", "a list, each item a string"),
        ("scale", {"factor": 1.0, "names": ["a", 1]}, (), "rewards.x.names", "wrong type"),
        ("scale", {"factor": 1.0, "mode": None, "odd": object()}, (), None, ""),
        ("scale", {"factor": 1.0, "fator": 2}, (), "rewards.x.fator", "did you mean 'factor'"),
        ("open", {"anything": 1}, (), None, ""),
        ("data", {"x": 1}, (), "rewards.x.x", "no arguments"),
    ],
)
def test_arguments_are_bound_to_the_signature(
    plugins: Path, name: str, arguments: dict[str, Any], provided: tuple[str, ...], where: str | None, text: str
) -> None:
    problems = registry.bind("rewards", name, arguments, provided, "rewards.x")
    assert [problem.where for problem in problems] == ([where] if where else [])
    assert all(text in str(problem) for problem in problems)


def test_make_gives_what_the_signature_names_and_the_recipe_wins(plugins: Path) -> None:
    assert registry.make("rewards", Node("thing"), root="/data", seed=3) == "made in /data"
    assert registry.make("rewards", Node("thing", {"root": "here"}), root="/data") == "made in here"
    made = registry.make("rewards", Node("open", {"a": 1}), seed=3, unnamed=4)
    assert (made.seed, made.others) == (3, {"a": 1})


def test_a_domain_may_be_an_object(plugins: Path) -> None:
    assert registry.make("domains", Node("data"), root="/data") == ("an", "object")
    with pytest.raises(PluginError, match="no arguments"):
        registry.make("domains", Node("data", {"x": 1}))


def test_make_refuses_unbound_arguments(plugins: Path) -> None:
    with pytest.raises(PluginError, match=r"rewards\.x\.fctor: unknown argument"):
        registry.make("rewards", Node("scale", {"fctor": 1.0, "factor": 1.0}, "rewards.x"))


def test_a_users_error_in_a_constructor_gets_its_place_or_passes_through(plugins: Path) -> None:
    with pytest.raises(PluginError, match="rewards.x: size is out of range"):
        registry.make("rewards", Node("strict", {"size": 3}, "rewards.x"))
    with pytest.raises(DataError, match="rows.jsonl:7: row 7 is empty"):
        registry.make("rewards", Node("strict", {"size": 1}, "rewards.x"))


def test_describe_shows_docstring_and_defaults(plugins: Path) -> None:
    description = registry.describe("rewards", "scale")
    assert description.text == "Multiplies."
    assert description.arguments is not None
    assert [(one.name, one.required, one.default) for one in description.arguments][:2] == [
        ("factor", True, None),
        ("names", False, ()),
    ]


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, float, True),
        (1.0, int, False),
        (True, int, False),
        (None, int | None, True),
        ("x", int | None, False),
        ([1, 2], tuple[int, ...], True),
        ([1, "2"], list[int], False),
        ({"a": 1}, dict[str, int], True),
        ({"a": "b"}, dict[str, int], False),
        ([], dict[str, int], False),
        ("k1", Literal["k1", "k2"], True),
        ("k4", Literal["k1", "k2"], False),
        ("data", Path, True),
        (3, Path, False),
        (object(), "unresolved", True),
        (3, Any, True),
    ],
)
def test_fits_refuses_only_what_is_plainly_wrong(value: Any, annotation: Any, expected: bool) -> None:
    assert registry.fits(value, annotation) is expected


def test_listing_plugins_is_quick_and_imports_none() -> None:
    code = (
        "import sys; from qoqmed import registry, contracts;"
        "print(sum(len(registry.available(g)) for g in contracts.GROUPS));"
        "print([m for m in sys.modules if m in ('torch', 'transformers', 'lightning')"
        " or m.startswith(('qoqmed.rewards', 'qoqmed.policy'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, loaded = done.stdout.splitlines()
    assert int(count) > 20
    assert loaded == "[]"
