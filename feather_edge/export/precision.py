"""What a recipe's precision means for the graphs: types of activations, forms of weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from feather_edge.errors import RecipeError
from feather_edge.graphs import VISION_ENCODER
from feather_edge.recipes.precision import activations, head_precision, vision_precision

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from feather_edge.checkpoint.packed import PackedFormat
    from feather_edge.graphs import DType
    from feather_edge.recipes import Clipping, EmbeddingPrecision, ExportRecipe, Precision

DTYPES: dict[str, DType] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}

WeightForm = Literal["float", "int8", "int4", "int8-dynamic", "probe"]
"""``probe`` is of calibration: float, and what enters is an output too."""
FORMS: dict[Precision, WeightForm] = {
    "fp32": "float",
    "fp16": "float",
    "bf16": "float",
    "int8": "int8",
    "int4": "int4",
    "int8-dynamic": "int8-dynamic",
}
"""What the weights of dense layers are in graphs of a precision."""


HIGHEST_ERROR = 0.03
"""Relative error of a layer's rows, root mean square, from which on it is kept higher.

Where nothing but this limit decided, perplexity of SmolLM2-135M grew by 0.6 % with it, 2.8 % with
0.05, 4.7 % with 0.1 and 48 % without a calibration.
"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rounding:
    """How a dense layer of ``int8-dynamic`` rounds what enters it, and how far it is then off.

    Attributes:
        error: relative error of the rows that leave, root mean square.
        smoothing: [in], what the inputs are divided and the weights multiplied by before both are
            rounded; None leaves them as they are.
        is_per_row: whether every row is rounded by its own largest value.
    """

    error: float
    smoothing: NDArray[np.float32] | None = None
    is_per_row: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPrecision:
    """Types of one graph.

    Attributes:
        dtype: of activations, and of all weights but those of dense layers.
        linears: form of the weights of dense layers.
        head: form of the language head's weights.
        embeddings: of the vocabulary, see ``ExportRecipe.embedding_precision``.
        block_size: inputs of a dense layer that share a scale.
        clipping: how the scales of blocks are chosen.
        roundings: of dense layers, by their path, as a calibration found them for
            ``int8-dynamic``. Layers that it would hurt have ``int8`` blocks instead, which leave
            what enters them as it is.
    """

    dtype: DType
    linears: WeightForm = "float"
    head: WeightForm = "float"
    embeddings: EmbeddingPrecision | None = None
    block_size: int = 32
    clipping: Clipping = "none"
    roundings: Mapping[str, Rounding] = field(default_factory=dict)

    @property
    def is_dynamic(self) -> bool:
        """Whether something is rounded at run time, as CPUs like it and TensorRT does not."""
        return bool({"int8-dynamic", "probe"} & {self.linears, self.head})

    def form_of(self, path: str) -> WeightForm:
        """Return the form of the dense layer at ``path``."""
        found = self.roundings.get(path)
        return "int8" if found is not None and found.error > HIGHEST_ERROR else self.linears


@dataclass(frozen=True, slots=True, kw_only=True)
class BundlePrecision:
    """Types of all graphs of a bundle.

    Attributes:
        vision: of the vision encoder.
        decoder: of the segments.
    """

    vision: GraphPrecision
    decoder: GraphPrecision

    @property
    def kept_higher(self) -> dict[str, float]:
        """What a calibration found too far off for ``int8-dynamic``; see ``BundleManifest``."""
        return {
            f"{part}/{path}": rounding.error
            for part, types in ((VISION_ENCODER, self.vision), ("decoder", self.decoder))
            for path, rounding in types.roundings.items()
            if rounding.error > HIGHEST_ERROR
        }

    @property
    def needs_calibration(self) -> bool:
        """Whether there are layers of which only sample prompts tell how to store them."""
        return "int8-dynamic" in (self.vision.linears, self.decoder.linears)

    def probing(self) -> BundlePrecision:
        """Return the types of a calibration bundle: float, layers in question as ``probe``."""
        vision, decoder = (
            replace(types, linears="probe" if types.linears == "int8-dynamic" else "float")
            for types in (self.vision, self.decoder)
        )
        return BundlePrecision(
            vision=vision, decoder=replace(decoder, head="float", embeddings=None)
        )

    def calibrated(self, roundings: Mapping[str, Rounding]) -> BundlePrecision:
        """Return these types with what a calibration found, by ``decoder/<path>`` and so on."""
        vision, decoder = (
            {
                path.removeprefix(f"{part}/"): rounding
                for path, rounding in roundings.items()
                if path.startswith(f"{part}/")
            }
            for part in (VISION_ENCODER, "decoder")
        )
        return BundlePrecision(
            vision=replace(self.vision, roundings=vision),
            decoder=replace(self.decoder, roundings=decoder),
        )


def bundle_precision(recipe: ExportRecipe, packed: PackedFormat | None) -> BundlePrecision:
    """Return the types that a recipe asks for.

    Args:
        recipe: of the export.
        packed: how the checkpoint itself stores quantised weights, if it does. Layers that it
            has left alone stay as they are.

    Raises:
        RecipeError: if the recipe asks of a quantised checkpoint for anything but what it holds.
    """
    if packed is not None and recipe.precision != "int4":
        raise RecipeError(
            f"precision is {recipe.precision}, but the checkpoint holds int4 weights "
            f"({packed.method}), which are taken as they are; export it with --precision int4"
        )
    vision = vision_precision(recipe)
    return BundlePrecision(
        vision=GraphPrecision(
            dtype=DTYPES[activations(recipe, vision)],
            linears=FORMS[vision],
            block_size=recipe.block_size,
            clipping=recipe.clipping,
        ),
        decoder=GraphPrecision(
            dtype=DTYPES[activations(recipe, recipe.precision)],
            linears=FORMS[recipe.precision] if packed is None else "float",
            head=head_precision(recipe),
            embeddings=recipe.embedding_precision,
            block_size=recipe.block_size,
            clipping=recipe.clipping,
        ),
    )
