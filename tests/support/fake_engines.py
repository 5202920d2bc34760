"""Fake engines for a bundle, with the records that a build writes beside them."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import msgspec
from support.fake_tensorrt_builder import fake_engine

from feather_edge.bundle import Bundle
from feather_edge.engine_record import (
    EngineRecord,
    OptimizationProfile,
    ShapeRange,
    engine_file,
    engine_folder,
    graph_hash,
)

if TYPE_CHECKING:
    from pathlib import Path

    from feather_edge.graphs import GraphForm, GraphSpec

__all__ = ["TARGET", "bundle_with_engines", "write_engines"]

TARGET = "agx-orin-64gb"
MAX_ROWS, CAPACITY, MAX_IMAGES = 96, 128, 2


def bundle_with_engines(source: Bundle, folder: Path, **options: Any) -> Bundle:
    """Return a copy of a bundle with fake engines; options as of ``write_engines``."""
    shutil.copytree(source.path, folder)
    bundle = Bundle.open(folder)
    write_engines(bundle, **options)
    return bundle


def write_engines(
    bundle: Bundle,
    *,
    target: str = TARGET,
    opset: int = 18,
    built_with: str = "10.3.0",
    one_profile: bool = False,
    **changes: Any,
) -> None:
    """Write fake engines of every graph; ``changes`` replace fields of the records."""
    folder = engine_folder(bundle.path, target)
    folder.mkdir(parents=True)
    for spec in (bundle.vision_encoder, *bundle.decoders):
        (form,) = [each for each in spec.forms if each.opset == opset]
        record = _record(bundle, spec.of(form), form, target)
        if one_profile and spec.name != "vision_encoder":
            spanning = _spanning_profile(spec.of(form))
            record = msgspec.structs.replace(record, profiles=(spanning,))
        engine = fake_engine(
            bundle.path / form.file,
            [
                {name: (r.min, r.opt, r.max) for name, r in profile.inputs.items()}
                for profile in record.profiles
            ],
            version=built_with,
        )
        file = engine_file(folder, spec.name)
        file.write_bytes(engine)
        record = msgspec.structs.replace(record, num_bytes=len(engine), **changes)
        file.with_suffix(".json").write_bytes(msgspec.json.encode(record))


def _record(bundle: Bundle, spec: GraphSpec, form: GraphForm, target: str) -> EngineRecord:
    return EngineRecord(
        record_version=1,
        feather_edge_version="0.1.0",
        target=target,
        graph=spec.name,
        opset=form.opset,
        graph_sha256=graph_hash(bundle, spec, form),
        precision=bundle.manifest.recipe.precision,
        backend="tensorrt",
        tensorrt_version="10.3.0",
        cuda_version="12.6",
        device_name="Orin",
        compute_capabilities=("8.7",),
        profiles=_profiles(spec),
        builder_optimization_level=3,
        pool_limits={},
        decomposable_attention=False,
        plugin=None,
        plugin_sha256=None,
    )


def _profiles(spec: GraphSpec) -> tuple[OptimizationProfile, ...]:
    if spec.name == "vision_encoder":
        return (_profile("images", spec, {"num_images": (1, MAX_IMAGES)}, 0),)
    batch = (1, 1)
    prefill = {"batch": batch, "sequence": (1, MAX_ROWS), "past_sequence": (0, 0),
               "total_sequence": (1, MAX_ROWS)}  # fmt: skip
    decode = {"batch": batch, "sequence": (1, 1), "past_sequence": (1, CAPACITY - 1),
              "total_sequence": (2, CAPACITY)}  # fmt: skip
    for sizes in (prefill, decode):
        sizes["cache_capacity"] = (CAPACITY, CAPACITY)
    return (_profile("prefill", spec, prefill, MAX_ROWS), _profile("decode", spec, decode, 1))


def _spanning_profile(spec: GraphSpec) -> OptimizationProfile:
    past, total = (0, CAPACITY - 1), (1, MAX_ROWS + CAPACITY - 1)
    sizes = {"batch": (1, 1), "sequence": (1, MAX_ROWS), "past_sequence": past,
             "total_sequence": total, "cache_capacity": (CAPACITY, CAPACITY)}  # fmt: skip
    return _profile("both", spec, sizes, MAX_ROWS)


def _profile(
    name: Any, spec: GraphSpec, sizes: dict[str, tuple[int, int]], max_kept: int
) -> OptimizationProfile:
    inputs = {}
    for tensor in spec.inputs:
        if tensor.name == "num_kept":
            low, high = (1,), (max_kept,)
        else:
            low, high = (
                tuple(sizes[d][column] if isinstance(d, str) else d for d in tensor.shape)
                for column in (0, 1)
            )
        inputs[tensor.name] = ShapeRange(min=low, opt=high, max=high)
    return OptimizationProfile(name=name, inputs=inputs)
