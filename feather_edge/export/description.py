"""The manifest of a bundle, but for its files and what its tokenizer says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from feather_edge import __version__
from feather_edge.export.layout import decoder_shape
from feather_edge.manifest import (
    FORMAT_VERSION,
    BundleManifest,
    LocalAttention,
    Rotary,
    listed_graphs,
)
from feather_edge.recipes.precision import effective_precision

if TYPE_CHECKING:
    from feather_edge.checkpoint.reader import Checkpoint
    from feather_edge.checkpoint.text_config import TextConfig
    from feather_edge.export.families import FamilyModel
    from feather_edge.graphs import GraphSpec
    from feather_edge.pruning.schedule import PruningSchedule
    from feather_edge.recipes import ExportRecipe

__all__ = ["describe"]


def describe(
    source: Checkpoint,
    model: FamilyModel,
    recipe: ExportRecipe,
    schedule: PruningSchedule,
    specs: list[GraphSpec],
) -> BundleManifest:
    """Return the manifest of a bundle without its files and what its tokenizer says."""
    text = model.text
    max_new_tokens = source.generation_config.get("max_new_tokens")
    return BundleManifest(
        format_version=FORMAT_VERSION,
        feather_edge_version=__version__,
        source=source.path.name,
        model_type=source.config["model_type"],
        recipe=msgspec.structs.replace(
            recipe, stages=schedule.stages, **effective_precision(recipe)
        ),
        taken_over=source.packed,
        decoder=decoder_shape(text),
        rotary=_rotary(text),
        max_positions=text.max_positions,
        eos_token_ids=(),
        max_new_tokens=max_new_tokens,
        image=model.image,
        graphs=listed_graphs(specs, recipe),
        files={},
        local_attention=_local_attention(text),
        prompt_attention=model.prompt_attention,
        embedding_scale=text.embedding_scale,
        prompt=model.prompt,
        sha256="",
    )


def _local_attention(text: TextConfig) -> LocalAttention | None:
    if text.local is None:
        return None
    theta = text.local.rope_theta
    rotary = None if theta is None else Rotary(head_dim=text.head_dim, theta=theta)
    return LocalAttention(window=text.local.window, rotary=rotary)


def _rotary(text: TextConfig) -> Rotary:
    scaling, mrope = text.rope_scaling, text.mrope
    plain = Rotary(
        head_dim=text.head_dim,
        theta=text.rope_theta,
        sections=None if mrope is None else mrope.sections,
        is_interleaved=mrope is not None and mrope.is_interleaved,
    )
    if scaling is None:
        return plain
    return msgspec.structs.replace(
        plain,
        scaling=scaling.type,
        factor=scaling.factor,
        low_freq_factor=scaling.low_freq_factor or 1.0,
        high_freq_factor=scaling.high_freq_factor or 1.0,
        original_max_positions=scaling.original_max_positions or 0,
    )
