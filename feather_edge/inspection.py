"""What a bundle holds and what its prefill costs, without running anything of it."""

from __future__ import annotations

import collections
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from feather_edge.evaluate.cost import prefill_flops
from feather_edge.graphs import GraphForm, GraphSpec, TensorSpec
from feather_edge.pruning.flops import paper_layer_cost, schedule_cost
from feather_edge.pruning.forecast import forecast
from feather_edge.recipes import ExportRecipe
from feather_edge.runtime.receipt import Verdict, read_receipt
from feather_edge.runtime.session import default_pruning
from feather_edge.runtime.spans import typical_layout

if TYPE_CHECKING:
    import onnx_ir as ir

    from feather_edge.bundle import Bundle

DEFAULT_TEXT_TOKENS = 32
"""Text tokens of a short question in a chat template."""

FORMULA = "2 x sum over layers of 2 n d (q + k) + 2 n^2 q + 3 n d m, n = all tokens"
PAPER_FORMULA = "4 n d^2 + 2 n^2 d + 2 n d m, n = visual tokens (FEATHER, section 3.1, eq. 1)"


class FormReport(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a graph and the operators in it; no TensorRT reads int8-dynamic."""

    opset: int
    file: str
    tensorrt: str
    num_nodes: int
    operators: dict[str, int]


class GraphReport(msgspec.Struct, frozen=True, kw_only=True):
    """One graph: contract and size."""

    name: str
    forms: tuple[FormReport, ...]
    layers: tuple[int, int] | None
    weight_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class SegmentReport(msgspec.Struct, frozen=True, kw_only=True):
    """One segment in a prefill: the layers, and the tokens that enter them."""

    layers: tuple[int, int]
    num_visual_tokens: int
    num_visual_tokens_unpruned: int


class PrefillReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a prefill of one image costs, unpruned and with the bundle's own recipe.

    ``flops`` follow ``formula``; ``paper_reduction`` is the share that FEATHER's formula says is
    saved, for comparison with published figures only.
    """

    num_text_tokens: int
    num_visual_tokens: int
    segments: tuple[SegmentReport, ...]
    flops_unpruned: int
    flops: int
    flops_ratio: float
    formula: str
    paper_reduction: float
    paper_formula: str


class BundleReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything ``feather-edge inspect`` prints; ``verdicts`` are those of ``verify``."""

    path: str
    source: str
    model_type: str
    recipe: ExportRecipe
    graphs: tuple[GraphReport, ...]
    prefill: PrefillReport
    files: dict[str, int]
    verdicts: tuple[Verdict, ...]


def describe(bundle: Bundle, *, prompt_tokens: int | None = None) -> BundleReport:
    """Return what ``bundle`` holds and what a prefill with one image costs.

    Args:
        bundle: an opened bundle.
        prompt_tokens: text tokens beside the visual ones; None takes ``DEFAULT_TEXT_TOKENS``.

    Raises:
        BundleError: if the receipt of ``verify`` is damaged.
    """
    manifest, receipt = bundle.manifest, read_receipt(bundle)
    layers: list[tuple[int, int] | None] = [None]
    layers += [(s.first_layer, s.last_layer) for s in bundle.schedule.segments]
    return BundleReport(
        path=str(bundle.path),
        source=manifest.source,
        model_type=manifest.model_type,
        recipe=manifest.recipe,
        graphs=tuple(
            _graph_report(bundle, spec, span)
            for spec, span in zip(manifest.graphs, layers, strict=True)
        ),
        prefill=prefill_report(bundle, prompt_tokens or DEFAULT_TEXT_TOKENS),
        files={name: record.num_bytes for name, record in manifest.files.items()},
        verdicts=() if receipt is None else receipt.verdicts,
    )


def _graph_report(bundle: Bundle, spec: GraphSpec, layers: tuple[int, int] | None) -> GraphReport:
    import onnx_ir as ir

    models = {form: ir.load(bundle.path / form.file) for form in spec.forms}
    weights = [v.const_value for v in next(iter(models.values())).graph.initializers.values()]
    return GraphReport(
        name=spec.name,
        forms=tuple(_form_report(form, model) for form, model in models.items()),
        layers=layers,
        weight_bytes=sum(tensor.nbytes for tensor in weights if tensor is not None),
        inputs=spec.inputs,
        outputs=spec.outputs,
    )


def _form_report(form: GraphForm, model: ir.Model) -> FormReport:
    operators = collections.Counter(node.op_type for node in model.graph)
    return FormReport(
        opset=form.opset,
        file=form.file,
        tensorrt=form.tensorrt,
        num_nodes=operators.total(),
        operators=dict(sorted(operators.items())),
    )


def prefill_report(bundle: Bundle, num_text: int = DEFAULT_TEXT_TOKENS) -> PrefillReport:
    """Return what a prefill of one image beside ``num_text`` text tokens costs."""
    shape = bundle.manifest.decoder
    layout = typical_layout(bundle.manifest, num_text_tokens=num_text)
    total = layout.num_visual_tokens
    visual = forecast(default_pruning(bundle), bundle.schedule, layout)
    paper_cost = partial(
        paper_layer_cost, hidden_size=shape.hidden_size, ffn_size=shape.intermediate_size
    )
    unpruned = [total] * len(visual)
    before, after = (prefill_flops(bundle, counts, num_text) for counts in (unpruned, visual))
    paper_before, paper_after = (
        schedule_cost(bundle.schedule, counts, paper_cost) for counts in (unpruned, visual)
    )
    return PrefillReport(
        num_text_tokens=num_text,
        num_visual_tokens=total,
        segments=tuple(
            SegmentReport(
                layers=(segment.first_layer, segment.last_layer),
                num_visual_tokens=count,
                num_visual_tokens_unpruned=total,
            )
            for segment, count in zip(bundle.schedule.segments, visual, strict=True)
        ),
        flops_unpruned=before,
        flops=after,
        flops_ratio=after / before,
        formula=FORMULA,
        paper_reduction=1 - paper_after / paper_before,
        paper_formula=PAPER_FORMULA,
    )
