"""Recipes: what to export and what to build, as a TOML file or as options."""

from feather_edge.recipes.engines import (
    EngineBackend,
    EngineOpset,
    EngineProfiles,
    EngineRecipe,
    load_engine_recipe,
    override_engine,
)
from feather_edge.recipes.export import (
    CriterionName,
    ExportRecipe,
    PreCriterionName,
    SelectionName,
    default_recipe_name,
    load_recipe,
    override,
)
from feather_edge.recipes.precision import (
    Clipping,
    EmbeddingPrecision,
    FloatPrecision,
    HeadPrecision,
    OpsetName,
    Precision,
)
from feather_edge.recipes.reading import Stage, describe_recipe, recipe_folder, recipe_names

__all__ = [
    "Clipping",
    "CriterionName",
    "EmbeddingPrecision",
    "EngineBackend",
    "EngineOpset",
    "EngineProfiles",
    "EngineRecipe",
    "ExportRecipe",
    "FloatPrecision",
    "HeadPrecision",
    "OpsetName",
    "PreCriterionName",
    "Precision",
    "SelectionName",
    "Stage",
    "default_recipe_name",
    "describe_recipe",
    "load_engine_recipe",
    "load_recipe",
    "override",
    "override_engine",
    "recipe_folder",
    "recipe_names",
]
