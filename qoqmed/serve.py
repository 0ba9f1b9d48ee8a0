"""An exported model behind vLLM's OpenAI-compatible server, on this machine alone unless asked otherwise."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from qoqmed.errors import Problem, UserError
from qoqmed.policy.loading import PREFIX
from qoqmed.rollouts.vllm_engine import require

ENVIRONMENT: Mapping[str, str] = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}


def command(folder: str | Path, host: str = "127.0.0.1", port: int = 8000, arguments: Sequence[str] = ()) -> list[str]:
    """What `serve` runs. arguments: further ones of vLLM's server. Raises UserError where the folder is no exported
    model, or vLLM is not installed."""
    path = Path(folder)
    if not (path / "config.json").is_file():
        mend = "export the run first: qoqmed export RUN DIR"
        raise UserError(Problem("no model here", "DIR", str(path), "a folder that `qoqmed export` made", mend))
    kind = json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type", "")
    if not str(kind).startswith(PREFIX):
        mend = "vllm serve DIR serves a plain checkpoint"
        raise UserError(Problem("this is no clinical model", "DIR", f"{path} ({kind})", f"a {PREFIX}* model", mend))
    require()
    name = path.resolve().name
    options = ["--model", str(path), "--served-model-name", name, "--host", host, "--port", str(port)]
    return [sys.executable, "-m", "qoqmed.serving.server", *options, *arguments]


def serve(folder: str | Path, host: str = "127.0.0.1", port: int = 8000, arguments: Sequence[str] = ()) -> None:
    """Become the server; this process does not come back. Raises as `command`."""
    words = command(folder, host, port, arguments)
    sys.stdout.flush()
    os.execve(words[0], words, os.environ | ENVIRONMENT)
