"""Model families, one file each, named by Hugging Face's ``model_type``.

A family reads a checkpoint's config and answers with a ``FamilyModel``: the sizes, where the
weights are, how many visual tokens an image gives, and how to write its vision encoder. Text
decoders, pruning and the rest of the export are shared.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from feather_edge.errors import UnsupportedModelError
from feather_edge.manifest import PromptForm

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from feather_edge.checkpoint.reader import Checkpoint
    from feather_edge.checkpoint.text_config import TextConfig
    from feather_edge.export.builder import GraphBuilder
    from feather_edge.export.weights import Weights
    from feather_edge.graphs import DType, GraphSpec
    from feather_edge.images import ImageSpec
    from feather_edge.manifest import PromptAttention

FAMILIES = (
    "llava",
    "llava_next",
    "llava_onevision",
    "internvl",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "idefics3",
    "smolvlm",
    "paligemma",
    "gemma3",
)
"""Supported model types, each a module of this package with ``INFO`` and ``read(checkpoint)``."""


class FamilyInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What of a family is supported, for people.

    Attributes:
        model_type: as Hugging Face names the family.
        examples: checkpoints of the family, by their names on the hub.
        towers: model types of its vision tower.
        decoders: model types of its text decoder.
        images: how a picture becomes visual tokens.
        limits: what of the family is not supported; empty where nothing is known.
    """

    model_type: str
    examples: tuple[str, ...]
    towers: tuple[str, ...]
    decoders: tuple[str, ...]
    images: str
    limits: str = ""


@dataclass(frozen=True, kw_only=True)
class FamilyModel:
    """A checkpoint as its family understands it.

    Attributes:
        text: the decoder.
        weights: the tensors under canonical names: ``text.``, ``vision.``, ``projector.``, and
            ``lm_head.weight``.
        image: what the runtime must know of images: placeholder, grid, preprocessing.
        write_vision_encoder: writes the vision graph's nodes and closes it.
        vision_spec: returns the contract of the vision graph for a dtype and opsets.
        num_planes: of DeepStack: further outputs of the vision graph, one added after each of the
            first decoder layers.
        prompt: what the chat template does not say.
        prompt_attention: which rows of a prompt see which.
        is_traced: PyTorch writes the vision tower.
    """

    text: TextConfig
    weights: Weights
    image: ImageSpec
    write_vision_encoder: Callable[[GraphBuilder], ir.Model]
    vision_spec: Callable[[DType, tuple[int, ...]], GraphSpec]
    num_planes: int = 0
    prompt: PromptForm = field(default_factory=PromptForm)
    prompt_attention: PromptAttention = "causal"
    is_traced: bool = False


def read_family(checkpoint: Checkpoint) -> FamilyModel:
    """Return the checkpoint as its family understands it.

    Raises:
        UnsupportedModelError: if no family knows the checkpoint's ``model_type``.
        CheckpointError: if the config is inconsistent.
    """
    model_type = checkpoint.config.get("model_type")
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"model_type {model_type!r} of {checkpoint.path} is not supported; "
            f"supported are {', '.join(FAMILIES)}"
        )
    model: FamilyModel = _module(str(model_type)).read(checkpoint)
    return model


def family_infos() -> tuple[FamilyInfo, ...]:
    """Return what is supported of each family, in the order of ``FAMILIES``."""
    return tuple(_module(model_type).INFO for model_type in FAMILIES)


def _module(model_type: str) -> Any:
    return importlib.import_module(f"feather_edge.export.families.{model_type}")
