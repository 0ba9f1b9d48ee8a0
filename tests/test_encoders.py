"""The small ECG encoder keeps the encoders' contract."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qoqmed.datasets.synthetic import Synthetic
from qoqmed.encoders.ecg_conv import EcgConv
from qoqmed.errors import MediaError, UserError


def small(**arguments):
    torch.manual_seed(0)
    return EcgConv(**{"width": 8, "num_tokens": 5, **arguments})


def test_arrays_become_tokens():
    encoder = small()
    data = Synthetic(3, domains=["ecg"])
    batch = torch.stack([encoder.prepare(data[i].media[0].array) for i in range(3)])
    assert batch.shape == (3, 12, 2500) and batch.dtype == torch.float32
    features, mask = encoder(batch)
    assert features.shape == (3, encoder.num_tokens, encoder.width) and mask.shape == (3, 5)
    assert mask.dtype == torch.bool and mask.all()
    assert not torch.allclose(features[0], features[1])
    features.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_an_ecg_does_not_depend_on_its_batch():
    encoder = small()
    batch = torch.randn(4, 12, 2500)
    torch.testing.assert_close(encoder(batch)[0][2:3], encoder(batch[2:3])[0], rtol=1e-5, atol=1e-6)


def test_any_length_and_a_choice_of_leads():
    encoder = small(leads=["II", "V1"], window_s=4, num_tokens=40)
    array = np.arange(12, dtype=np.float32)[:, None].repeat(5000, axis=1)
    prepared = encoder.prepare(array)
    assert prepared.shape == (2, 1000) and prepared[:, 0].tolist() == [1, 6]
    assert encoder.prepare(array[:2, :10]).shape == (2, 1000)
    assert encoder(prepared[None])[0].shape == (1, 40, 8)


def test_nan_and_wrong_shapes_are_refused():
    array = np.zeros((12, 2500), dtype=np.float32)
    array[3, 7] = np.inf
    with pytest.raises(MediaError, match="aVR: 1, of 2500"):
        small().prepare(array)
    with pytest.raises(MediaError, match=r"\[12, T\]"):
        small().prepare(array[:5])
    with pytest.raises(UserError, match=r"unknown lead(.|\n)*num_tokens is out of range"):
        small(leads=["V9"], num_tokens=101)


def test_a_record_is_loaded(tmp_path):
    wfdb = pytest.importorskip("wfdb")
    signal = Synthetic(1, domains=["ecg"])[0].media[0].array
    leads = list(EcgConv().leads)
    wfdb.wrsamp("r", 250, ["mV"] * 12, leads, signal.T.astype(float), fmt=["16"] * 12, write_dir=str(tmp_path))
    encoder = small(leads=["V1", "I"])
    loaded = encoder.prepare(encoder.load(tmp_path / "r", {}))
    torch.testing.assert_close(loaded, encoder.prepare(signal), rtol=0, atol=1e-3)
