"""Compare what runs a bundle's graphs with ONNX Runtime, graph by graph and answer by answer.

The reference is ONNX Runtime on the CPU with the main form of each graph. It answers first, and
what enters and leaves every graph is kept. Then the backend under test runs each graph on exactly
the same inputs, so one graph's error does not hide in the next one's, and answers on its own. The
two are never open at once: on a Jetson both would share one memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from feather_edge.errors import BackendError, RequestError
from feather_edge.evaluate.cache_forms import as_grown_outputs, as_taken_by
from feather_edge.evaluate.parity import compare, count_equal, is_top_k, overlap
from feather_edge.evaluate.parity_report import (
    AnswerReport,
    KeptReport,
    TensorReport,
    VerifyReport,
    worst_samples,
)
from feather_edge.evaluate.recording import GraphRun, Recorder
from feather_edge.platform_facts import installed
from feather_edge.recipes.precision import is_dynamic
from feather_edge.runtime.backend_names import ENGINE_BACKENDS
from feather_edge.runtime.backends import create_backend
from feather_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from feather_edge.runtime.receipt import subject
from feather_edge.runtime.session import Session
from feather_edge.samples import shipped_samples

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from feather_edge.bundle import Bundle
    from feather_edge.graphs import GraphSpec
    from feather_edge.runtime.backends import Backend, Graph
    from feather_edge.runtime.result import Result
    from feather_edge.samples import Sample

__all__ = ["verify"]

MAX_NEW_TOKENS = 16
LOWEST_COSINE, LOWEST_COSINE_FP32 = 0.99, 0.9999
"""ONNX Runtime rounds to 8 bits what enters layers of int8 and int4 weights, engines do not, so
with equal weights no more can be asked than with fp16."""
LOWEST_OVERLAP = 0.9
KEPT_ROWS = ("kept_hidden_states", "kept_cos", "kept_sin")


def verify(
    bundle: Bundle,
    *,
    backend: str,
    target: str | None = None,
    cuda_graphs: bool = True,
    opset: int | None = None,
    samples: Sequence[Sample] = (),
    layers: bool = False,
    lowest_cosine: float | None = None,
    lowest_overlap: float | None = None,
) -> VerifyReport:
    """Compare a backend with ONNX Runtime; judge with ``VerifyReport.check``.

    Args:
        bundle: whose graphs.
        backend: ``onnxruntime``, which then runs another form of the graphs, or one that runs
            engines.
        target: whose engines; None takes those of the only target.
        cuda_graphs: whether decode steps of engines may be captured.
        opset: of the form that ``onnxruntime`` runs; None takes the oldest.
        samples: what to ask; none takes shipped scenes.
        layers: also compare what each layer gives; ONNX forms only.
        lowest_cosine: None takes what the bundle's precision allows.
        lowest_overlap: share of the reference's kept rows that a graph must keep.

    Raises:
        RequestError: if there is nothing to compare, or layers of engines are asked for.
        BackendError: if a backend is missing or fails.
    """
    # 1. Who is compared, and on what?
    reference = bundle.vision_encoder.main_form.opset
    opset = _opset_under_test(bundle, backend, opset, layers=layers)
    samples = samples or shipped_samples()
    # 2. The reference answers; what enters and leaves every graph is kept.
    recorder = Recorder(_FormBackend(bundle, reference, layers=layers))
    with Session(bundle, recorder) as session:
        expected = [_answer(session, sample, recorder=recorder) for sample in samples]
    # 3. The backend under test runs every graph on the same inputs, 4. and answers on its own.
    if opset is None:
        tested = create_backend(backend, bundle, target=target, cuda_graphs=cuda_graphs)
        name = backend
    else:
        tested = _FormBackend(bundle, opset, layers=layers)
        name = f"{backend} with opset {opset}"
    tensors, kept = _replay(recorder.runs, bundle, tested)
    with Session(bundle, tested) as session:
        answers = tuple(
            _compare_answers(sample.name, _answer(session, sample), answer)
            for sample, answer in zip(samples, expected, strict=True)
        )
        notes = session.notes
    if lowest_cosine is None:
        is_fp32 = bundle.manifest.recipe.precision == "fp32"
        lowest_cosine = LOWEST_COSINE_FP32 if is_fp32 else LOWEST_COSINE
    return VerifyReport(
        bundle=str(bundle.path),
        tested=name,
        reference=f"onnxruntime with opset {reference}",
        lowest_cosine=lowest_cosine,
        lowest_overlap=LOWEST_OVERLAP if lowest_overlap is None else lowest_overlap,
        subject=subject(bundle, tested),
        form=opset,
        versions=installed(("onnxruntime", "onnxruntime-gpu")),
        tensors=worst_samples(tensors),
        kept=tuple(kept),
        answers=answers,
        notes=notes,
        first_bad=next((each for each in tensors if each.is_bad(lowest_cosine)), None),
    )


class _FormBackend(OnnxRuntimeBackend):
    """ONNX Runtime on the CPU, on the form of each graph that has a given opset."""

    def __init__(self, bundle: Bundle, opset: int, *, layers: bool) -> None:
        super().__init__(device="cpu")
        self._bundle = bundle
        self._opset = opset
        self._layers = layers

    def open(self, file: Path, spec: GraphSpec) -> Graph:  # noqa: ARG002 - another form's file
        (form,) = (form for form in spec.forms if form.opset == self._opset)
        path, spec = self._bundle.path / form.file, spec.of(form)
        if not self._layers:
            return super().open(path, spec)
        from feather_edge.export.layer_outputs import with_layer_outputs

        model, spec = with_layer_outputs(path, spec)
        return self.open_model(model, spec, weights=path.parent)


def _opset_under_test(
    bundle: Bundle, backend: str, opset: int | None, *, layers: bool
) -> int | None:
    """Return the opset of the form to compare with the main one, None for engines."""
    if backend in ENGINE_BACKENDS:
        if layers:
            raise RequestError(
                f"layers of {backend} cannot be compared: an engine gives what its graph gives, "
                f"and no graph of a bundle gives single layers; compare its outputs without "
                f"--layers, or the layers of the graph it was built from with --backend "
                f"onnxruntime --layers --opset 18"
            )
        if opset is not None:
            raise RequestError(f"opset is for onnxruntime; an engine of {backend} has its own")
        return None
    reference = bundle.vision_encoder.main_form.opset
    others = sorted({form.opset for form in bundle.vision_encoder.forms} - {reference})
    if not others:
        remedy = "export it again without --opset"
        if is_dynamic(bundle.manifest.recipe):
            remedy = "int8-dynamic has no other form; compare precisions with --precision-report"
        raise RequestError(
            f"{bundle.path} has its graphs in opset {reference} alone, so there is nothing to "
            f"compare; {remedy}"
        )
    if opset is not None and opset not in others:
        raise RequestError(
            f"opset {opset} cannot be compared with the reference, opset {reference}; choose "
            f"{', '.join(map(str, others))}"
        )
    return others[0] if opset is None else opset


def _answer(
    session: Session, sample: Sample, *, recorder: Recorder | None = None
) -> Result | BackendError:
    """Return an answer, or why there is none: the graphs are compared in any case."""
    if recorder is not None:
        recorder.begin(sample.name)
    limit = min(MAX_NEW_TOKENS, session.bundle.manifest.max_new_tokens or MAX_NEW_TOKENS)
    try:
        return session.generate(sample.image, sample.prompt, max_new_tokens=limit)
    except BackendError as error:
        return error.with_traceback(None)


def _replay(
    runs: Sequence[GraphRun], bundle: Bundle, backend: Backend
) -> tuple[list[TensorReport], list[KeptReport]]:
    """Run every graph again on the inputs of the reference; graph by graph, runs in order."""
    graphs = {
        spec.name: backend.open(bundle.path / spec.file, spec)
        for spec in (bundle.vision_encoder, *bundle.decoders)
    }
    tensors: list[TensorReport] = []
    kept: list[KeptReport] = []
    for run in runs:
        graph = graphs[run.spec.name]
        taken, num_total = as_taken_by(graph, run.inputs)
        outputs = graph.run({name: backend.upload(values) for name, values in taken.items()})
        found = as_grown_outputs(
            graph,
            {name: backend.download(tensor) for name, tensor in outputs.items()},
            num_total=num_total,
        )
        if "kept_indices" in found:
            report = _compare_kept(run, found)
            kept += [report] if run.phase == "prefill" else []
        tensors += _compare_tensors(run, found)
    return tensors, kept


def _compare_kept(run: GraphRun, found: dict[str, NDArray[Any]]) -> KeptReport:
    kept = found["kept_indices"][0]
    return KeptReport(
        graph=run.spec.name,
        sample=run.sample,
        overlap=overlap(kept, run.outputs["kept_indices"][0]),
        is_top_k=is_top_k(kept, found["scores"][0], run.inputs["prune_priority"][0]),
    )


def _compare_tensors(run: GraphRun, found: dict[str, NDArray[Any]]) -> Iterator[TensorReport]:
    """Compare all outputs of a run; of rows that were kept, those that both kept."""
    for name, reference in run.outputs.items():
        values = found[name]
        if name == "kept_indices":
            continue
        if name in KEPT_ROWS:
            _, here, there = np.intersect1d(
                found["kept_indices"][0], run.outputs["kept_indices"][0], return_indices=True
            )
            values, reference = values[:, here], reference[:, there]  # noqa: PLW2901
        yield TensorReport(
            graph=run.spec.name,
            phase=run.phase,
            tensor=name,
            sample=run.sample,
            **msgspec.structs.asdict(compare(values, reference)),
        )


def _compare_answers(
    sample: str, found: Result | BackendError, reference: Result | BackendError
) -> AnswerReport:
    failures = [str(each) for each in (found, reference) if isinstance(each, BackendError)]
    if isinstance(found, BackendError) or isinstance(reference, BackendError):
        return AnswerReport(sample=sample, failure=failures[0])
    return AnswerReport(
        sample=sample,
        reference=reference.text,
        answer=found.text,
        num_tokens=len(reference.token_ids),
        num_equal_tokens=count_equal(found.token_ids, reference.token_ids),
        overlaps=tuple(
            overlap(stage.kept_indices, expected.kept_indices)
            for stage, expected in zip(found.stages, reference.stages, strict=True)
        ),
    )
