"""Stage 1, the main path: from a Hugging Face checkpoint to a bundle of ONNX graphs."""

from __future__ import annotations

import shutil
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from feather_edge import __version__
from feather_edge.bundle import Bundle, write_manifest
from feather_edge.checkpoint.reader import Checkpoint
from feather_edge.errors import RecipeError
from feather_edge.export.calibration import calibrate
from feather_edge.export.embeddings import write_embeddings
from feather_edge.export.families import FamilyModel, read_family
from feather_edge.export.precision import BundlePrecision, bundle_precision
from feather_edge.export.segment import write_segment
from feather_edge.export.writer import GraphWriter, Progress
from feather_edge.graphs import OPSETS, DecoderShape, decoder_spec
from feather_edge.manifest import (
    FORMAT_VERSION,
    BundleManifest,
    LocalAttention,
    Rotary,
    listed_graphs,
)
from feather_edge.pruning.schedule import PruningSchedule
from feather_edge.recipes.precision import beyond_opset_18, effective_precision, is_dynamic
from feather_edge.runtime.prompt import PROMPT_FILES, PromptFormatter
from feather_edge.samples import shipped_samples
from feather_edge.staging import staging_folder

if TYPE_CHECKING:
    from pathlib import Path

    from feather_edge.checkpoint.text_config import TextConfig
    from feather_edge.graphs import GraphSpec
    from feather_edge.recipes import ExportRecipe

NUM_CALIBRATION_SCENES = 4


def export(
    checkpoint: Path,
    output: Path,
    recipe: ExportRecipe,
    *,
    force: bool = False,
    on_progress: Progress | None = None,
    precision: BundlePrecision | None = None,
) -> Bundle:
    """Export a checkpoint folder into the bundle folder ``output``.

    Graphs are written from the checkpoint's tensors, one tensor in memory at a time; nothing is
    traced and neither torch nor transformers is needed. ``output`` appears when everything is
    written; an interrupted export leaves nothing under that name.

    Args:
        checkpoint: a Hugging Face folder.
        output: of the bundle.
        recipe: what to decide.
        force: replace a bundle that exists.
        on_progress: called while weights are written.
        precision: types of the graphs; None takes the recipe's, after a calibration where the
            recipe needs one.

    Raises:
        CheckpointError: if the checkpoint cannot be read or is not supported.
        RecipeError: if the recipe's stages do not fit the decoder's depth, or its precision a
            checkpoint that is quantised already.
        BundleError: if ``output`` exists (see ``force``) or cannot be written.
        BackendError: if a calibration cannot run.
    """
    # 1. Understand the checkpoint, and settle where the decoder is split.
    source = Checkpoint.open(checkpoint)
    model = read_family(source)
    schedule = read_schedule(recipe, model)
    opsets = read_opsets(recipe)
    types = precision or bundle_precision(recipe, source.packed)
    with staging_folder(output, force=force) as folder:
        if precision is None and types.needs_calibration:
            types = _calibrated(checkpoint, folder / "calibration", recipe, types)
        (folder / "onnx").mkdir()
        writer = GraphWriter(folder=folder, weights=model.weights, on_progress=on_progress)
        # 2. The vision encoder, projector included.
        vision = model.vision_spec(types.vision.dtype, opsets)
        specs = [writer.write(vision, model.write_vision_encoder, precision=types.vision)]
        # 3. The embeddings of the vocabulary; a tied head may refer to them.
        write_embeddings(folder, model, types.decoder)
        # 4. The decoder, one graph per segment.
        for index, segment in enumerate(schedule.segments):
            spec = decoder_spec(
                index,
                segment.layers,
                decoder_shape(model.text),
                is_last=segment == schedule.segments[-1],
                dtype=types.decoder.dtype,
                opsets=opsets,
                num_planes=model.num_planes,
            )
            compose = partial(write_segment, segment=segment, model=model, folder=folder)
            specs.append(writer.write(spec, compose, precision=types.decoder))
        # 5. Nothing of the decoder or the projector may be left over: it would be lost silently.
        model.weights.check_all_used("text.", "projector.")
        # 6. Tokenizer and chat template as they are, then the manifest.
        for name in PROMPT_FILES:
            if (source.path / name).is_file():
                shutil.copyfile(source.path / name, folder / name)
        manifest = describe(source, model, recipe, schedule, specs)
        prompt = PromptFormatter.open(
            source.path, image_token_id=model.image.token_id, form=model.prompt
        )
        manifest = msgspec.structs.replace(
            manifest, eos_token_ids=prompt.eos_token_ids, kept_higher=types.kept_higher
        )
        write_manifest(folder, manifest)
    return Bundle.open(output)


def read_opsets(recipe: ExportRecipe) -> tuple[int, ...]:
    """Return the opsets of a recipe's graphs, the preferred one first."""
    if recipe.opset == "both":
        return (23, 18)
    if recipe.opset not in (None, "all"):
        return (int(recipe.opset),)
    if is_dynamic(recipe):  # TensorRT cannot read it, and the other forms are for TensorRT
        return (23,)
    return tuple(o for o in OPSETS if o > 18) if beyond_opset_18(recipe) else OPSETS


def _calibrated(
    checkpoint: Path, folder: Path, recipe: ExportRecipe, types: BundlePrecision
) -> BundlePrecision:
    """Return ``types`` with how each layer rounds what enters it, as sample prompts tell."""
    probing = export(checkpoint, folder, recipe, precision=types.probing())
    found = types.calibrated(calibrate(probing, shipped_samples(NUM_CALIBRATION_SCENES)))
    shutil.rmtree(folder)
    return found


def read_schedule(recipe: ExportRecipe, model: FamilyModel) -> PruningSchedule:
    """Return where a recipe splits the decoder of ``model``.

    Raises:
        RecipeError: if its stages do not fit the decoder's depth.
    """
    num_layers, num_planes = model.text.num_layers, model.num_planes
    if recipe.prune == "none" and recipe.stages is None:
        return PruningSchedule(num_layers=num_layers)
    if recipe.stages is None:
        num_stages = max(2, len(recipe.keep_ratio))
        schedule = PruningSchedule.default(num_layers, num_stages=num_stages)
    else:
        schedule = PruningSchedule(num_layers=num_layers, stages=recipe.stages)
    if schedule.stages and schedule.stages[0] < num_planes:
        raise RecipeError(
            f"stages {schedule.stages}: this model adds visual features to its visual tokens "
            f"after each of the layers 0 to {num_planes - 1}, so they can be pruned before layer "
            f"{num_planes} at the earliest; name other stages"
        )
    return schedule


def decoder_shape(text: TextConfig) -> DecoderShape:
    """Return the sizes of a decoder that graphs and host share."""
    return DecoderShape(
        num_layers=text.num_layers,
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_attention_heads=text.num_attention_heads,
        num_key_value_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        vocab_size=text.vocab_size,
        local_layers=() if text.local is None else text.local.layers,
        has_local_rotary=text.local is not None and text.local.rope_theta is not None,
    )


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
