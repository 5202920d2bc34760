"""From pictures to what the vision encoder and the prompt take, one file per image layout.

A layout is how a family cuts pictures into visual tokens: one raster for each (``raster``), tiles
and a thumbnail, native resolution. Each is a struct of the manifest, so a bundle says all of it,
with the same three questions: ``prepare`` pictures, show the ``view`` the model has of one, and
say where a picture lies in that view (``geometry``).
"""

from __future__ import annotations

from feather_edge.images.geometry import ViewGeometry
from feather_edge.images.pixels import load_image
from feather_edge.images.prepared import PreparedImages, Raster
from feather_edge.images.raster import RasterImages

__all__ = [
    "ImageSpec",
    "PreparedImages",
    "Raster",
    "RasterImages",
    "ViewGeometry",
    "load_image",
]

ImageSpec = RasterImages
"""The layouts a manifest may name; several are a tagged union of structs."""
