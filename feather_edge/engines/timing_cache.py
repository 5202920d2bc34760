"""Where the timing caches are: what TensorRT measured is worth keeping, but only where it holds.

A timing is of one device, one TensorRT version and, since tactics differ, one precision; each
combination has a file of its own. Deleting one costs time and nothing else.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from feather_edge.engines.jobs import Environment
    from feather_edge.recipes import EngineRecipe

__all__ = ["timing_cache_file"]


def timing_cache_file(
    recipe: EngineRecipe, environment: Environment, *, precision: str
) -> Path | None:
    """Return the timing cache of a build, or None for TensorRT-RTX, which times nothing here.

    Args:
        recipe: its ``timing_cache`` is the folder; a path that ends in ``.cache`` is the file.
        environment: device and version.
        precision: of the bundle.
    """
    if recipe.backend == "tensorrt-rtx":
        return None
    if recipe.timing_cache is not None and recipe.timing_cache.endswith(".cache"):
        return Path(recipe.timing_cache).expanduser()
    device = environment.device
    capability = device.compute_capability if device else "-".join(recipe.compute_capabilities)
    parts = (
        device.name if device else "unknown",
        f"sm{capability.replace('.', '')}",
        f"tensorrt-{environment.tensorrt_version}",
        precision,
    )
    name = re.sub(r"[^a-z0-9.]+", "-", "_".join(parts).lower().replace("_", " ").strip())
    return _folder(recipe) / f"{name}.cache"


def _folder(recipe: EngineRecipe) -> Path:
    if recipe.timing_cache is not None:
        return Path(recipe.timing_cache).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("feather-edge")) / "timing"
