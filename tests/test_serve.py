"""What `qoqmed serve` refuses before it starts anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qoqmed.errors import UserError
from qoqmed.serve import command


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model here(.|\n)*qoqmed export"):
        command(tmp_path)


def test_a_plain_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    with pytest.raises(UserError, match=r"no clinical model(.|\n)*vllm serve"):
        command(tmp_path)
