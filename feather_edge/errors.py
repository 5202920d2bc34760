"""Every error that feather-edge raises on purpose.

The tree::

    FeatherEdgeError
      CheckpointError             a Hugging Face folder that cannot be read
        UnsupportedModelError     ... or is read, but is of a kind that cannot be exported
      RecipeError                 a recipe, or an option that overrides one
      BundleError                 a bundle folder, its manifest or its graphs
      FitError                    a model that needs more memory or disk than there is
      BuildError                  an engine that cannot be built, or does not fit this device
      BackendError                a backend that is missing or fails while it runs
      RequestError                an image, a prompt or an option of one request
      ParityError                 two backends that should agree and do not
      BenchmarkError              a measured value that is above the limit it was given

A message names its subject, the value that was seen, what is allowed, and what to do. It is
one line: the command line prints it as it is and exits with status 1.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "BenchmarkError",
    "BuildError",
    "BundleError",
    "CheckpointError",
    "FeatherEdgeError",
    "FitError",
    "ParityError",
    "RecipeError",
    "RequestError",
    "UnsupportedModelError",
]


class FeatherEdgeError(Exception):
    """Base of all expected failures: catch this one to catch them all."""


class CheckpointError(FeatherEdgeError):
    """A checkpoint folder, or a file in it, is missing, damaged or inconsistent."""


class UnsupportedModelError(CheckpointError):
    """A checkpoint is sound, but its model family or a setting of it is not supported."""


class RecipeError(FeatherEdgeError):
    """A recipe is unknown, does not parse, or holds a value that is not allowed."""


class BundleError(FeatherEdgeError):
    """A bundle is missing, incomplete, damaged, or of a version that cannot be read."""


class FitError(FeatherEdgeError):
    """A model needs more memory or disk than a device has."""


class BuildError(FeatherEdgeError):
    """TensorRT refuses a graph or builds a wrong engine of it, or an engine is of elsewhere."""


class BackendError(FeatherEdgeError):
    """A backend is not installed, does not know a graph, or failed while running one."""


class RequestError(FeatherEdgeError):
    """An image, a prompt or an option of one request cannot be served."""


class ParityError(FeatherEdgeError):
    """Two backends, or a backend and the reference, differ by more than the tolerance."""


class BenchmarkError(FeatherEdgeError):
    """A time, a size or a ratio was measured and is above its limit, or memory grew."""
