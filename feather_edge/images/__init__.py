"""From pictures to what the vision encoder and the prompt take, one file per image layout.

A layout is how a family cuts pictures into visual tokens: one raster for each (``raster``), tiles
of one size and the whole picture (``split``), native resolution. Each is a struct of the manifest,
so a bundle says all of it, with the same three questions: ``prepare`` pictures, show the ``view``
the model has of one, and say where a picture lies in that view (``geometry``).
"""

from __future__ import annotations

from typing import TypeAlias

from feather_edge.images.geometry import ViewGeometry
from feather_edge.images.pixels import load_image
from feather_edge.images.prepared import PreparedImages, Raster
from feather_edge.images.raster import RasterImages
from feather_edge.images.split import SplitImages

__all__ = [
    "ImageSpec",
    "PreparedImages",
    "Raster",
    "RasterImages",
    "SplitImages",
    "ViewGeometry",
    "load_image",
]

ImageSpec: TypeAlias = RasterImages | SplitImages
"""The layouts a manifest may name, told apart by their ``layout``."""
