"""Stage 1, the main path: from a Hugging Face checkpoint to a bundle of ONNX graphs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec

from feather_edge import __version__
from feather_edge.bundle import Bundle, staging_folder, write_manifest
from feather_edge.checkpoint.reader import Checkpoint
from feather_edge.export.blocks.decoder import attention_score, decoder_layer, language_head
from feather_edge.export.builder import OPSET, GraphBuilder, save
from feather_edge.export.embeddings import head_in_embeddings, write_embeddings
from feather_edge.export.families import FamilyModel, read_family
from feather_edge.export.prune_op import top_k_uniform_gather
from feather_edge.graphs import DecoderShape, cache_names, decoder_spec
from feather_edge.manifest import FORMAT_VERSION, BundleManifest, Rotary
from feather_edge.pruning.schedule import PruningSchedule, Segment

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from feather_edge.checkpoint.config import TextConfig
    from feather_edge.graphs import DType, GraphSpec
    from feather_edge.recipes import ExportRecipe

COPIED_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files of the checkpoint that the runtime reads as they are."""

DTYPES: dict[str, DType] = {"fp32": "float32", "fp16": "float16"}


class Progress(Protocol):
    """Called while weights are written."""

    def __call__(self, label: str, num_done_bytes: int, num_total_bytes: int) -> None:
        """Report that ``num_done_bytes`` of ``num_total_bytes`` of graph ``label`` are written."""
        ...


def export(
    checkpoint: Path,
    output: Path,
    recipe: ExportRecipe,
    *,
    force: bool = False,
    on_progress: Progress | None = None,
) -> Bundle:
    """Export a checkpoint folder into the bundle folder ``output``.

    Graphs are written from the checkpoint's tensors, one tensor in memory at a time; nothing is
    traced and neither torch nor transformers is needed. ``output`` appears when everything is
    written; an interrupted export leaves nothing under that name.

    Raises:
        CheckpointError: if the checkpoint cannot be read or is not supported.
        RecipeError: if the recipe's stages do not fit the decoder's depth.
        BundleError: if ``output`` exists (see ``force``) or cannot be written.
    """
    # 1. Understand the checkpoint, and settle where the decoder is split.
    source = Checkpoint.open(checkpoint)
    model = read_family(source)
    schedule = _schedule(recipe, model.text)
    dtype = DTYPES[recipe.precision]
    with staging_folder(output, force=force) as folder:
        # 2. The vision encoder, projector included.
        vision = GraphBuilder(model.vision_spec(dtype), model.weights, dtype=dtype)
        writer = _GraphWriter(folder=folder, on_progress=on_progress)
        (folder / "onnx").mkdir()
        writer.write(vision.spec, model.write_vision_encoder(vision))
        # 3. The embeddings of the vocabulary; a tied head refers to them.
        write_embeddings(folder, model, dtype=dtype)
        # 4. The decoder, one graph per segment.
        specs = [vision.spec]
        for index, segment in enumerate(schedule.segments):
            g = _segment_builder(index, segment, schedule, model, dtype)
            writer.write(g.spec, _write_segment(g, segment, model, folder))
            specs.append(g.spec)
        # 5. Nothing of the decoder or the projector may be left over: it would be lost silently.
        for part in ("text.", "projector.", "lm_head."):
            model.weights.check_all_used(part)
        # 6. Tokenizer and chat template as they are, then the manifest.
        for name in COPIED_FILES:
            if (source.path / name).is_file():
                shutil.copyfile(source.path / name, folder / name)
        write_manifest(folder, _manifest(source, model, recipe, schedule, specs))
    return Bundle.open(output)


def _schedule(recipe: ExportRecipe, text: TextConfig) -> PruningSchedule:
    if recipe.prune == "none" and recipe.stages is None:
        return PruningSchedule(num_layers=text.num_layers)
    if recipe.stages is None:
        return PruningSchedule.default(text.num_layers)
    return PruningSchedule(num_layers=text.num_layers, stages=recipe.stages)


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
    )


def _segment_builder(
    index: int, segment: Segment, schedule: PruningSchedule, model: FamilyModel, dtype: DType
) -> GraphBuilder:
    is_last = segment == schedule.segments[-1]
    spec = decoder_spec(
        index, segment.layers, decoder_shape(model.text), is_last=is_last, dtype=dtype
    )
    return GraphBuilder(spec, model.weights, dtype=dtype)


def _write_segment(
    g: GraphBuilder, segment: Segment, model: FamilyModel, folder: Path
) -> ir.Model:
    """Write the layers of a segment, then its end: the prune op, or norm and head."""
    hidden = g.inputs["inputs_embeds" if segment.first_layer == 0 else "hidden_states"]
    caches: list[ir.Value] = []
    for layer in segment.layers:
        output = decoder_layer(g, hidden, layer, model.text)
        hidden = output.hidden
        caches += [output.present_key, output.present_value]
    outputs = dict(zip(cache_names("present", segment.layers), caches, strict=True))
    if segment.last_layer == model.text.num_layers - 1:
        head = head_in_embeddings(g, folder, model)
        outputs["logits"] = language_head(g, hidden, head, model.text)
    else:
        scores = attention_score(g, output.raw_query, output.raw_key, model.text)
        outputs |= top_k_uniform_gather(g, scores, hidden)
    return g.model(outputs)


@dataclass(kw_only=True)
class _GraphWriter:
    folder: Path
    on_progress: Progress | None

    def write(self, spec: GraphSpec, model: ir.Model) -> None:
        total = sum(
            value.const_value.nbytes
            for value in model.graph.initializers.values()
            if value.const_value is not None
        )
        done = 0

        def on_tensor(num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            if self.on_progress is not None:
                self.on_progress(spec.name, done, total)

        save(model, self.folder / spec.file, on_tensor=on_tensor)


def _manifest(
    source: Checkpoint,
    model: FamilyModel,
    recipe: ExportRecipe,
    schedule: PruningSchedule,
    specs: list[GraphSpec],
) -> BundleManifest:
    text = model.text
    eos = source.generation_config.get("eos_token_id", source.config.get("eos_token_id"))
    max_new_tokens = source.generation_config.get("max_new_tokens")
    return BundleManifest(
        format_version=FORMAT_VERSION,
        feather_edge_version=__version__,
        source=source.path.name,
        model_type=source.config["model_type"],
        recipe=msgspec.structs.replace(recipe, stages=schedule.stages),
        opset=OPSET,
        decoder=decoder_shape(text),
        rotary=_rotary(text),
        max_positions=text.max_positions,
        eos_token_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        max_new_tokens=max_new_tokens,
        image=model.image,
        graphs=tuple(specs),
        files={},
    )


def _rotary(text: TextConfig) -> Rotary:
    scaling = text.rope_scaling
    if scaling is None:
        return Rotary(head_dim=text.head_dim, theta=text.rope_theta)
    return Rotary(
        head_dim=text.head_dim,
        theta=text.rope_theta,
        scaling=scaling.type,
        factor=scaling.factor,
        low_freq_factor=scaling.low_freq_factor or 1.0,
        high_freq_factor=scaling.high_freq_factor or 1.0,
        original_max_positions=scaling.original_max_positions or 0,
    )
