"""One decoder segment: its layers, then its end, which is the prune op or the language head."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from feather_edge.export.blocks.decoder import attention_score, decoder_layer, language_head
from feather_edge.export.embeddings import project_to_vocabulary
from feather_edge.export.prune_op import top_k_uniform_gather
from feather_edge.graphs import DEEPSTACK_EMBEDS, cache_names

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from feather_edge.export.builder import GraphBuilder
    from feather_edge.export.families import FamilyModel
    from feather_edge.pruning.schedule import Segment


def write_segment(
    g: GraphBuilder, segment: Segment, model: FamilyModel, folder: Path | None
) -> ir.Model:
    """Write the nodes of ``segment`` and close its graph.

    Args:
        g: a builder with the segment's contract.
        segment: which layers.
        model: the checkpoint.
        folder: the bundle that is being written; a tied head refers to its embeddings. None in
            a plan, of which nothing is written.
    """
    hidden = g.inputs["inputs_embeds" if segment.first_layer == 0 else "hidden_states"]
    caches: list[ir.Value] = []
    for layer in segment.layers:
        output = decoder_layer(g, hidden, layer, model.text)
        hidden = output.hidden
        if layer < model.num_planes:
            plane = g.inputs[DEEPSTACK_EMBEDS.format(layer)]
            hidden = g.op("Add", hidden, plane, name=f"layers.{layer}/deepstack")
        caches += [output.present_key, output.present_value]
    outputs = dict(zip(cache_names("present", segment.layers), caches, strict=True))
    if segment.last_layer == model.text.num_layers - 1:
        head = partial(project_to_vocabulary, g, folder=folder, model=model)
        outputs["logits"] = language_head(g, hidden, head, model.text)
    else:
        # The score is the last layer's own: its normalised input, its q and k before rotary.
        scores = attention_score(g, output.raw_query, output.raw_key, model.text)
        outputs |= top_k_uniform_gather(g, scores, hidden)
    return g.model(outputs)
