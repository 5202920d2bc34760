"""Choosing for the user: what meets a deadline on this device, and what keeps the accuracy.

``tune`` is what ``feather-edge tune`` runs.
"""

from __future__ import annotations

from feather_edge.tune.search import Candidate, Requirement, Search
from feather_edge.tune.tuning import TuneReport, tune

__all__ = ["Candidate", "Requirement", "Search", "TuneReport", "tune"]
