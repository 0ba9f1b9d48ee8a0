"""The floors of the house: an import points to its own floor or a lower one, and the ground floor never loads torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "qoqmed"
FLOORS = {
    0: ["__init__", "__main__", "cli", "errors", "types", "contracts", "registry", "config"],
    1: ["logprobs", "losses", "packing", "kmeans", "reading", "geometry", "boxes"],
    2: [
        "advantages",
        "rewards",
        "domains",
        "tasks",
        "encoders",
        "objectives",
        "rollouts",
        "datasets",
        "metrics",
        "media",
    ],
    3: ["policy", "hf", "module", "parallel", "checkpoint", "serving"],
}
PROGRAM = 4  # everything else
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names}
HEAVY = {"torch", "lightning", "transformers", "torchmetrics", "vllm", "timm", "numpy"}


def floor(module: str) -> int:
    """Of a dotted name: "qoqmed.rewards.iou" -> 2."""
    return FLOOR.get((module.split(".") + ["__init__"])[1], PROGRAM)


def imports(tree: ast.AST, inside: bool = False) -> Iterator[tuple[str, int, bool]]:
    """(dotted name, line, inside a function) of every import that runs: those for type checkers only are left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            from_package = node.module == "qoqmed"  # `from qoqmed import config` imports qoqmed.config
            names = [f"qoqmed.{alias.name}" for alias in node.names] if from_package else [node.module]
            yield from ((name, node.lineno, inside) for name in names)
        yield from imports(node, inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def modules() -> list[tuple[str, Path]]:
    paths = sorted(PACKAGE.rglob("*.py"))
    return [(".".join(["qoqmed", *path.relative_to(PACKAGE).with_suffix("").parts]), path) for path in paths]


def test_imports_point_to_their_own_floor_or_a_lower_one() -> None:
    wrong = []
    for module, path in modules():
        for name, line, inside in imports(ast.parse(path.read_text())):
            up = name.startswith("qoqmed") and floor(name) > floor(module)
            if up and not (inside and module.startswith("qoqmed.cli.") and floor(name) == PROGRAM):
                wrong.append(f"{module}:{line} (floor {floor(module)}) imports {name} (floor {floor(name)})")
    assert wrong == []


def test_the_ground_floor_imports_nothing_heavy_anywhere() -> None:
    ground = [(module, path) for module, path in modules() if floor(module) == 0]
    assert len(ground) > 10
    wrong = [
        f"{module}:{line} imports {name}"
        for module, path in ground
        for name, line, _ in imports(ast.parse(path.read_text()))
        if name.split(".")[0] in HEAVY
    ]
    assert wrong == []


def test_parts_of_one_kind_do_not_import_another_kind() -> None:
    """Collaborators arrive as Protocols. `media` (files to arrays) serves all of them."""
    wrong = []
    for module, path in modules():
        kind = module.split(".")[1]
        for name, line, _ in imports(ast.parse(path.read_text())):
            other = (name.split(".") + [""])[1]
            if kind in FLOORS[2] and name.startswith("qoqmed.") and other in FLOORS[2] and other not in {kind, "media"}:
                wrong.append(f"{module}:{line} imports {name}")
    assert wrong == []


def test_the_walk_sees_what_it_should() -> None:
    code = (
        "import torch\nfrom qoqmed import build\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import numpy\n"
        "def f():\n    from qoqmed.fit import fit\n"
    )
    assert list(imports(ast.parse(code))) == [
        ("torch", 1, False),
        ("qoqmed.build", 2, False),
        ("typing", 3, False),
        ("qoqmed.fit", 7, True),
    ]
    assert [floor(name) for name in ("qoqmed", "qoqmed.build", "qoqmed.rewards.iou", "qoqmed.config.load")] == [
        0,
        4,
        2,
        0,
    ]


@pytest.mark.parametrize("module", ["qoqmed", "qoqmed.contracts", "qoqmed.registry", "qoqmed.config", "qoqmed.cli"])
def test_importing_the_ground_floor_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {sorted(HEAVY)} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
