"""Every command in the documentation is one that exists, and the cheap ones are run, on the files that it shows.

A fenced block whose first line names a file (```json rewards.jsonl) is written to that file before its page's commands.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main

import qoqmed
from qoqmed import cli, config
from qoqmed.datasets.jsonl import JsonLines

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELL = ("sh", "bash", "shell", "console")
CHEAP = ("plugins", "recipe check", "recipe show", "metrics", "advantage", "score", "doctor")
CHEAP_CALLS = {"score", "estimate"}
FENCE = re.compile(r"(`{3,})\s*(\S*)\s*(\S*)\s*$")


@dataclass(frozen=True)
class Block:
    """One fenced block. file: the name that its first line gives it, or nothing."""

    page: Path
    line: int
    language: str
    file: str
    text: str


@dataclass(frozen=True)
class Command:
    page: Path
    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line} {shlex.join(self.words)}"


def blocks(page: Path) -> Iterator[Block]:
    opened, lines, start, language, file = "", list[str](), 0, "", ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        match = FENCE.match(line)
        if not opened and match:
            opened, language, file = match.groups()
            lines, start = [], number
        elif opened and line.startswith(opened):
            yield Block(page, start, language, file, "\n".join(lines) + "\n")
            opened = ""
        elif opened:
            lines.append(line)
    assert not opened, f"{page}:{start}: a fence that is not closed"


def commands() -> list[Command]:
    """Every line of every shell block, without comments."""
    found = []
    for block in (block for page in PAGES for block in blocks(page) if block.language in SHELL):
        for offset, line in enumerate(block.text.splitlines(), start=1):
            if words := shlex.split(line, comments=True):
                found.append(Command(block.page, block.line + offset, tuple(words)))
    return found


COMMANDS = commands()
OURS = [c for c in COMMANDS if c.words[0] == "qoqmed" or c.words[:3] == ("python", "-m", "qoqmed")]
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))


def parsed(command: Command) -> tuple[str, dict[str, Any]]:
    """(name, parameters) as the command line reads them; raises what it would tell: no such command, no such option."""
    words = list(command.words[1 if command.words[0] == "qoqmed" else 3 :])
    found, name = typer.main.get_command(cli.app), []
    while hasattr(found, "commands"):
        assert words and words[0] in found.commands, f"{command}: no such command"
        found = found.commands[words[0]]
        name.append(words.pop(0))
    options = [word for word in words if word != "--debug"]
    return " ".join(name), found.make_context(name[-1], options).params


def workspace(page: Path, folder: Path) -> Path:
    """A folder with the recipes and the files that the page shows; beside it, a place for the real data's manifest."""
    here = folder / "repository"
    shutil.copytree(ROOT / "recipes", here / "recipes")
    for block in blocks(page):
        if block.file:
            path = here / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
    manifest = folder / "shared" / "data" / "manifest.jsonl"
    manifest.parent.mkdir(parents=True)
    manifest.touch()
    return here


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin packages that the pages show, installed as the pages say, into a folder for sys.path."""
    folder, packages = tmp_path_factory.mktemp("site"), list[str]()
    for page in PAGES:
        installs = [words for c in COMMANDS if c.page == page and (words := c.words)[:2] == ("pip", "install")]
        shown = [word for words in installs for word in words if word.startswith("./")]
        if shown:
            here = workspace(page, tmp_path_factory.mktemp("pages"))
            packages += [str(here / package) for package in shown]
    assert len(packages) == 2
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--no-compile", "--target", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *packages], check=True, capture_output=True)
    return folder


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(site)
    for name in [name for name in sys.modules if name.split(".")[0] in ("my_reward", "my_estimators")]:
        monkeypatch.delitem(sys.modules, name)


def test_the_pages_hold_commands() -> None:
    assert len(OURS) > 20
    assert {parsed(command)[0] for command in OURS} >= {"fit", "eval", *CHEAP}


@pytest.mark.parametrize("command", OURS, ids=str)
def test_a_command_exists_with_its_options_recipe_and_overrides(
    command: Command, installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, parameters = parsed(command)
    monkeypatch.chdir(workspace(command.page, tmp_path))
    if parameters.get("recipe") is not None:
        assert parameters["recipe"].is_file()
        config.load(parameters["recipe"], parameters["overrides"] or (), files=False)
    for file in ("rewards", "predictions", "responses"):
        if name in ("advantage", "metrics", "score") and file in parameters:
            assert parameters[file].is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_cheap_commands_run(
    page: Path, installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace(page, tmp_path))
    for command in OURS:
        if command.page != page or parsed(command)[0] not in CHEAP:
            continue
        with pytest.raises(SystemExit) as stop:
            cli.main(list(command.words[1:]))
        told = capsys.readouterr()
        assert not stop.value.code and told.out, f"{command}\n{told.err}"
        if "--json" in command.words:
            for line in told.out.splitlines() if command.words[1] == "score" else [told.out]:
                json.loads(line)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.words[0] == "python"], ids=str)
def test_python_commands_name_what_is_there(command: Command) -> None:
    first, *rest = command.words[1:]
    if first == "-m":
        assert importlib.util.find_spec(rest.pop(0)) is not None
    else:
        assert (ROOT / first).is_file()
    assert all((ROOT / word).exists() for word in rest if "/" in word)


def test_make_targets_exist() -> None:
    named = {word for c in COMMANDS if c.words[0] == "make" for word in c.words[1:] if "=" not in word}
    for page in PAGES:
        named |= set(re.findall(r"`make ([a-z]+)", page.read_text(encoding="utf-8")))
    assert {"quickstart", "test", "setup", "bench"} <= named <= TARGETS


def test_commands_named_in_the_text_exist() -> None:
    known = typer.main.get_command(cli.app).commands
    for page in PAGES:
        for word in re.findall(r"`qoqmed ([a-z]+)", page.read_text(encoding="utf-8")):
            assert word in known, f"{page}: qoqmed {word}"


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """(name, call) of every `qoqmed.name(...)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            if isinstance(owner, ast.Name) and owner.id == "qoqmed":
                yield node.func.attr, node


PYTHON = [block for page in PAGES for block in blocks(page) if block.language == "python" and not block.file]


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"{block.page.name}:{block.line}")
def test_python_calls_fit_their_signatures_and_cheap_ones_run(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = list(calls(ast.parse(block.text)))
    assert found
    for name, call in found:
        assert name in qoqmed.__all__
        inspect.signature(getattr(qoqmed, name)).bind(*call.args, **{word.arg or "": 0 for word in call.keywords})
    if {name for name, _ in found} <= CHEAP_CALLS:
        monkeypatch.chdir(workspace(block.page, tmp_path))
        Path("shown.py").write_text(block.text)
        runpy.run_path("shown.py")
        assert capsys.readouterr().out


def test_the_rows_shown_are_cases(tmp_path: Path) -> None:
    here = workspace(ROOT / "README.md", tmp_path)
    rows = [JsonLines(f"{split}.jsonl", root=str(here / "my_data")) for split in ("train", "valid")]
    cases = [data[index] for data in rows for index in range(len(data))]
    assert [case.domain for case in cases] == ["chest_xray", "ecg", "ct"]
    assert all(case.target.labels and case.text and case.media for case in cases)


def test_the_plugins_shown_do_what_is_said(installed: None, tmp_path: Path) -> None:
    page = ROOT / "docs" / "plugins.md"
    result = qoqmed.estimate(workspace(page, tmp_path) / "rewards.jsonl", "median")
    assert result["advantages"] == [0.75, -0.25, 0.0]
    reward = next(block.text for block in blocks(ROOT / "README.md") if block.file.endswith("__init__.py"))
    code = [line for line in reward.split("class ", 1)[1].splitlines() if line.strip()]
    assert len(code) <= 10  # "This reward takes ten lines"
