"""The plugin's kernels, compiled for the CPU by g++ and called through ctypes."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import feather_edge

if TYPE_CHECKING:
    from numpy.typing import NDArray

KERNELS = Path(feather_edge.__file__).parent / "engines" / "plugin"
SUPPORT = Path(__file__).parent
COMPILER = shutil.which("g++")

POINTER = ctypes.c_void_p


@dataclass(frozen=True, kw_only=True)
class PluginKernels:
    """``threads`` per block; ``downwards``: the order in which the threads of a block run."""

    library: ctypes.CDLL
    threads: int = 32
    downwards: bool = False

    def select(
        self, scores: NDArray[np.float32], priority: NDArray[np.float32], num_kept: int
    ) -> NDArray[np.int64]:
        """Return the kept rows [B, K] of scores and priority [B, S]."""
        batch, num_rows = scores.shape
        kept = np.full((batch, num_kept), -1, np.int64)
        pointers = (POINTER(array.ctypes.data) for array in (scores, priority, kept))
        self.library.select_kept(
            *pointers, batch, num_rows, num_kept, self.threads, self.downwards
        )
        return kept

    def gather(
        self, kept: NDArray[np.int64], *tensors: NDArray[np.generic]
    ) -> tuple[int, list[NDArray[np.generic]]]:
        """Return the narrowest load used, in bytes, and rows ``kept`` of three [B, S, ...]."""
        batch, num_kept = kept.shape
        targets = [np.zeros((batch, num_kept, *each.shape[2:]), each.dtype) for each in tensors]
        row_bytes = [each[0, 0].nbytes for each in tensors]
        narrowest = self.library.gather_kept(
            POINTER(kept.ctypes.data),
            (POINTER * 3)(*(each.ctypes.data for each in tensors)),
            (POINTER * 3)(*(each.ctypes.data for each in targets)),
            (ctypes.c_int64 * 3)(*row_bytes),
            batch, tensors[0].shape[1], num_kept, self.threads, self.downwards,
        )  # fmt: skip
        return narrowest, targets


def build_plugin_kernels(folder: Path) -> ctypes.CDLL:
    """Compile ``kernels.cuh`` as it is, with every warning an error."""
    assert COMPILER is not None
    target = folder / "plugin_kernels.so"
    subprocess.run(
        [
            COMPILER, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
            f"-I{KERNELS}", str(SUPPORT / "plugin_kernels.cpp"), "-o", str(target),
        ],
        check=True,
    )  # fmt: skip
    return ctypes.CDLL(str(target))
