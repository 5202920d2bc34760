"""Stage 1, the main path: from a Hugging Face checkpoint to a bundle of ONNX graphs."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import msgspec

from feather_edge.bundle import Bundle, write_manifest
from feather_edge.checkpoint.reader import Checkpoint
from feather_edge.export.calibration import calibrate
from feather_edge.export.description import describe
from feather_edge.export.embeddings import write_embeddings
from feather_edge.export.families import read_family
from feather_edge.export.layout import graph_parts, read_opsets, read_schedule
from feather_edge.export.precision import BundlePrecision, bundle_precision
from feather_edge.export.writer import GraphWriter, Progress
from feather_edge.runtime.prompt import PROMPT_FILES, PromptFormatter
from feather_edge.samples import shipped_samples
from feather_edge.staging import staging_folder

if TYPE_CHECKING:
    from pathlib import Path

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
        # 2. The embeddings of the vocabulary; a tied head may refer to them.
        write_embeddings(folder, model, types.decoder)
        # 3. The vision encoder, projector included, then the decoder, one graph per segment.
        parts = graph_parts(model, schedule, opsets, types, folder=folder)
        specs = [writer.write(part) for part in parts]
        # 4. Nothing of the decoder or the projector may be left over: it would be lost silently.
        model.weights.check_all_used("text.", "projector.")
        # 5. Tokenizer and chat template as they are, then the manifest.
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


def _calibrated(
    checkpoint: Path, folder: Path, recipe: ExportRecipe, types: BundlePrecision
) -> BundlePrecision:
    """Return ``types`` with how each layer rounds what enters it, as sample prompts tell."""
    probing = export(checkpoint, folder, recipe, precision=types.probing())
    found = types.calibrated(calibrate(probing, shipped_samples(NUM_CALIBRATION_SCENES)))
    shutil.rmtree(folder)
    return found
