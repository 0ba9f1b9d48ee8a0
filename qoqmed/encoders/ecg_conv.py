"""A small one-dimensional convolutional ECG encoder, for tests and the quickstart; trained from nothing.

250 Hz become 10 Hz in two strides of 5, each output looks at about a second, and equal stretches of the window are
averaged to one token each. How an ECG becomes an array of fixed shape: see `media.ecg`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from qoqmed.media import ecg
from qoqmed.registry.arguments import check, one_of, within

STRIDE = 5


class EcgConv(nn.Module):
    """leads: of the standard twelve, in the order of the input's rows. width: D. Arrays in memory are at `rate_hz`."""

    modality = "ecg"
    placeholder = "<|ecg_pad|>"

    def __init__(
        self,
        leads: Sequence[str] = ecg.LEADS,
        width: int = 64,
        num_tokens: int = 10,
        rate_hz: float = 250.0,
        window_s: float = 10.0,
    ) -> None:
        super().__init__()
        self.leads, self.width, self.num_tokens = tuple(leads), width, num_tokens
        self.rate_hz, self.window_s = rate_hz, window_s
        self.samples = round(rate_hz * window_s)
        check(
            *(one_of("lead", lead, ecg.LEADS) for lead in self.leads),
            within("leads", len(self.leads), low=1),
            within("width", width, low=1),
            within("num_tokens", num_tokens, low=1, high=self.samples // STRIDE**2),
        )
        self.convolutions = nn.Sequential(
            nn.Conv1d(len(self.leads), width, kernel_size=15, stride=STRIDE, padding=7),
            nn.GELU(),
            nn.Conv1d(width, width, kernel_size=9, stride=STRIDE, padding=4),
            nn.GELU(),
            nn.Conv1d(width, width, kernel_size=9, padding=4),
            nn.GELU(),
        )
        self.norm = nn.LayerNorm(width)

    def load(self, path: Path, options: Mapping[str, Any]) -> np.ndarray:
        """An ECG file -> [L, T] millivolts. options: see `media.ecg.load`."""
        return ecg.load(path, self.leads, self.rate_hz, self.window_s, options)

    def prepare(self, array: np.ndarray) -> torch.Tensor:
        """[12, any T] or [L, any T] millivolts at `rate_hz` -> float32 [L, T]. Raises MediaError for NaN."""
        signal = ecg.pick_leads(array, self.leads)
        ecg.require_finite(signal, self.leads, "array")
        return torch.from_numpy(np.ascontiguousarray(ecg.fit(signal, self.samples), dtype=np.float32))

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, L, T] -> features [B, N, D] and a mask [B, N], True everywhere: every token is real."""
        features = self.convolutions(batch)
        size, width, length = features.shape
        stretch = length // self.num_tokens
        stretches = features[..., : stretch * self.num_tokens].reshape(size, width, self.num_tokens, stretch)
        tokens = self.norm(stretches.mean(-1).transpose(1, 2))  # [B, D, N] -> [B, N, D]
        return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
