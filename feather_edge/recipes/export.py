"""Recipe of an export: what is fixed in graphs, and what requests get by default."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

from feather_edge.errors import RecipeError
from feather_edge.recipes.checks import check_choice, check_keep_ratio
from feather_edge.recipes.precision import (
    Clipping,
    EmbeddingPrecision,
    FloatPrecision,
    HeadPrecision,
    OpsetName,
    Precision,
    check_precision,
)
from feather_edge.recipes.reading import load

if TYPE_CHECKING:
    from pathlib import Path

CriterionName = Literal[
    "feather", "fastv", "fastv-full", "pyramiddrop", "pyramiddrop-reset", "ivc", "ivc-value",
    "uniform", "random", "none",
]  # fmt: skip
PreCriterionName = Literal["uniform", "random", "divprune", "dart", "cdpruner", "pooling", "none"]
SelectionName = Literal["fill", "union"]


class ExportRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an export decides.

    Fixed in the graphs are `stages`, `opset`, and what has to do with precision; the rest are
    defaults of requests.

    Attributes:
        stages: visual tokens are pruned before these decoder layers, ascending, counted from 0.
            Empty is an unsplit decoder. None stands for a quarter and a half of the depth, with
            three keep ratios three quarters too, or for an unsplit decoder where `prune` is
            ``none``.
        prune: criterion of a request that names none.
        keep_ratio: one value is the method's own parameter, from which it derives every stage;
            several are the share of the original visual tokens left after each stage.
        stride: step of FEATHER's uniform grid; 0 for no grid.
        selection: ``fill`` keeps a constant count, ``union`` the paper's data-dependent one.
        precision: of the decoder. fp32, fp16 and bf16 are of weights and activations; ``int8``
            and ``int4`` are of the weights of dense layers, in blocks with a scale each;
            ``int8-dynamic`` quantises what enters a dense layer too, as a whole and at run time.
        vision_precision: of the vision encoder; None is as `precision`, but ``int8`` where that
            is ``int4``.
        head_precision: of the language head's weights; ``float`` is the type of the decoder's
            activations. None is ``float`` with such a decoder and ``int8`` with any other.
        embedding_precision: of the embeddings, which the host looks up; ``float`` is the type of
            the decoder's activations, ``int8`` has a scale for each token. None is ``float`` or
            the checkpoint's own type where that is narrower and no tied float head shares them.
        activations: type of everything but weights where those are integers; None is fp32.
        block_size: consecutive inputs of a dense layer that share a scale; of layers that it does
            not divide, the largest power of two that does.
        clipping: ``mse`` chooses the scales of blocks by least squared error, at the price of the
            largest weights; ``none`` by the largest weight.
        opset: of the graphs; all forms share one file of weights. None is every form that can
            hold the precision.
        seed: of the criterion ``random``.
        pre_prune: criterion before the decoder, on vision features, of a request that names none.
        pre_keep_ratio: share of the visual tokens that it lets into the decoder.
        lowest_cosine: what `verify` asks of every output of every graph; None is by precision,
            see ``lowest_cosine`` in ``feather_edge.recipes.precision``.
        lowest_overlap: share of the reference's kept rows that it asks for.
    """

    stages: tuple[int, ...] | None = None
    prune: CriterionName = "feather"
    keep_ratio: tuple[float, ...] = (0.3,)
    stride: int = 3
    selection: SelectionName = "fill"
    precision: Precision = "fp32"
    vision_precision: Precision | None = None
    head_precision: HeadPrecision | None = None
    embedding_precision: EmbeddingPrecision | None = None
    activations: FloatPrecision | None = None
    block_size: int = 32
    clipping: Clipping = "none"
    opset: OpsetName | None = None
    seed: int = 0
    pre_prune: PreCriterionName = "none"
    pre_keep_ratio: float = 0.5
    lowest_cosine: float | None = None
    lowest_overlap: float = 0.9

    def __post_init__(self) -> None:
        check_choice("prune", self.prune, get_args(CriterionName))
        check_choice("pre_prune", self.pre_prune, get_args(PreCriterionName))
        check_choice("selection", self.selection, get_args(SelectionName))
        check_precision(self)
        _check_stages(self.stages)
        check_keep_ratio("keep_ratio", self.keep_ratio, self.stages)
        if self.prune == "feather" and len(self.keep_ratio) == 1 and len(self.stages or ()) > 2:
            raise RecipeError(
                f"keep_ratio has one value for {len(self.stages or ())} stages; feather with one "
                "value has two stages in the paper, so give one for each stage"
            )
        check_keep_ratio("pre_keep_ratio", (self.pre_keep_ratio,), None)
        for name, least in (("lowest_cosine", -1), ("lowest_overlap", 0)):
            value = getattr(self, name)
            if value is not None and not least <= value <= 1:
                raise RecipeError(f"{name} is {value}; it must be {least} to 1")
        for name in ("stride", "seed"):
            if getattr(self, name) < 0:
                raise RecipeError(f"{name} is {getattr(self, name)}; it must be 0 or more")


def default_recipe_name(checkpoint: str) -> str:
    """Return the recipe of an export that names none: the shipped model ``demo`` has its own."""
    return "scene-vlm" if checkpoint == "demo" else "feather"


def load_recipe(name_or_file: str | Path) -> ExportRecipe:
    """Read an export recipe.

    Args:
        name_or_file: name of a shipped recipe, or path of a TOML file. Whatever ends in
            ``.toml`` or holds a path separator is a path.

    Raises:
        RecipeError: if there is no such recipe, or it does not parse, or a key or a value in it
            is not allowed.
    """
    return load(name_or_file, ExportRecipe, stage="export")


def override(
    recipe: ExportRecipe,
    *,
    stages: tuple[int, ...] | None = None,
    prune: CriterionName | None = None,
    keep_ratio: tuple[float, ...] | None = None,
    stride: int | None = None,
    selection: SelectionName | None = None,
    precision: Precision | None = None,
    vision_precision: Precision | None = None,
    head_precision: HeadPrecision | None = None,
    embedding_precision: EmbeddingPrecision | None = None,
    activations: FloatPrecision | None = None,
    block_size: int | None = None,
    clipping: Clipping | None = None,
    opset: OpsetName | None = None,
    seed: int | None = None,
    pre_prune: PreCriterionName | None = None,
    pre_keep_ratio: float | None = None,
    lowest_cosine: float | None = None,
    lowest_overlap: float | None = None,
) -> ExportRecipe:
    """Return `recipe` with the given options in place of its own; None keeps what it says.

    Raises:
        RecipeError: if the outcome is not allowed.
    """
    options: dict[str, Any] = {
        "stages": stages,
        "prune": prune,
        "keep_ratio": keep_ratio,
        "stride": stride,
        "selection": selection,
        "precision": precision,
        "vision_precision": vision_precision,
        "head_precision": head_precision,
        "embedding_precision": embedding_precision,
        "activations": activations,
        "block_size": block_size,
        "clipping": clipping,
        "opset": opset,
        "seed": seed,
        "pre_prune": pre_prune,
        "pre_keep_ratio": pre_keep_ratio,
        "lowest_cosine": lowest_cosine,
        "lowest_overlap": lowest_overlap,
    }
    given = {name: value for name, value in options.items() if value is not None}
    return msgspec.structs.replace(recipe, **given)


def _check_stages(stages: tuple[int, ...] | None) -> None:
    for layer in stages or ():
        if layer < 1:
            raise RecipeError(
                f"stages {list(stages or ())}: tokens are scored by the layer before a stage, "
                f"so {layer} is too early; the first possible is 1"
            )
    if stages and list(stages) != sorted(set(stages)):
        raise RecipeError(f"stages {list(stages)} must be ascending and without repeats")
