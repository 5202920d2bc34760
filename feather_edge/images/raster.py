"""One raster of visual tokens for each picture: LLaVA 1.5."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from feather_edge.checkpoint.preprocessing import PreprocessConfig
from feather_edge.images.pixels import model_view, preprocess, view_geometry
from feather_edge.images.prepared import PreparedImages, Raster, check_grid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from feather_edge.images.geometry import ViewGeometry


class RasterImages(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="layout",
    tag="raster",
):
    """Every picture is resized to one size and becomes one raster.

    Attributes:
        token_id: of the image placeholder.
        grid: (height, width) of the raster, in visual tokens.
        preprocess: from the picture to the pixels of the vision encoder.
        text_before: what the prompt has before a picture's visual tokens, and ``text_after``.
    """

    token_id: int
    grid: tuple[int, int]
    preprocess: PreprocessConfig
    text_before: str = ""
    text_after: str = ""

    def __post_init__(self) -> None:
        check_grid(self.grid)

    @property
    def typical_grids(self) -> tuple[tuple[int, int], ...]:
        """Rasters of a picture of usual size; here of every picture."""
        return (self.grid,)

    def vision_dims(self, max_visual_tokens: int) -> dict[str, tuple[int, int, int]]:
        """Return (smallest, usual, largest) of the vision graph's named dimensions."""
        height, width = self.grid
        return {"num_images": (1, 1, max_visual_tokens // (height * width))}

    def prepare(self, pictures: Sequence[Image.Image]) -> PreparedImages:
        """Return what the vision encoder and the prompt take of ``pictures``.

        Raises:
            RequestError: if a picture cannot be resized as the model wants it.
        """
        height, width = self.grid
        pieces = (self.text_before, height * width, self.text_after)
        return PreparedImages(
            calls=({"pixel_values": preprocess(pictures, self.preprocess)},) if pictures else (),
            prompt_pieces=(tuple(piece for piece in pieces if piece),) * len(pictures),
            rasters=tuple(
                whole_raster(picture.size, self.grid, self.preprocess, image=number)
                for number, picture in enumerate(pictures, 1)
            ),
        )

    def view(self, picture: Image.Image) -> Image.Image:
        """Return the picture as the model sees it."""
        return model_view(picture, self.preprocess)

    def geometry(self, size: tuple[int, int]) -> ViewGeometry:
        """Return where a picture of ``size`` (width, height) lies in its view."""
        return view_geometry(size, self.preprocess)


def whole_raster(
    size: tuple[int, int],
    grid: tuple[int, int],
    config: PreprocessConfig,
    *,
    image: int,
    end_gap: int = 0,
) -> Raster:
    """Return the raster of a picture that is preprocessed as a whole.

    Args:
        size: (width, height) of the picture.
        grid: (height, width) of the raster.
        config: from the picture to the pixels of the vision encoder.
        image: number of the picture, from 1.
        end_gap: see ``Raster``.
    """
    (height, width), geometry = grid, view_geometry(size, config)
    view_width, view_height = geometry.view_size
    # Patches are whole pixels: a vision encoder leaves the last few of 384 / 14 unseen.
    seen = (view_width // width * width, view_height // height * height)
    box = geometry.to_image((0, 0, *seen))
    return Raster(height=height, width=width, box=box, image=image, end_gap=end_gap)
