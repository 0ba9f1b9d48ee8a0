"""Tests that run vLLM itself. They need a pytest process of their own: an engine leaves its marks on the one it is in.

python -m pytest tests/vllm
"""

from __future__ import annotations

from pathlib import Path

import pytest
import served

from qoqmed.errors import UserError
from qoqmed.packing import Prompt
from qoqmed.policy.handle import LivePolicy
from qoqmed.policy.loading import Loaded
from qoqmed.rollouts.vllm_engine import require

HERE = Path(__file__).parent
_TOLD = pytest.StashKey[str]()


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return served.load()


@pytest.fixture(scope="module")
def policy(loaded: Loaded) -> LivePolicy:
    return served.handle(loaded)


@pytest.fixture(scope="module")
def prompts(loaded: Loaded) -> list[Prompt]:
    return served.prompts(loaded)


def _missing() -> str:
    try:
        require()
    except UserError as error:
        return error.problems[0].mend
    return ""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves them out without vLLM, and beside other tests."""
    mine = [item for item in items if HERE in item.path.parents]
    for item in mine:
        item.add_marker(pytest.mark.vllm)
    others, missing = len(items) > len(mine), _missing()
    if mine and (missing or others):
        items[:] = [item for item in items if item not in set(mine)]
        config.hook.pytest_deselected(items=mine)
        why = missing or "a process of their own: python -m pytest tests/vllm"
        config.stash[_TOLD] = f"{len(mine)} tests of vLLM need {why}"


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and _TOLD in session.config.stash:
        session.exitstatus = pytest.ExitCode.OK


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if told := config.stash.get(_TOLD, ""):
        terminalreporter.write_line(f"left out: {told}")
