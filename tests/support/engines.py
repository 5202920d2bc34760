"""Manifests, plans and jobs for tests of engines, made without a checkpoint or TensorRT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feather_edge.checkpoint.preprocessing import PreprocessConfig
from feather_edge.engine_record import OptimizationProfile, ShapeRange
from feather_edge.engines.jobs import EngineJob
from feather_edge.graphs import OPSETS, DecoderShape, decoder_spec, vision_encoder_spec
from feather_edge.images import RasterImages
from feather_edge.manifest import BundleManifest, Rotary
from feather_edge.pruning import PruningSchedule

if TYPE_CHECKING:
    from pathlib import Path

    from feather_edge.recipes import ExportRecipe

__all__ = ["job_for", "manifest_of", "profile_of"]


def manifest_of(
    *,
    num_layers: int,
    recipe: ExportRecipe,
    grid: tuple[int, int],
    max_positions: int = 4096,
) -> BundleManifest:
    """Return the manifest of a model with 3 x 28 x 28 images and 8 wide heads."""
    shape = DecoderShape(
        num_layers=num_layers, hidden_size=32, intermediate_size=64, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, vocab_size=100,
    )  # fmt: skip
    schedule = PruningSchedule(num_layers=num_layers, stages=recipe.stages or ())
    vision = vision_encoder_spec(
        num_channels=3, image_size=(28, 28), hidden_size=32, dtype="float16", opsets=OPSETS
    )
    decoders = [
        decoder_spec(
            index, segment.layers, shape, is_last=segment == schedule.segments[-1],
            dtype="float16", opsets=OPSETS,
        )
        for index, segment in enumerate(schedule.segments)
    ]  # fmt: skip
    preprocess = PreprocessConfig(
        pad_color=None, resize_shortest_edge=28, resize_to=None, resample="bicubic",
        crop_to=(28, 28), rescale_factor=1 / 255, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
    )  # fmt: skip
    return BundleManifest(
        format_version=1,
        feather_edge_version="0",
        source="made up",
        model_type="llava",
        recipe=recipe,
        decoder=shape,
        rotary=Rotary(head_dim=8, theta=10000.0),
        max_positions=max_positions,
        eos_token_ids=(2,),
        max_new_tokens=None,
        image=RasterImages(token_id=4, grid=grid, preprocess=preprocess),
        graphs=(vision, *decoders),
        files={},
        sha256="",
    )


def profile_of(**inputs: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]) -> Any:
    """Return a profile from (min, opt, max) of each input."""
    return OptimizationProfile(
        name="prefill",
        inputs={n: ShapeRange(min=a, opt=b, max=c) for n, (a, b, c) in inputs.items()},
    )


def job_for(model: Path, *profiles: OptimizationProfile, **options: Any) -> EngineJob:
    """Return a quick TensorRT-RTX job for sm_86, its files beside the model."""
    fields: dict[str, Any] = {
        "graph": model.stem,
        "backend": "tensorrt-rtx",
        "model": str(model),
        "engine": str(model.with_suffix(".engine")),
        "result": str(model.with_suffix(".result")),
        "profiles": profiles,
        "compute_capabilities": ("8.6",),
        "builder_optimization_level": 0,
        "pool_limits": {},
        "timing_cache": None,
        "plugin": None,
        "strip_functions": False,
        "fixed_dims": {},
        "decomposable_attention": False,
    }
    return EngineJob(**(fields | options))
