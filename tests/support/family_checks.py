"""What every model family is tested for, whatever its pictures and its decoder.

A family's test module makes its checkpoints and calls these; tolerances stand here once.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
from support.reference import ReferencePruning

from feather_edge import Region, Session
from feather_edge.pruning import Pruning
from feather_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from feather_edge.runtime.sampling import Sampler

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from PIL import Image
    from support.reference import ReferenceVlm

    from feather_edge.bundle import Bundle
    from feather_edge.images import ImageSpec

__all__ = [
    "STAGES",
    "check_pictures",
    "check_prompt",
    "check_pruned",
    "check_regions",
    "check_unpruned",
    "check_visual_tokens",
    "open_session",
]

STAGES = (2, 4)
LOGITS_TOLERANCE = 1e-4
FEATURES_TOLERANCE = 1e-5
SCORE_TOLERANCE = 1e-5
TIE_GAP = 1e-6
PROMPT = "where is the red circle ?"


def open_session(bundle: Bundle) -> Session:
    """A session in ONNX Runtime on one CPU thread; torch gets one thread as well."""
    torch.set_num_threads(1)
    return Session.open(bundle, backend=OnnxRuntimeBackend(device="cpu", num_threads=1))


def check_pictures(
    image: ImageSpec, pictures: Mapping[str, Image.Image], expected: Mapping[str, Any]
) -> None:
    """Preprocessing equals the processor's arrays: name of the picture -> pixel values."""
    for kind, picture in pictures.items():
        pixels = image.prepare([picture]).inputs["pixel_values"]
        assert pixels.dtype == np.float32
        np.testing.assert_array_equal(pixels, expected[kind], err_msg=kind)


def check_prompt(session: Session, reference: ReferenceVlm, images: Sequence[Any]) -> None:
    """Prompt ids equal the processor's, and every placeholder has a visual token."""
    inputs = reference.prepare(list(images), PROMPT)
    result = session.generate(
        list(images), PROMPT, pruning=Pruning(criterion="none"), max_new_tokens=1
    )
    prepared = session.bundle.manifest.image.prepare(_loaded(images))
    encoded = session._prompt.encode(PROMPT, images=prepared.prompt_pieces)

    assert encoded.prompt_ids.tolist() == inputs["input_ids"][0].tolist()
    assert [(r.height, r.width) for r in prepared.rasters] == reference.grids(inputs)
    assert result.num_visual_tokens == int(encoded.is_image.sum())


def check_visual_tokens(session: Session, reference: ReferenceVlm, images: Sequence[Any]) -> None:
    """The vision encoder gives what transformers gives."""
    expected = reference.features(reference.prepare(list(images), PROMPT))
    prepared = session.bundle.manifest.image.prepare(_loaded(images))

    features = session._encode_images(prepared)

    np.testing.assert_allclose(features, expected.numpy(), atol=FEATURES_TOLERANCE)


@torch.no_grad()
def check_unpruned(session: Session, reference: ReferenceVlm, images: Sequence[Any]) -> None:
    """Logits of the prefill and eight greedy tokens are those of transformers."""
    with _recorded_logits() as logits:
        result = session.generate(
            list(images), PROMPT, pruning=Pruning(criterion="none"), max_new_tokens=8
        )
    inputs = reference.prepare(list(images), PROMPT)
    inputs.pop("labels", None)
    generated = reference.model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=8,
        output_logits=True,
        return_dict_in_generate=True,
    )
    expected = generated.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    if result.finish_reason == "stop":
        expected.pop()  # the end token

    for ours, theirs in zip(logits, generated.logits, strict=True):
        np.testing.assert_allclose(ours, theirs[0].numpy(), atol=LOGITS_TOLERANCE, rtol=0)
    assert list(result.token_ids) == expected


def check_pruned(
    session: Session,
    reference: ReferenceVlm,
    images: Sequence[Any],
    method: str,
    selection: str,
    *,
    keep_ratio: tuple[float, ...] = (0.4,),
) -> None:
    """Scores, kept sets and eight greedy tokens are those of the reference.

    A kept set may differ where the reference's scores at the cut are closer than ``TIE_GAP``.
    """
    stages = session.bundle.schedule.stages
    pruning = ReferencePruning(
        method=method, selection=selection, stages=stages, keep_ratio=keep_ratio
    )
    inputs = reference.prepare(list(images), PROMPT)
    expected = reference.run(inputs, pruning, max_new_tokens=8)
    request = Pruning(criterion=method, selection=selection, keep_ratio=keep_ratio)
    result = session.generate(list(images), PROMPT, pruning=request, max_new_tokens=8)

    assert len(result.stages) == len(expected.stages)
    for ours, theirs in zip(result.stages, expected.stages, strict=True):
        np.testing.assert_allclose(
            ours.scores[list(theirs.scores)], list(theirs.scores.values()), atol=SCORE_TOLERANCE
        )
        if ours.kept_indices.tolist() != theirs.kept:
            assert theirs.cut_gap < TIE_GAP
            return
    assert result.stages[-1].num_kept < result.num_visual_tokens / 2
    assert list(result.token_ids) == expected.token_ids


def check_regions(session: Session, image: Image.Image) -> None:
    """A protected box keeps its tokens in every raster that shows it, a forbidden one none.

    Which tokens show a box is counted here from the rasters' boxes, token by token.
    """
    width, height = image.size
    protected = Region(box=(width * 0.3, height * 0.3, width * 0.3 + 1, height * 0.3 + 1))
    forbidden = Region(box=(width * 0.5, height * 0.5, width, height), rule="forbid")

    result = session.generate(
        image,
        PROMPT,
        pruning=Pruning(keep_ratio=(0.5, 0.25)),
        regions=[protected, forbidden],
        max_new_tokens=1,
    )

    inside, outside = (_tokens(result.rasters, each.box) for each in (protected, forbidden))
    assert inside
    assert outside
    for stage in result.stages:
        kept = set(stage.kept_indices.tolist())
        assert inside <= kept
        assert not (outside - inside) & kept


def _tokens(rasters: Sequence[Any], box: tuple[float, float, float, float]) -> set[int]:
    found, first = set(), 0
    for raster in rasters:
        x0, y0, x1, y1 = raster.box
        wide, high = (x1 - x0) / raster.width, (y1 - y0) / raster.height
        for token in range(raster.height * raster.width):
            row, column = divmod(token, raster.width)
            left, top = x0 + column * wide, y0 + row * high
            overlap = (
                min(box[2], left + wide) - max(box[0], left),
                min(box[3], top + high) - max(box[1], top),
            )
            if min(overlap) > 1e-6 * max(wide, high):
                found.add(first + token)
        first += raster.height * raster.width
    return found


@contextmanager
def _recorded_logits() -> Iterator[list[np.ndarray]]:
    seen: list[np.ndarray] = []

    class Recording(Sampler):
        def __call__(self, logits: np.ndarray) -> int:
            seen.append(logits.copy())
            return super().__call__(logits)

    with mock.patch("feather_edge.runtime.session.Sampler", Recording):
        yield seen


def _loaded(images: Sequence[Any]) -> list[Image.Image]:
    from feather_edge.images import load_image

    return [load_image(image) for image in images]
