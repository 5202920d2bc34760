"""A bundle against the checkpoint that it was made from, step by step and without pruning."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import msgspec

from feather_edge.errors import BackendError
from feather_edge.evaluate.checkpoint_reference import LAYER, CheckpointReference
from feather_edge.evaluate.parity import compare, count_equal
from feather_edge.evaluate.parity_report import AnswerReport, TensorReport
from feather_edge.images import load_image
from feather_edge.pruning import Pruning
from feather_edge.runtime.prompt import PromptFormatter
from feather_edge.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from feather_edge.bundle import Bundle
    from feather_edge.evaluate.checkpoint_reference import CheckpointAnswer
    from feather_edge.evaluate.recording import GraphRun, Recorder
    from feather_edge.samples import Sample

__all__ = ["answers_of_checkpoint", "compare_with_checkpoint"]

UNPRUNED = Pruning(criterion="none")


def answers_of_checkpoint(
    bundle: Bundle,
    folder: Path,
    samples: Sequence[Sample],
    *,
    max_new_tokens: int,
    all_layers: bool,
) -> list[CheckpointAnswer]:
    """Answer with transformers; the checkpoint is closed again before this returns.

    Args:
        bundle: made from the checkpoint.
        folder: of the checkpoint.
        samples: what to ask.
        max_new_tokens: of each answer.
        all_layers: keep every layer's output; otherwise those where a segment ends.

    Raises:
        BackendError: if transformers is missing or fails.
    """
    every = range(bundle.schedule.num_layers)
    layers = every if all_layers else [s.last_layer for s in bundle.schedule.segments[:-1]]
    reference = CheckpointReference(folder, bundle.manifest)
    answers = [
        reference.answer(sample, layers=layers, max_new_tokens=max_new_tokens)
        for sample in samples
    ]
    del reference
    gc.collect()  # the model has cycles, and its memory is wanted next
    return answers


def compare_with_checkpoint(
    bundle: Bundle,
    recorder: Recorder,
    samples: Sequence[Sample],
    expected: Sequence[CheckpointAnswer],
    *,
    max_new_tokens: int,
) -> tuple[list[TensorReport], list[AnswerReport]]:
    """Answer with a backend and compare with what transformers computed.

    Args:
        bundle: whose graphs.
        recorder: a backend, and what its graphs are seen to compute.
        samples: what to ask.
        expected: the answers to them.
        max_new_tokens: of each answer.

    Raises:
        BackendError: if the backend cannot open a graph.
    """
    tensors: list[TensorReport] = []
    answers: list[AnswerReport] = []
    formatter = PromptFormatter.open(
        bundle.path, image_token_id=bundle.manifest.image.token_id, form=bundle.manifest.prompt
    )
    with Session(bundle, recorder) as session:
        for sample, reference in zip(samples, expected, strict=True):
            prompt_ids = _prompt_ids(bundle, formatter, sample)
            if difference := _first_difference(prompt_ids, reference.prompt_ids):
                answers.append(AnswerReport(sample=sample.name, failure=difference))
                continue
            recorder.begin(sample.name)
            num_before = len(recorder.runs)
            answers.append(_answer(session, sample, reference, max_new_tokens))
            is_image = prompt_ids == bundle.manifest.image.token_id
            for run in recorder.runs[num_before:]:
                tensors += _compare_run(run, reference.tensors, bundle, is_image)
    return tensors, answers


def _prompt_ids(bundle: Bundle, formatter: PromptFormatter, sample: Sample) -> NDArray[np.int64]:
    prepared = bundle.manifest.image.prepare([load_image(sample.image)])
    return formatter.encode(sample.prompt, images=prepared.prompt_pieces).prompt_ids


def _first_difference(ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> str | None:
    """Return where two prompts [S] part, in words."""
    same = count_equal(tuple(ours.tolist()), tuple(theirs.tolist()))
    if same == len(ours) == len(theirs):
        return None
    here, there = (int(ids[same]) if same < len(ids) else "none" for ids in (ours, theirs))
    return (
        f"prompt token {same} is {here}, in transformers {there}; tokenizer, template or number "
        f"of visual tokens differ, export the bundle again"
    )


def _answer(
    session: Session, sample: Sample, reference: CheckpointAnswer, max_new_tokens: int
) -> AnswerReport:
    try:
        found = session.generate(
            sample.image, sample.prompt, pruning=UNPRUNED, max_new_tokens=max_new_tokens
        )
    except BackendError as error:
        return AnswerReport(sample=sample.name, failure=str(error))
    return AnswerReport(
        sample=sample.name,
        reference=reference.text,
        answer=found.text,
        num_tokens=len(reference.token_ids),
        num_equal_tokens=count_equal(found.token_ids, reference.token_ids),
    )


def _compare_run(
    run: GraphRun,
    expected: dict[str, NDArray[np.float32]],
    bundle: Bundle,
    is_image: NDArray[np.bool_],
) -> Iterator[TensorReport]:
    """Compare what entered and left a segment in a prefill, in the order of computation."""
    if run.phase != "prefill":
        return
    index = int(run.spec.name.rpartition("_")[2])
    last = LAYER.format(bundle.schedule.segments[index].last_layer)
    pairs: list[tuple[str, str, NDArray[Any], NDArray[Any]]] = []
    if index == 0:
        embeds, entering = run.inputs["inputs_embeds"][0], expected["inputs_embeds"]
        vision = bundle.vision_encoder
        pairs.append((vision.name, vision.outputs[0].name, embeds[is_image], entering[is_image]))
        pairs.append((run.spec.name, "inputs_embeds", embeds[~is_image], entering[~is_image]))
        tables = {"cos", "sin"} & expected.keys() & run.inputs.keys()
        pairs += [
            (run.spec.name, name, run.inputs[name][0], expected[name]) for name in sorted(tables)
        ]
    for name, values in run.outputs.items():
        theirs = expected.get(last if name == "kept_hidden_states" else name)
        if theirs is None or (name.startswith("present.") and theirs.shape != values[0].shape):
            continue  # transformers forgets what no window sees any more
        pairs.append((run.spec.name, name, values[0].reshape(theirs.shape), theirs))
    for graph, name, found, reference in pairs:
        yield TensorReport(
            graph=graph,
            phase="images" if graph == bundle.vision_encoder.name else run.phase,
            tensor=name,
            sample=run.sample,
            **msgspec.structs.asdict(compare(found, reference)),
        )
