"""From pictures to what the vision encoder and the prompt take, one file per image layout.

A layout is how a family cuts pictures into visual tokens: one raster for each (``raster``), a
thumbnail and tiles that are stitched (``anyres``), tiles and a thumbnail (``tiled``), tiles in
rows and columns and the whole picture (``split``), one raster of native resolution (``native``).
Each is a struct of the manifest, so a bundle says all of it, with the same three questions:
``prepare`` pictures, show the ``view`` the model has of one, and say where a picture lies in that
view (``geometry``).
"""

from __future__ import annotations

from typing import TypeAlias

from feather_edge.images.anyres import AnyresImages
from feather_edge.images.geometry import ViewGeometry
from feather_edge.images.native import NativeImages
from feather_edge.images.pixels import load_image, load_images
from feather_edge.images.prepared import PreparedImages, Raster
from feather_edge.images.raster import RasterImages
from feather_edge.images.split import SplitImages
from feather_edge.images.tiled import TiledImages

__all__ = [
    "AnyresImages",
    "ImageSpec",
    "NativeImages",
    "PreparedImages",
    "Raster",
    "RasterImages",
    "SplitImages",
    "TiledImages",
    "ViewGeometry",
    "load_image",
    "load_images",
]

ImageSpec: TypeAlias = RasterImages | AnyresImages | NativeImages | SplitImages | TiledImages
"""The layouts a manifest may name, told apart by the tag ``layout``."""
