"""The clinical models as vLLM runs them: its own classes of the plain backbones, with our encoders and projectors.

An encoder is the very module of the policy. Weights come under the policy's names or those on disk. An architecture has
the name of our transformers class, so that `config.json` needs nothing besides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.platforms import current_platform

from qoqmed.policy.clinical import make_encoder
from qoqmed.serving.processing import SERIES, ClinicalInfo, ClinicalInputs, DummyInputs

if TYPE_CHECKING:
    Host = Any
else:
    Host = object

OWN = ("encoders.", "projectors.")


class Clinical(Host):
    """Mixin before vLLM's class of a plain backbone.

    banned: [V] bool, True for ids whose logits are -inf; None bans nothing.
    """

    supports_mm_device_do_normalize = False  # pixels come normalised, in a prompt and from `ClinicalProcessor`
    banned: Tensor | None = None

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = vllm_config.model_config.hf_config
        specs = config.encoders or {}
        hidden = config.get_text_config().hidden_size
        made: dict[str, Any] = {modality: make_encoder(modality, spec) for modality, spec in specs.items()}
        self.encoders = nn.ModuleDict(made)
        self.projectors = nn.ModuleDict({m: nn.Linear(encoder.width, hidden) for m, encoder in made.items()})
        if vllm_config.load_config.load_format == "dummy" and current_platform.is_cpu():
            self._keep_plain()

    def _keep_plain(self) -> None:
        """Weights that come again and again stay as they are: packed ones take ten times as long to replace."""
        for layer in self.modules():
            layer._cpu_skip_gemm_dispatch = True  # as vLLM itself says to a linear layer on a CPU

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        if modality == "image":
            return str(super().get_placeholder_str(modality, i))
        return "".join(f"<|{modality}_{part}|>" for part in ("start", "pad", "end"))

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: Sequence[Any]) -> tuple[Tensor, int]:
        """Series count like text: only pictures have rows and columns."""
        pictures = [feature for feature in mm_features if feature.modality == "image"]
        positions: tuple[Tensor, int] = super().get_mrope_input_positions(input_tokens, pictures)
        return positions

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Features of the items, one tensor [tokens, D] each; items of one modality at a time."""
        series = {key: kwargs.pop(key) for key in tuple(kwargs) if key.startswith(SERIES)}
        found = [self._series(key.removeprefix(SERIES), values) for key, values in series.items()]
        pictures = super().embed_multimodal(**kwargs) if kwargs else ()
        return (*(pictures or ()), *(item for items in found for item in items))

    def _series(self, modality: str, values: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
        batch = values if isinstance(values, Tensor) else torch.stack(list(values))
        encoder, projector = self.encoders[modality], self.projectors[modality]
        first = next(encoder.parameters(), batch)
        features, _ = encoder(batch.to(first.device, first.dtype))  # [B, N, D]
        return tuple(self._padded(projector(features.to(projector.weight.dtype))))

    def _padded(self, features: Tensor) -> Tensor:
        """[B, N, D] with what this backbone's image features have besides."""
        return features

    def ban(self, token_ids: Iterable[int]) -> None:
        """These ids are not sampled, and have no part in the softmax."""
        banned = torch.zeros(self.config.get_text_config().vocab_size, dtype=torch.bool)
        banned[list(token_ids)] = True
        self.banned = banned.to(next(self.parameters()).device)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        logits: Tensor | None = super().compute_logits(hidden_states)
        if logits is None or self.banned is None:
            return logits
        return logits.masked_fill_(self.banned, -torch.inf)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Names as in the policy (`model.language_model.*`, `encoders.*`, ..) or on disk -> what was written."""
        own: set[str] = set()
        loaded: set[str] = super().load_weights(self._take_own(weights, own))
        return loaded | own

    def _take_own(self, weights: Iterable[tuple[str, Tensor]], own: set[str]) -> Iterable[tuple[str, Tensor]]:
        """Write what belongs to encoders and projectors, and pass the rest on."""
        targets: Mapping[str, Tensor] = {k: v for k, v in self.state_dict(keep_vars=True).items() if k.startswith(OWN)}
        for name, value in weights:
            if name in targets:
                default_weight_loader(targets[name], value)
                own.add(name)
            else:
                yield name, value

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """New weights in place -> the names of what was written."""
        written = self.load_weights(weights)
        head = self.language_model.lm_head
        if current_platform.is_cpu():  # vLLM computes logits from a copy that it made of the head
            head.quant_method.process_weights_after_loading(head)
        return written

    def first_sync(self, weights: Iterable[tuple[str, Tensor]]) -> tuple[list[str], list[str]]:
        """As `sync`, into weights that are no numbers -> (names in the stream alone, names here alone)."""
        ours, names = dict(self._tensors()), list[str]()
        for value in ours.values():
            value.data.fill_(torch.nan)

        def known() -> Iterable[tuple[str, Tensor]]:
            for name, value in weights:
                names.append(name)
                if self._place(name) in ours:
                    yield name, value

        written = self.sync(known())
        unused = [name for name in names if self._place(name) not in written]
        return unused, [name for name, value in ours.items() if bool(value.isnan().any())]

    def _place(self, name: str) -> str:
        """Where a weight of the stream goes: three of them make one `qkv_proj`."""
        place = name if name.startswith(OWN) else str(self.hf_to_vllm_mapper.map_name(name))
        for whole, parts in self.packed_modules_mapping.items():
            for part in parts:
                place = place.replace(f".{part}.", f".{whole}.")
        return place

    def _tensors(self) -> list[tuple[str, Tensor]]:
        """Parameters, and what else of the encoders is saved."""
        own = [(k, v) for k, v in self.state_dict(keep_vars=True).items() if k.startswith("encoders.")]
        named = dict(own) | dict(self.named_parameters())
        return [(name, value) for name, value in named.items() if value.is_floating_point()]


@MULTIMODAL_REGISTRY.register_processor(ClinicalInputs, info=ClinicalInfo, dummy_inputs=DummyInputs)
class ServedQwen2_5_VL(Clinical, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL with encoders of further modalities."""


@MULTIMODAL_REGISTRY.register_processor(ClinicalInputs, info=ClinicalInfo, dummy_inputs=DummyInputs)
class ServedQwen3VL(Clinical, Qwen3VLForConditionalGeneration):
    """Qwen3-VL with encoders of further modalities."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "model") -> None:
        rope = vllm_config.model_config.hf_config.text_config.rope_parameters
        rope.setdefault("mrope_interleaved", True)  # transformers' Qwen3-VL knows no other way
        super().__init__(vllm_config=vllm_config, prefix=prefix)

    def _padded(self, features: Tensor) -> Tensor:
        """Zeros for the layers of DeepStack, to which pictures alone add."""
        deep = features.shape[-1] * self.deepstack_num_level
        return torch.cat([features, features.new_zeros(*features.shape[:-1], deep)], -1)


MODELS: Mapping[str, Any] = {"ClinicalQwen2_5_VL": ServedQwen2_5_VL, "ClinicalQwen3VL": ServedQwen3VL}
