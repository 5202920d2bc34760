"""Compare a bundle along its chain: checkpoint, ONNX Runtime, OpenVINO, engines.

Of the checkpoint: ``feather_edge.evaluate.checkpoint_parity``. The rest graph by graph and answer
by answer.

The reference is ONNX Runtime on the CPU with the main form of each graph. It answers first, and
what enters and leaves every graph is kept. Then the backend under test runs each graph on exactly
the same inputs, so one graph's error does not hide in the next one's, and answers on its own. The
two are never open at once: on a Jetson both would share one memory.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from feather_edge.engine_record import check_graph, engine_targets, read_record
from feather_edge.errors import BackendError, RequestError
from feather_edge.evaluate.checkpoint_parity import (
    answers_of_checkpoint,
    compare_with_checkpoint,
)
from feather_edge.evaluate.grid_check import grid_failure
from feather_edge.evaluate.parity import count_equal, overlap
from feather_edge.evaluate.parity_report import (
    AnswerReport,
    ChainReport,
    VerifyReport,
    worst_samples,
)
from feather_edge.evaluate.recording import Recorder
from feather_edge.evaluate.replay import replay
from feather_edge.graphs import IN_PLACE_OPSET, VISION_ENCODER
from feather_edge.platform_facts import installed
from feather_edge.recipes.precision import is_dynamic, lowest_cosine
from feather_edge.runtime.backend_names import OPENVINO_BF16
from feather_edge.runtime.backends import create_backend
from feather_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from feather_edge.runtime.backends.openvino import OpenVinoBackend
from feather_edge.runtime.receipt import subject
from feather_edge.runtime.session import Session
from feather_edge.samples import shipped_samples

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from feather_edge.bundle import Bundle
    from feather_edge.graphs import GraphSpec
    from feather_edge.recipes import ExportRecipe
    from feather_edge.runtime.backends import Graph
    from feather_edge.runtime.result import Result
    from feather_edge.samples import Sample

__all__ = ["verify", "verify_chain", "verify_checkpoint"]

MAX_NEW_TOKENS = 16


def verify_chain(
    bundle: Bundle,
    *,
    checkpoint: Path | None = None,
    backend: str | None = None,
    target: str | None = None,
    cuda_graphs: bool = True,
    opset: int | None = None,
    samples: Sequence[Sample] = (),
    layers: bool = False,
    recipe: ExportRecipe | None = None,
) -> ChainReport:
    """Compare a bundle with its checkpoint, and what runs it with ONNX Runtime.

    Args:
        bundle: whose graphs.
        checkpoint: folder of the checkpoint; None leaves that comparison out.
        backend: None is all that there is here: the other forms of the graphs, OpenVINO, the
            engines of every target; and nothing but the checkpoint where layers are asked for.
        target: whose engines; None takes those of the only target, or of all without a backend.
        cuda_graphs: see ``verify``; ``opset`` and ``samples`` likewise.
        opset: of the form that is compared.
        samples: what to ask.
        layers: also compare what each layer gives.
        recipe: with thresholds and the grid to be found; None takes the bundle's.

    Raises:
        RequestError: if there is nothing to compare.
        BackendError: if a backend is missing or fails, or an engine is of other files.
    """
    rest: dict[str, Any] = {"samples": samples, "layers": layers, "recipe": recipe}
    # 1. Engines of other files need no device to be found.
    for name in engine_targets(bundle.path):
        for spec in (bundle.vision_encoder, *bundle.decoders):
            check_graph(read_record(bundle.path, name, spec.name), bundle, spec)
    # 2. The graphs and the checkpoint; 3. what runs the graphs, and the graphs.
    reports = []
    if checkpoint is not None:
        reports.append(verify_checkpoint(bundle, checkpoint, **rest))
    links: list[dict[str, Any]] = []
    skipped: tuple[str, ...] = ()
    if backend is not None:
        links.append(
            {"backend": backend, "target": target, "cuda_graphs": cuda_graphs, "opset": opset}
        )
    elif not (layers and checkpoint is not None):
        links, skipped = _present_links(bundle, target, layers=layers)
    reports += [verify(bundle, **link, **rest) for link in links]
    if not reports:
        raise RequestError(
            f"there is nothing to compare {bundle.path} with here: {'; '.join(skipped)}; give "
            f"--checkpoint, the folder that it was exported from"
        )
    return ChainReport(
        bundle=str(bundle.path),
        passed=all(report.failure is None for report in reports),
        reports=tuple(reports),
        skipped=skipped,
    )


def verify_checkpoint(
    bundle: Bundle,
    checkpoint: Path,
    *,
    samples: Sequence[Sample] = (),
    layers: bool = False,
    recipe: ExportRecipe | None = None,
) -> VerifyReport:
    """Compare a bundle's graphs in ONNX Runtime with its checkpoint in transformers, unpruned.

    Args:
        bundle: whose graphs.
        checkpoint: folder that it was exported from.
        samples: what to ask; none takes shipped scenes.
        layers: compare every layer's output; otherwise those where segments end.
        recipe: with the threshold; None takes the bundle's.

    Raises:
        BackendError: if transformers is missing or fails.
    """
    recipe = bundle.manifest.recipe if recipe is None else recipe
    samples = samples or shipped_samples()
    limit = _max_new_tokens(bundle)
    # 1. The checkpoint answers and is closed; 2. the graphs answer, and are watched.
    expected = answers_of_checkpoint(
        bundle, checkpoint, samples, max_new_tokens=limit, all_layers=layers
    )
    opset = bundle.vision_encoder.main_form.opset
    recorder = Recorder(_FormBackend(bundle, opset, layers=layers))
    tensors, answers = compare_with_checkpoint(
        bundle, recorder, samples, expected, max_new_tokens=limit
    )
    lowest = lowest_cosine(recipe, to_checkpoint=True)
    return VerifyReport(
        bundle=str(bundle.path),
        tested=f"onnxruntime with opset {opset}",
        reference="transformers, unpruned",
        lowest_cosine=lowest,
        lowest_overlap=recipe.lowest_overlap,
        subject=subject(bundle, backend=recorder.name, target=None),
        form=None,
        versions=installed(("transformers", "torch")),
        tensors=worst_samples(tensors),
        kept=(),
        answers=tuple(answers),
        first_bad=next((each for each in tensors if each.is_bad(lowest)), None),
    )


def verify(
    bundle: Bundle,
    *,
    backend: str,
    target: str | None = None,
    cuda_graphs: bool = True,
    opset: int | None = None,
    samples: Sequence[Sample] = (),
    layers: bool = False,
    recipe: ExportRecipe | None = None,
) -> VerifyReport:
    """Compare a backend with ONNX Runtime; judge with ``VerifyReport.check``.

    Args:
        bundle: whose graphs.
        backend: ``onnxruntime``, which then runs another form of the graphs, or another one.
        target: whose engines; None takes those of the only target.
        cuda_graphs: whether decode steps of engines may be captured.
        opset: of the form that ``onnxruntime`` runs; None takes the oldest.
        samples: what to ask; none takes shipped scenes.
        layers: also compare what each layer gives; ONNX forms only.
        recipe: with thresholds and the grid to be found; None takes the bundle's.

    Raises:
        RequestError: if there is nothing to compare, or layers of engines are asked for.
        BackendError: if a backend is missing or fails.
    """
    # 1. Who is compared, and on what?
    recipe = bundle.manifest.recipe if recipe is None else recipe
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
        name = backend if tested.target is None else f"{backend} for {tested.target}"
    else:
        tested = _FormBackend(bundle, opset, layers=layers)
        name = f"{backend} with opset {opset}"
    tensors, kept = replay(recorder.runs, bundle, tested)
    with Session(bundle, tested) as session:
        answers = tuple(
            _compare_answers(sample.name, _answer(session, sample), answer, recipe)
            for sample, answer in zip(samples, expected, strict=True)
        )
        notes = session.notes
    lowest = lowest_cosine(recipe, computed_in="bf16" if backend == OPENVINO_BF16 else None)
    return VerifyReport(
        bundle=str(bundle.path),
        tested=name,
        reference=f"onnxruntime with opset {reference}",
        lowest_cosine=lowest,
        lowest_overlap=recipe.lowest_overlap,
        subject=subject(bundle, backend=tested.name, target=tested.target),
        form=opset,
        versions=installed(("onnxruntime", "onnxruntime-gpu")),
        tensors=worst_samples(tensors),
        kept=tuple(kept),
        answers=answers,
        notes=notes,
        first_bad=next((each for each in tensors if each.is_bad(lowest)), None),
    )


def _present_links(
    bundle: Bundle, target: str | None, *, layers: bool
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Return what of a bundle can be compared with ONNX Runtime here, and what cannot, and why."""
    main = bundle.vision_encoder.main_form.opset
    others = sorted({form.opset for form in bundle.vision_encoder.forms} - {main})
    links: list[dict[str, Any]] = [{"backend": "onnxruntime", "opset": each} for each in others]
    skipped = [] if others else [f"the graphs are in opset {main} alone"]
    if layers:
        return links, (*skipped, "openvino and engines give no single layers")
    if main == IN_PLACE_OPSET:
        skipped.append(f"openvino reads no opset {main}")
    else:
        names, reason = _present_openvino(bundle)
        links += [{"backend": name} for name in names]
        skipped += [] if reason is None else [reason]
    for name in engine_targets(bundle.path) if target is None else (target,):
        kind = read_record(bundle.path, name, VISION_ENCODER).backend
        if importlib.util.find_spec(kind.replace("-", "_")) is None:
            skipped.append(f"engines for {name} need {kind}, which is not installed")
        else:
            links.append({"backend": kind, "target": name})
    return links, tuple(skipped)


def _present_openvino(bundle: Bundle) -> tuple[list[str], str | None]:
    """Return which backends of OpenVINO run a bundle here, plain first, and why no more."""
    found: list[str] = []
    for in_bf16 in (False, True):
        try:
            backend = OpenVinoBackend(in_bf16=in_bf16)
            for spec in (bundle.vision_encoder, *bundle.decoders):
                backend.precision_of(spec)
        except BackendError as error:
            return found, str(error)
        found.append(backend.name)
    return found, None


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
    if backend != "onnxruntime":
        if layers:
            raise RequestError(
                f"layers of {backend} cannot be compared: it gives what a graph gives, and no "
                f"graph of a bundle gives single layers; compare its outputs without --layers, or "
                f"the layers of another form with --backend onnxruntime --layers --opset 18"
            )
        if opset is not None:
            raise RequestError(f"opset is for onnxruntime; {backend} has no choice of forms")
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


def _max_new_tokens(bundle: Bundle) -> int:
    return min(MAX_NEW_TOKENS, bundle.manifest.max_new_tokens or MAX_NEW_TOKENS)


def _answer(
    session: Session, sample: Sample, *, recorder: Recorder | None = None
) -> Result | BackendError:
    """Return an answer, or why there is none: the graphs are compared in any case."""
    if recorder is not None:
        recorder.begin(sample.name)
    limit = _max_new_tokens(session.bundle)
    try:
        return session.generate(sample.image, sample.prompt, max_new_tokens=limit)
    except BackendError as error:
        return error.with_traceback(None)


def _compare_answers(
    sample: str,
    found: Result | BackendError,
    reference: Result | BackendError,
    recipe: ExportRecipe,
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
        grid_failure=grid_failure(found, recipe),
    )
