"""``python -m feather_edge`` is ``feather-edge``."""

from __future__ import annotations

from feather_edge.cli import main

if __name__ == "__main__":
    main(prog_name="feather-edge")
