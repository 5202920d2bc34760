"""Whether a model fits a device, told before anything is downloaded, exported or built.

``fit`` adds up what each stage takes at its peak, holds it against what the device can give, and
where that is too little tells which change would help, and by how much. ``sizes`` reads a
checkpoint or a bundle, ``costs`` holds the formulas and their measured constants, ``budget`` what
there is, ``advice`` the changes.
"""

from feather_edge.fit.fitting import fit, require_fit
from feather_edge.fit.report import Advice, DiskFit, FitReport, GraphFit, StageFit, StageName

__all__ = [
    "Advice",
    "DiskFit",
    "FitReport",
    "GraphFit",
    "StageFit",
    "StageName",
    "fit",
    "require_fit",
]
