"""Precision in a recipe: which choices go together, and what those left out stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from feather_edge.errors import RecipeError
from feather_edge.recipes.checks import check_choice

if TYPE_CHECKING:
    from feather_edge.recipes.export import ExportRecipe

FloatPrecision = Literal["fp32", "fp16", "bf16"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "int4", "int8-dynamic"]
HeadPrecision = Literal["float", "int8", "int4", "int8-dynamic"]
EmbeddingPrecision = Literal["float", "fp16", "bf16", "int8"]
Clipping = Literal["none", "mse"]
OpsetName = Literal["18", "23", "24", "both", "all"]

IN_OPSET_18 = ("fp32", "fp16")
"""Blocks came with opset 21, and TensorRT 10.3 has bfloat16 in few operators of ours."""
MIN_BLOCK_SIZE = 16

LOWEST_COSINE: dict[Precision, float] = {
    "fp32": 0.9999, "fp16": 0.99, "bf16": 0.99, "int8": 0.99, "int8-dynamic": 0.99, "int4": 0.99,
}  # fmt: skip
"""Of two backends with equal weights. ONNX Runtime rounds to 8 bits what enters layers of int8 and
int4 weights, engines do not, so no more can be asked than with fp16."""
LOWEST_CHECKPOINT_COSINE: dict[Precision, float] = {
    **LOWEST_COSINE, "int8-dynamic": 0.95, "int4": 0.9,
}  # fmt: skip
"""Of a bundle and its checkpoint in float32: what rounding weights costs is in it."""


def lowest_cosine(
    recipe: ExportRecipe, *, to_checkpoint: bool = False, computed_in: Precision | None = None
) -> float:
    """Return what `verify` asks of every output: the recipe's own, or by the coarsest precision.

    Args:
        recipe: of the bundle.
        to_checkpoint: whether it is compared with its checkpoint, not with another backend.
        computed_in: what a backend computes float32 graphs in, where it is not that.
    """
    if recipe.lowest_cosine is not None:
        return recipe.lowest_cosine
    table = LOWEST_CHECKPOINT_COSINE if to_checkpoint else LOWEST_COSINE
    head = head_precision(recipe)
    parts = [recipe.precision, vision_precision(recipe)]
    parts += [] if head == "float" else [head]
    parts += [] if computed_in is None else [computed_in]
    return min(table[part] for part in parts)


def vision_precision(recipe: ExportRecipe) -> Precision:
    """Return the vision encoder's precision."""
    if recipe.vision_precision is not None:
        return recipe.vision_precision
    return "int8" if recipe.precision == "int4" else recipe.precision


def head_precision(recipe: ExportRecipe) -> HeadPrecision:
    """Return the precision of the language head."""
    if recipe.head_precision is not None:
        return recipe.head_precision
    return "float" if recipe.precision in get_args(FloatPrecision) else "int8"


def activations(recipe: ExportRecipe, precision: Precision) -> FloatPrecision:
    """Return the type of activations of graphs of ``precision``."""
    if precision in ("fp32", "fp16", "bf16"):
        return precision
    return recipe.activations or "fp32"


def is_dynamic(recipe: ExportRecipe) -> bool:
    """Return whether any part is ``int8-dynamic``, which TensorRT cannot read."""
    return "int8-dynamic" in (recipe.precision, vision_precision(recipe), head_precision(recipe))


def check_precision(recipe: ExportRecipe) -> None:
    """Refuse values that are not allowed, alone or together.

    Raises:
        RecipeError: naming the value and what is allowed.
    """
    check_choice("precision", recipe.precision, get_args(Precision))
    if recipe.vision_precision is not None:
        check_choice("vision_precision", recipe.vision_precision, get_args(Precision))
    if recipe.head_precision is not None:
        check_choice("head_precision", recipe.head_precision, get_args(HeadPrecision))
    if recipe.embedding_precision is not None:
        check_choice(
            "embedding_precision", recipe.embedding_precision, get_args(EmbeddingPrecision)
        )
    if recipe.activations is not None:
        check_choice("activations", recipe.activations, get_args(FloatPrecision))
    check_choice("clipping", recipe.clipping, get_args(Clipping))
    if recipe.opset is not None:
        check_choice("opset", recipe.opset, get_args(OpsetName))
    size = recipe.block_size
    if size < MIN_BLOCK_SIZE or size & (size - 1):
        raise RecipeError(
            f"block_size is {size}; it must be a power of two from {MIN_BLOCK_SIZE} on, such as "
            f"32 or 128"
        )
    _check_activations(recipe)
    beyond = beyond_opset_18(recipe)
    if recipe.opset in ("18", "both", "all") and beyond:
        raise RecipeError(
            f"opset {recipe.opset} cannot hold {beyond}, since 18 holds {', '.join(IN_OPSET_18)} "
            f"alone; leave opset out, or take 23"
        )
    if recipe.opset == "24" and is_dynamic(recipe):
        raise RecipeError("opset 24 is for TensorRT, which has no int8-dynamic; take 23")


def effective_precision(recipe: ExportRecipe) -> dict[str, Any]:
    """Return the fields of ``recipe`` that have to do with precision, none of them left out."""
    fields: dict[str, Any] = {
        "vision_precision": vision_precision(recipe),
        "head_precision": head_precision(recipe),
    }
    if _has_integers(recipe):
        return {**fields, "activations": recipe.activations or "fp32"}
    return fields


def _check_activations(recipe: ExportRecipe) -> None:
    vision = vision_precision(recipe)
    for name, value, floats in (
        ("precision", recipe.precision, activations(recipe, recipe.precision)),
        ("vision_precision", vision, activations(recipe, vision)),
        ("head_precision", head_precision(recipe), activations(recipe, recipe.precision)),
    ):
        if value == "int8-dynamic" and floats != "fp32":
            raise RecipeError(
                f"{name} is int8-dynamic, which quantises fp32 activations alone, and they are "
                f"{floats}; take int8 instead"
            )
    if recipe.activations is not None and not _has_integers(recipe):
        raise RecipeError(
            f"activations is {recipe.activations}, but precision {recipe.precision} says it "
            f"already; it goes with int8, int4 and int8-dynamic"
        )


def _has_integers(recipe: ExportRecipe) -> bool:
    floats = get_args(FloatPrecision)
    return recipe.precision not in floats or vision_precision(recipe) not in floats


def beyond_opset_18(recipe: ExportRecipe) -> str:
    """Return the first choice of a recipe that opset 18 cannot hold; empty where there is none."""
    chosen = {
        "precision": recipe.precision,
        "vision_precision": vision_precision(recipe),
        "head_precision": head_precision(recipe),
    }
    allowed = (*IN_OPSET_18, "float")
    return next((f"{name} {value}" for name, value in chosen.items() if value not in allowed), "")
