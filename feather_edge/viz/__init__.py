"""Pictures of what pruning kept."""

from __future__ import annotations

from feather_edge.viz.kept_tokens import Panel, contact_sheet, kept_tokens

__all__ = ["Panel", "contact_sheet", "kept_tokens"]
