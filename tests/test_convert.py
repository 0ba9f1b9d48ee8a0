"""The published ECG-JEPA pickle becomes safetensors that the encoder reads; whatever else a file holds is refused.

The pickles are written here, in the published layout and at its full size: tensors that repeat one number, which a
pickle stores once.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from qoqmed import cli, convert
from qoqmed.encoders.ecg_jepa import EcgJepa
from qoqmed.errors import UserError


class Code:
    """A pickle of this makes a folder when it is loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def state(**changes):
    """Weights by name, each its own number; None takes one out."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in EcgJepa().state_dict().items()}
    repeated = {name: torch.tensor(i / 1024).expand(shape) for i, (name, shape) in enumerate(shapes.items())}
    repeated |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return {name: tensor for name, tensor in repeated.items() if tensor is not None}


def write(path, content, legacy=False):
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def run(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        cli.main(["convert", "ecg-jepa", *map(str, words)])
    return int(stop.value.code or 0), capsys.readouterr()


def refused(file, out, match):
    with pytest.raises(UserError, match=match) as raised:
        convert.ecg_jepa(file, out)
    assert not out.exists() and not list(out.parent.glob(".*tmp"))
    return str(raised.value)


def test_the_published_pickle_becomes_weights_of_the_encoder(tmp_path, capsys):
    half = torch.full((768,), 0.25, dtype=torch.float16)
    file = write(tmp_path / "epoch100.pth", {"encoder": state(norm__weight=half), "epoch": 99})
    out = tmp_path / "ecg_jepa.safetensors"
    code, told = run(capsys, file, out)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert (
        code == 0 and f"137 tensors, 85,067,520 trainable parameters, epoch 99\nsha256 of {file}: {digest}" in told.out
    )
    with safe_open(out, "pt") as opened:
        kept = {"source": "epoch100.pth", "sha256": digest, "epoch": "99", "encoder": "ecg_jepa", "format": "pt"}
        assert opened.metadata() == kept
        assert {opened.get_slice(name).get_dtype() for name in opened.keys()} == {"F32"}  # noqa: SIM118
    encoder, expected = EcgJepa(str(out)), state(norm__weight=half.float())
    assert all(torch.equal(tensor, expected[name]) for name, tensor in encoder.state_dict().items())
    assert sorted(tmp_path.iterdir()) == [out, file]
    code, told = run(capsys, file, out)
    assert code == 2 and "exists and is not replaced" in told.err


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_holds_code_is_refused_and_not_run(tmp_path, capsys, legacy):
    trap = tmp_path / "trap"
    file = write(tmp_path / "evil.pth", {"encoder": state(), "epoch": Code(trap)}, legacy)
    code, told = run(capsys, file, tmp_path / "out")
    assert code == 2 and not trap.exists() and not (tmp_path / "out").exists()
    assert f"it holds code or objects ({os.mkdir.__module__}.mkdir); nothing of it was run" in told.err
    assert told.err.count("error:") == 1 and "weights_only" not in told.err and "Traceback" not in told.err


def test_a_raw_pickle_of_code_is_refused(tmp_path):
    file = tmp_path / "evil.pkl"
    file.write_bytes(pickle.dumps(Code(tmp_path / "trap")))
    refused(file, tmp_path / "out", "the file (is refused|cannot be read)")
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("kept", [0, 1, 100, 5000])
def test_a_truncated_file_is_refused(tmp_path, kept):
    whole = write(tmp_path / "whole.pth", {"encoder": state(), "epoch": 0}).read_bytes()
    file = tmp_path / "cut.pth"
    file.write_bytes(whole[:kept])
    assert len(whole) > 5000
    refused(file, tmp_path / "out", "cut short, or no torch pickle")


def test_what_is_no_file_is_told_with_the_output(tmp_path):
    told = refused(tmp_path, tmp_path / "none" / "out", "the path is a folder")
    assert "no such folder for the output" in told
    refused(tmp_path / "none", tmp_path / "out", "there is no such file")
    (tmp_path / "text").write_text("epoch 100\n")
    refused(tmp_path / "text", tmp_path / "out", "cannot be read")


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"encoder": {}},
        {"encoder": {"norm.weight": 1.0}, "epoch": 1},
        {"encoder": [torch.zeros(1)], "epoch": 1},
        {"encoder": {"norm.weight": torch.zeros(1)}, "epoch": "last"},
        {"encoder": {}, "epoch": 1, "optimizer": {}},
        {"norm.weight": torch.zeros(1)},
    ],
)
def test_another_layout_is_refused(tmp_path, content):
    told = refused(write(tmp_path / "w.pth", content), tmp_path / "out", "the file has another layout")
    assert "{'encoder': weights by name, 'epoch': a whole number}" in told


def test_every_weight_that_differs_is_told_at_once(tmp_path):
    changes = {"norm__bias": None, "pos_embed": None, "extra": torch.zeros(1), "W_P__weight": torch.zeros(768, 75)}
    file = write(tmp_path / "w.pth", {"encoder": state(**changes), "epoch": 1})
    told = refused(file, tmp_path / "out", "2 of the weights are missing: pos_embed, norm.bias")
    assert "1 of the weights are unexpected: extra" in told
    assert "1 of the weights have another shape: W_P.weight [768, 75] instead of [768, 50]" in told


def test_weights_that_are_no_finite_numbers_are_refused(tmp_path):
    changes = {"norm__bias": torch.full((768,), torch.nan), "norm__weight": torch.ones(768, dtype=torch.int64)}
    changes["W_P__bias"] = torch.ones(768).to_sparse()
    file = write(tmp_path / "w.pth", {"encoder": state(**changes), "epoch": 1})
    told = refused(file, tmp_path / "out", "no finite numbers")
    assert "no finite numbers: W_P.bias, norm.weight, norm.bias" in told


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(convert, "save_file", full_disk)
    file = write(tmp_path / "w.pth", {"encoder": state(), "epoch": 1})
    with pytest.raises(OSError, match="no space"):
        convert.ecg_jepa(file, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [file]
