"""What every model family must pass, written once.

A family's test module makes a checkpoint of each of its shapes, opens it with ``open_pair`` and
calls these. What differs between families stands in its subclass of ``ReferenceVlm``.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from support.edits import edited_checkpoint
from support.images import random_images
from support.reference import ReferencePruning
from transformers.image_utils import load_image as reference_load_image

from feather_edge import Region
from feather_edge.export.pipeline import export
from feather_edge.images import load_image
from feather_edge.pruning import Pruning
from feather_edge.runtime.prompt import PromptFormatter
from feather_edge.runtime.regions import overlapping_tokens
from feather_edge.runtime.spans import place_spans

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from support.bundles import Exported
    from support.pairs import Pair

    from feather_edge.images import PreparedImages, Raster
    from feather_edge.pruning import VisualSpan
    from feather_edge.runtime.prompt import EncodedPrompt

__all__ = [
    "KINDS",
    "ODD_PICTURES",
    "check_pictures",
    "check_pruned",
    "check_reference",
    "check_regions",
    "check_renamed",
    "check_unpruned",
    "elongated",
    "odd_picture",
]

LOGITS_TOLERANCE = 1e-4
FEATURES_TOLERANCE = 3e-5
NUM_GREEDY_TOKENS = 8
BLUR, SLIVER = 0.6, 0.4  # of a token
PROMPT = "where is the red circle ?"

KINDS = [
    ("feather", "fill"), ("feather", "union"), ("fastv", "fill"), ("ivc", "fill"),
    ("ivc-value", "fill"),
]  # fmt: skip
"""Criteria and selections that go through every path of a stage: grid, union, rotary, places."""

ODD_PICTURES = (
    "pixel",
    "panorama",
    "column",
    "grey",
    "deep-grey",
    "transparent",
    "palette",
    "rotated",
    "large",
)


def odd_picture(name: str) -> bytes:
    """Return an image file of a kind that preprocessing stumbles over."""
    rng = np.random.default_rng(ODD_PICTURES.index(name))
    height, width = {
        "pixel": (1, 1), "panorama": (3, 211), "column": (190, 2), "large": (301, 257),
    }.get(name, (37, 52))  # fmt: skip
    colours = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    picture = Image.fromarray(colours[..., :3])
    options: dict[str, object] = {}
    if name == "grey":
        picture = Image.fromarray(colours[..., 0])
    elif name == "deep-grey":
        picture = Image.fromarray(rng.integers(0, 2**16, (height, width), dtype=np.uint16))
    elif name == "transparent":
        picture = Image.fromarray(colours)
    elif name == "palette":
        picture, options = picture.quantize(16), {"transparency": 3}
    elif name == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6  # stored lying on its side
        options = {"exif": exif}
    file = BytesIO()
    picture.save(file, "PNG", **options)
    return file.getvalue()


def elongated(width: int, height: int) -> np.ndarray:
    """Return a picture of random pixels, uint8 [height, width, 3]."""
    rng = np.random.default_rng(width)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def check_pictures(pair: Pair, files: Sequence[bytes], prompt: str = PROMPT) -> None:
    """The encoder's inputs and the prompt's ids are those of the processor, to the last bit."""
    loaded = [reference_load_image(Image.open(BytesIO(file))) for file in files]
    expected = pair.reference.prepare(loaded, prompt)

    prepared, encoded = _prepare(pair, files, prompt)

    assert encoded.prompt_ids.tolist() == expected["input_ids"][0].tolist()
    calls = pair.reference.encoder_calls(expected) if files else []
    for ours, theirs in zip(prepared.calls, calls, strict=True):
        for name, array in theirs.items():
            assert ours[name].dtype == array.dtype
            np.testing.assert_array_equal(ours[name], array, err_msg=name)
    grids = [(raster.height, raster.width) for raster in prepared.rasters]
    assert grids == (pair.reference.grids(expected) if files else [])
    # Rasters and what is text among the placeholders: each visual token stands where it should.
    rows = pair.reference.embed(expected)
    positions = [span.positions for span in place_spans(prepared.rasters, encoded.is_image)]
    assert np.array_equal(
        np.concatenate([np.empty(0, np.int64), *positions]), np.flatnonzero(rows.visual >= 0)
    )


def check_unpruned(pair: Pair, images: Sequence[np.ndarray], prompt: str = PROMPT) -> None:
    """The spliced prompt, the logits and the greedy tokens are those of transformers."""
    inputs = pair.reference.prepare(list(images), prompt)
    pair.trace.clear()

    result = pair.session.generate(
        images, prompt, pruning=Pruning(criterion="none"), max_new_tokens=NUM_GREEDY_TOKENS
    )

    embeds = pair.reference.embed(inputs).hidden[0].numpy()
    np.testing.assert_allclose(pair.trace.embeds[0], embeds, atol=FEATURES_TOLERANCE)
    generated = pair.reference.model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=NUM_GREEDY_TOKENS,
        output_logits=True,
        return_dict_in_generate=True,
    )
    expected = generated.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    if result.finish_reason == "stop":
        expected.pop()  # the end token
    assert list(result.token_ids) == expected
    for ours, theirs in zip(pair.trace.logits, generated.logits, strict=True):
        np.testing.assert_allclose(ours, theirs[0].numpy(), atol=LOGITS_TOLERANCE)


def check_reference(pair: Pair, images: Sequence[np.ndarray], prompt: str = PROMPT) -> None:
    """The reference without pruning is transformers: what it says of pruning can be trusted."""
    inputs = pair.reference.prepare(list(images), prompt)

    run = pair.reference.run(inputs, None, max_new_tokens=NUM_GREEDY_TOKENS)

    with torch.no_grad():
        logits = pair.reference.model(**inputs).logits[0, -1].numpy()
    np.testing.assert_allclose(run.logits[0], logits, atol=LOGITS_TOLERANCE)


def check_pruned(
    pair: Pair, images: Sequence[np.ndarray], method: str, selection: str, prompt: str = PROMPT
) -> None:
    """Kept sets, scores and greedy tokens are those of the reference."""
    pruning = ReferencePruning(
        method=method,
        selection=selection,
        stages=pair.session.bundle.schedule.stages,
    )
    assert not pair.run(images, prompt, pruning, max_new_tokens=NUM_GREEDY_TOKENS)


def check_regions(
    pair: Pair, *, size: tuple[int, int] | None = None, seed: int = 0, prompt: str = PROMPT
) -> None:
    """Regions name the tokens, in every tile, whose pixels change when the region is painted.

    What changes in the pixels that the vision encoder gets says, without any geometry, which
    tokens see a box. A resize blurs the box's border, so a little more may change than is named,
    and a sliver that is named may not.
    Where padding lies depends on the (width, height) of ``size``.
    """
    image = random_images(3, seed=seed)[-1].repeat(2, axis=0).repeat(2, axis=1)
    image = image if size is None else elongated(*size)
    height, width = image.shape[:2]
    box = (width // 3, height // 4, width // 3 + width // 5, height // 4 + height // 5)
    painted = image.copy()
    painted[box[1] : box[3], box[0] : box[2]] = 255 - painted[box[1] : box[3], box[0] : box[2]]
    region = Region(box=box)

    before, encoded = _prepare(pair, [image], prompt)
    after, _ = _prepare(pair, [painted], prompt)

    calls = zip(before.calls, after.calls, strict=True)
    changed = np.concatenate([pair.reference.changed_features(*call) for call in calls])[:, None]
    by_place = (
        changed if before.arrange is None else before.arrange(changed.astype(np.float32)) > 0
    )
    seeing = np.zeros(len(encoded.prompt_ids), np.bool_)
    seeing[encoded.is_image] = by_place[:, 0]
    spans = place_spans(before.rasters, encoded.is_image)
    for span, raster in zip(spans, before.rasters, strict=True):
        _check_covers(span, raster, region, seeing)
    forbidden = Region(box=(0, height * 0.8, width, height), rule="forbid")
    result = pair.session.generate(
        [image],
        prompt,
        pruning=Pruning(criterion="fastv", keep_ratio=(0.4,)),
        regions=[region, forbidden],
        max_new_tokens=2,
    )
    inside, outside = (_tokens(rule, before.rasters) for rule in (region, forbidden))
    assert inside
    assert outside
    for stage in result.stages:
        kept = set(stage.kept_indices.tolist())
        assert inside <= kept
        assert not (outside - inside) & kept


def check_renamed(exported: Exported, folder: Path, names: Sequence[tuple[str, str]]) -> None:
    """Tensors under other prefixes, each (as saved, other), make the same bundle."""

    def rename(tensors: dict[str, np.ndarray]) -> None:
        for name in list(tensors):
            saved, other = next(pair for pair in names if name.startswith(pair[0]))
            tensors[other + name.removeprefix(saved)] = tensors.pop(name)

    checkpoint = edited_checkpoint(exported.checkpoint, folder / "checkpoint", tensors=rename)

    bundle = export(checkpoint, folder / "bundle", exported.bundle.manifest.recipe)

    assert bundle.manifest.files == exported.bundle.manifest.files


def _check_covers(span: VisualSpan, raster: Raster, region: Region, seeing: np.ndarray) -> None:
    changed = set(np.flatnonzero(seeing[span.positions]).tolist())
    inner, outer = (
        set(overlapping_tokens(resized, raster).tolist()) if resized is not None else set()
        for resized in (_grown(region, raster, -SLIVER), _grown(region, raster, BLUR))
    )
    assert changed <= outer, f"{raster}: changed, but not named"
    assert inner <= changed, f"{raster}: named, but not changed"


def _grown(region: Region, raster: Raster, share: float) -> Region | None:
    """Return a region whose sides are ``share`` of a token farther out; None if none is left."""
    x0, y0, x1, y1 = raster.box
    right, down = share * (x1 - x0) / raster.width, share * (y1 - y0) / raster.height
    left, top, end, bottom = region.box
    box = (left - right, top - down, end + right, bottom + down)
    return Region(box=box) if box[0] < box[2] and box[1] < box[3] else None


def _tokens(region: Region, rasters: Sequence[Raster]) -> set[int]:
    """Return indices into the prompt's visual tokens that a region speaks of."""
    named: set[int] = set()
    first = 0
    for raster in rasters:
        named |= {first + int(index) for index in overlapping_tokens(region, raster)}
        first += raster.height * raster.width
    return named


def _prepare(
    pair: Pair, images: Sequence[bytes | np.ndarray], prompt: str
) -> tuple[PreparedImages, EncodedPrompt]:
    manifest = pair.session.bundle.manifest
    prepared = manifest.image.prepare([load_image(image) for image in images])
    formatter = PromptFormatter.open(
        pair.session.bundle.path, image_token_id=manifest.image.token_id, form=manifest.prompt
    )
    return prepared, formatter.encode(prompt, images=prepared.prompt_pieces)
