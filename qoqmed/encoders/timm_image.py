"""Any image backbone of timm, by name, as the encoder of a modality of its own beside the policy's vision tower.

Rules: the whole picture is scaled to the model's input size, its sides apart from each other, and nothing is cropped
(timm's evaluation crops the rim, where a finding may lie); normalised by the model's mean and deviation. Features are
those of `forward_features` without class and register tokens. The network always runs in evaluation mode: statistics
over a batch would let a picture's features depend on its neighbours. Weights come from a local file, never by download.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from qoqmed.encoders import weights as weights_file
from qoqmed.errors import Problem, UserError, near
from qoqmed.media import frames
from qoqmed.media.refusals import need, refused
from qoqmed.media.torchvision_ops import repair
from qoqmed.registry.arguments import check, one_of, within
from qoqmed.types import SPATIAL, Medium

POOLS = ("mean", "none")
_WORD = re.compile(r"[a-z][a-z0-9_]*")


class TimmImage(nn.Module):
    """model: a name of `timm.list_models()`. modality: what rows call these pictures; the recipe's key of the encoder.

    pool: `mean` gives one token a picture, `none` all of them, row by row. weights: a safetensors file of this timm
    model (its classifier is left out); null: random ones. image_size: side in pixels; null: the model's own.
    """

    def __init__(
        self,
        model: str,
        modality: str = "picture",
        pool: str = "mean",
        weights: str | None = None,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        check(
            _modality(modality),
            one_of("pool", pool, POOLS),
            within("image_size", 1 if image_size is None else image_size, low=1),
        )
        repair()  # before timm is imported, which imports torchvision
        timm = need("timm", "timm")
        _known(timm, model)
        self.modality, self.placeholder, self.pool = modality, f"<|{modality}_pad|>", pool
        self.size, count, self.width = _measure(timm, model, image_size)
        self.num_tokens = 1 if pool == "mean" else count
        self.network: nn.Module = _network(timm, model, image_size)
        config = timm.data.resolve_model_data_config(self.network)
        self.mean, self.std = (np.array(config[key], dtype=np.float32) for key in ("mean", "std"))
        self.resampling = Image.Resampling.__members__.get(config["interpolation"].upper(), Image.Resampling.BICUBIC)
        if weights is not None and not next(self.network.parameters()).is_meta:  # a shell is filled from elsewhere
            weights_file.load(
                self.network, weights, _classifier(self.network), mend="export the timm model as safetensors"
            )

    def load(self, path: Path, options: Mapping[str, Any]) -> np.ndarray:
        """A picture, or a DICOM file of one frame -> [H, W, 3] uint8."""
        (picture,) = frames.load(Medium("image", path=path.name, options=options), path.parent, 1)
        return picture

    def prepare(self, array: np.ndarray) -> Tensor:
        """[H, W, 3] uint8 -> float32 [3, height, width] of the model's input. Raises MediaError for other arrays."""
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3 or 0 in array.shape:
            raise refused(f"the {self.modality} array is {array.dtype} {array.shape}", "array", "uint8 [H, W, 3]")
        height, width = self.size
        scaled = Image.fromarray(array).resize((width, height), self.resampling)
        normal = (np.asarray(scaled, dtype=np.float32) / 255.0 - self.mean) / self.std
        return torch.from_numpy(np.ascontiguousarray(normal.transpose(2, 0, 1)))  # [H, W, 3] -> [3, H, W]

    def train(self, mode: bool = True) -> TimmImage:
        """As for every module, but the network stays in evaluation mode."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, height, width] -> features [B, N, D] and a mask [B, N], True everywhere: every token is real."""
        tokens = _tokens(self.network, batch)
        if self.pool == "mean":
            tokens = tokens.mean(1, keepdim=True)
        return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)


def _tokens(network: Any, batch: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, N, D]: the places of a map row by row, or the tokens after class and register tokens."""
    features = network.forward_features(batch)
    if not isinstance(features, Tensor) or features.dim() not in (3, 4):
        raise TypeError("its features are neither a map nor a row of tokens")
    if features.dim() == 4 and getattr(network, "output_fmt", "NCHW") == "NHWC":
        return features.flatten(1, 2)  # [B, h, w, D] -> [B, h * w, D]
    if features.dim() == 4:
        return features.flatten(2).transpose(1, 2)  # [B, D, h, w] -> [B, h * w, D]
    return features[:, getattr(network, "num_prefix_tokens", 0) :]


def _network(timm: Any, model: str, image_size: int | None) -> Any:
    """The model without its classifier. Only models of one fixed size are told theirs: others take any."""
    sized = image_size is not None and timm.get_pretrained_cfg_value(model, "fixed_input_size")
    options = {"img_size": image_size} if sized else {}
    return timm.create_model(model, pretrained=False, num_classes=0, **options).eval()


def _measure(timm: Any, model: str, image_size: int | None) -> tuple[tuple[int, int], int, int]:
    """Input (height, width), tokens and width of the features, from a copy without memory (on the meta device)."""
    try:
        with torch.device("meta"), torch.no_grad():
            shell = _network(timm, model, image_size)
            channels, *sides = timm.data.resolve_model_data_config(shell)["input_size"]
            height, width = (image_size, image_size) if image_size else sides
            _, count, features = _tokens(shell, torch.empty(1, channels, height, width)).shape
    except Exception as error:  # boundary: timm holds a thousand models, each with its own demands
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        got = model if image_size is None else f"{model}, image_size {image_size}"
        what = f"this timm model cannot serve as an encoder: {cause}"
        raise UserError(Problem(what, got=got, mend="choose another model or image_size")) from error
    check(
        within("channels of the timm model", channels, low=3, high=3), within("tokens of the timm model", count, low=1)
    )
    return (int(height), int(width)), int(count), int(features)


def _known(timm: Any, model: str) -> None:
    """A registered name only: timm would go to a hub for `hf-hub:` names, and to a folder for others."""
    if not timm.is_model(model):
        names = timm.list_models()
        expected = f"one of the {len(names)} names of timm.list_models()"
        raise UserError(Problem("unknown timm model", got=repr(model), expected=expected, mend=near(model, names)))


def _modality(word: str) -> Problem | None:
    if word in SPATIAL:
        what = "the backbone's vision tower reads this modality itself"
        return Problem(what, got=word, expected="a name of its own", mend="modality: picture, and the same in the rows")
    if not _WORD.fullmatch(word):
        return Problem("modality is no plain word", got=repr(word), expected="small letters, digits and _")
    return None


def _classifier(network: Any) -> tuple[str, ...]:
    """Names under which a file of this model holds the classifier."""
    named = network.pretrained_cfg.get("classifier") or ()
    return (named,) if isinstance(named, str) else tuple(named)
