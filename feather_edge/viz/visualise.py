"""One picture and one question, asked with several criteria: what each kept, and what it cost."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from feather_edge.errors import RequestError
from feather_edge.evaluate.answers import MIN_IOU, BoxReader
from feather_edge.evaluate.boxes import intersection_over_union
from feather_edge.images import load_image
from feather_edge.viz.heat_map import heat_map
from feather_edge.viz.kept_tokens import Panel, contact_sheet, kept_tokens
from feather_edge.viz.token_map import TokenMap, token_maps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from feather_edge.bundle import Bundle
    from feather_edge.evaluate.answers import BoxFormat
    from feather_edge.images import ViewGeometry
    from feather_edge.images.geometry import Box
    from feather_edge.images.pixels import ImageSource
    from feather_edge.pruning import Pruning
    from feather_edge.runtime.result import Result, StageResult
    from feather_edge.runtime.session import Session

__all__ = ["Visualisation", "draw_results", "kept_panels", "name_of", "visualise"]

UNPRUNED_COLOUR, ANSWER_COLOUR = "#ffffff", "#ff2fd0"
PANEL_SIZE = 330


@dataclass(frozen=True, kw_only=True)
class Visualisation:
    """A contact sheet, and the results that it shows; the first is unpruned."""

    sheet: Image.Image
    unpruned: Result
    results: tuple[Result, ...]
    boxes: tuple[Box | None, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the results as plain values, boxes in pixels of the picture on disk."""
        return {
            "unpruned": self.unpruned.to_dict(),
            "results": [
                {**result.to_dict(), "box": box, "is_changed": result.text != self.unpruned.text}
                for result, box in zip(self.results, self.boxes, strict=True)
            ],
        }


def visualise(
    session: Session,
    image: ImageSource,
    prompt: str,
    *,
    prunings: Sequence[Pruning] | None = None,
    box_format: BoxFormat | None = None,
    panel_size: int = PANEL_SIZE,
) -> Visualisation:
    """Ask once unpruned and once with each pruning, and draw what each kept.

    Args:
        session: an open session.
        image: one picture.
        prompt: what to ask.
        prunings: one row each; None takes the bundle's own.
        box_format: how the model writes boxes; None takes location tokens.
        panel_size: longer side of each panel in pixels.

    Raises:
        RequestError: if the bundle has no pruning stages, or the request cannot be met.
    """
    bundle = session.bundle
    if not bundle.schedule.stages:
        raise RequestError(
            f"{bundle.path} has no pruning stages, so there is nothing to show; make one with: "
            f"feather-edge export CHECKPOINT -o BUNDLE --stages LAYER[,LAYER...]"
        )
    picture = load_image(image)
    asked = (session.pruning,) if prunings is None else tuple(prunings)
    none = dataclasses.replace(session.pruning, criterion="none", pre_criterion="none")
    unpruned, *results = (
        session.generate(picture, prompt, pruning=pruning) for pruning in (none, *asked)
    )
    sheet = draw_results(
        bundle, picture, results, unpruned=unpruned, prompt=prompt, box_format=box_format,
        panel_size=panel_size,
    )  # fmt: skip
    reader = BoxReader.of(bundle, box_format)
    geometry = bundle.manifest.image.geometry(picture.size)
    said = [None if reader is None else reader.read(each.text, geometry) for each in results]
    return Visualisation(
        sheet=sheet,
        unpruned=unpruned,
        results=tuple(results),
        boxes=tuple(None if box is None else geometry.to_image(box) for box in said),
    )


def draw_results(
    bundle: Bundle,
    image: ImageSource,
    results: Sequence[Result],
    *,
    unpruned: Result | None = None,
    prompt: str = "",
    box_format: BoxFormat | None = None,
    panel_size: int = PANEL_SIZE,
) -> Image.Image:
    """Return a contact sheet of results that you have, one row each.

    The first panel of a row is the picture as the model saw it, with the answer; then come, for
    every stage, the tokens that were kept and the scores that ranked them. Where a picture is
    seen twice, as a thumbnail and in tiles, each view has panels of its own.

    Args:
        bundle: what the results came from.
        image: the one picture that was asked about.
        results: of the same picture and prompt.
        unpruned: what the model says with all tokens, to compare with.
        prompt: shown above the sheet.
        box_format: see ``visualise``.
        panel_size: longer side of each panel in pixels.

    Raises:
        RequestError: if a result is of several pictures, or of another bundle.
    """
    pen = _Pen.of(
        bundle, image, results, unpruned=unpruned, box_format=box_format, panel_size=panel_size
    )
    return contact_sheet([pen.row(result) for result in results], heading=prompt)


def kept_panels(
    bundle: Bundle,
    image: ImageSource,
    result: Result,
    *,
    unpruned: Result | None = None,
    panel_size: int = PANEL_SIZE,
) -> list[Panel]:
    """Return the answer, then what each stage kept; arguments and errors as of ``draw_results``.

    For whoever lays the pictures out: nothing is written into them.
    """
    return _Pen.of(
        bundle, image, [result], unpruned=unpruned, box_format=None, panel_size=panel_size
    ).row(result, with_scores=False)


def name_of(result: Result) -> str:
    """Return the criteria that pruned, in their order, or ``none``."""
    names = dict.fromkeys(stage.criterion for stage in result.stages)
    return " + ".join(name for name in names if name != "none") or "none"


@dataclass(frozen=True, kw_only=True)
class _Pen:
    """What all rows of a sheet share."""

    view: Image.Image
    geometry: ViewGeometry
    maps: tuple[TokenMap, ...]
    reader: BoxReader | None
    unpruned: Result | None

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        image: ImageSource,
        results: Sequence[Result],
        *,
        unpruned: Result | None,
        box_format: BoxFormat | None,
        panel_size: int,
    ) -> _Pen:
        """Return a pen for results of one picture; refuses others."""
        picture, images = load_image(image), bundle.manifest.image
        rasters = images.prepare([picture]).rasters
        geometry = images.geometry(picture.size)
        for result in results:
            if result.rasters != rasters:
                raise RequestError(
                    f"result is of {len(result.rasters)} rasters of visual tokens that are not "
                    f"those of this picture; only results of one picture can be drawn, over that "
                    f"picture"
                )
        return cls(
            view=images.view(picture),
            geometry=geometry,
            maps=token_maps(rasters, geometry, size=panel_size),
            reader=BoxReader.of(bundle, box_format),
            unpruned=unpruned,
        )

    def row(self, result: Result, *, with_scores: bool = True) -> list[Panel]:
        boxes = self._boxes(result)
        panels = [self._answer(result, boxes)]
        for stage in result.stages:
            for number, tokens in enumerate(self.maps):
                panels.append(self._kept(stage, number, boxes))
                panels += [self._scores(stage, tokens)] if with_scores else []
        return panels

    def _answer(self, result: Result, boxes: list[tuple[Box, str]]) -> Panel:
        every = range(result.num_visual_tokens)
        comparison, is_alarming = self._comparison(result)
        return Panel(
            picture=kept_tokens(self.view, every, tokens=self.maps[-1], boxes=boxes),
            title=f"{name_of(result)}: {self._words(result)}",
            subtitle=comparison,
            is_alarming=is_alarming,
        )

    def _kept(self, stage: StageResult, number: int, boxes: list[tuple[Box, str]]) -> Panel:
        tokens = self.maps[number]
        picture = kept_tokens(
            self.view, stage.kept_indices, tokens=tokens, boxes=boxes, is_lost_visible=True
        )
        num_kept, num_tokens = (
            np.isin(tokens.indices, stage.kept_indices).sum(),
            len(tokens.indices),
        )
        way, greyish = "kept", "was lost"
        if stage.is_merged:
            way, greyish = "merged into", "was averaged into its neighbour"
        title = f"{way} {num_kept} of {num_tokens} ({num_kept / num_tokens:.0%})"
        if len(self.maps) > 1:
            title += f" in view {number + 1} of {len(self.maps)}"
        return Panel(
            picture=picture,
            title=title,
            subtitle=f"before layer {stage.before_layer}; what is greyish {greyish}",
        )

    def _scores(self, stage: StageResult, tokens: TokenMap) -> Panel:
        return Panel(
            picture=heat_map(self.view, stage.scores, stage.kept_indices, tokens=tokens),
            title=f"scores before layer {stage.before_layer}",
            subtitle="bright ranks high; outlined was kept",
        )

    def _read(self, result: Result | None) -> Box | None:
        if result is None or self.reader is None:
            return None
        return self.reader.read(result.text, self.geometry)

    def _words(self, result: Result) -> str:
        box = self._read(result)
        if box is None:
            return result.text
        return "box " + ", ".join(f"{pixels:.0f}" for pixels in self.geometry.to_image(box))

    def _boxes(self, result: Result) -> list[tuple[Box, str]]:
        found = []
        if (box := self._read(self.unpruned)) is not None:
            # Both lines show where the boxes agree.
            gap = 3 * self.view.width / self.maps[0].pixels.shape[1]
            x0, y0, x1, y1 = box
            found.append(((x0 - gap, y0 - gap, x1 + gap, y1 + gap), UNPRUNED_COLOUR))
        if (box := self._read(result)) is not None:
            found.append((box, ANSWER_COLOUR))
        return found

    def _comparison(self, result: Result) -> tuple[str, bool]:
        """Return how the answer compares with the unpruned one, and whether that is bad news."""
        if self.unpruned is None:
            return "", False
        first, second = self._read(self.unpruned), self._read(result)
        if first is not None and second is not None:
            overlap = intersection_over_union(first, second)
            text = f"white: unpruned, pink: this, overlap {overlap:.2f}"
            return text, overlap < MIN_IOU
        if result.text != self.unpruned.text:
            return f"unpruned: {self.unpruned.text}", True
        return "as unpruned", False
