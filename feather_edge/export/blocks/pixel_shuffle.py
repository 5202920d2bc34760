"""Squares of neighbouring patches that become one visual token."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from feather_edge.export.builder import GraphBuilder


def pixel_shuffle(
    g: GraphBuilder, x: ir.Value, *, side: int, shuffle: int, width: int
) -> ir.Value:
    """Join squares of s x s patches, s being ``shuffle``: [N, V, Dv] to [N, V / s^2, Dv s^2].

    Args:
        g: the graph.
        x: patches in rows, ``side`` x ``side`` of them.
        side: patches per side, a multiple of ``shuffle``.
        shuffle: patches per side of a square.
        width: Dv.
    """
    small = side // shuffle
    blocks = g.op("Reshape", x, g.ints(-1, small, shuffle, small, shuffle, width), name="blocks")
    squares = g.op("Transpose", blocks, name="squares", perm=[0, 1, 3, 2, 4, 5])
    return g.op("Reshape", squares, g.ints(-1, small**2, shuffle**2 * width), name="pixel_shuffle")
