"""Pictures of what pruning kept."""

from __future__ import annotations

from feather_edge.viz.heat_map import heat_map
from feather_edge.viz.kept_tokens import Panel, contact_sheet, kept_tokens
from feather_edge.viz.token_map import TokenMap, token_maps
from feather_edge.viz.visualise import Visualisation, draw_results, kept_panels, name_of, visualise

__all__ = [
    "Panel",
    "TokenMap",
    "Visualisation",
    "contact_sheet",
    "draw_results",
    "heat_map",
    "kept_panels",
    "kept_tokens",
    "name_of",
    "token_maps",
    "visualise",
]
