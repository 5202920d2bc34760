"""Hold an export against a plain copy of the checkpoint's bytes: time, CPU time, peak memory.

Usage: python tools/measure_export.py CHECKPOINT|0.5b|7b --work FOLDER [--precision P] [--rounds N]

``0.5b`` and ``7b`` stand for a LLaVA with the vision encoder of the demo and a random decoder of
the shape of Qwen2-0.5B (float32) or Llama-2-7B (float16, 13 GB), which is made in FOLDER. Copy and
export run in turn, each in a process of its own, from a cold page cache to the disk, and what they
write is deleted again; FOLDER needs room for twice the checkpoint. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure_builder_peak import write_checkpoint

from feather_edge.checkpoint import resolve_checkpoint

SHAPES: dict[str, tuple[type[np.floating[Any]], dict[str, int]]] = {
    "0.5b": (
        np.float32,
        {
            "num_hidden_layers": 24,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "vocab_size": 151936,
        },
    ),
    "7b": (
        np.float16,
        {
            "num_hidden_layers": 32,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "vocab_size": 32000,
        },
    ),
}
COPY = """
import shutil, sys
from feather_edge.runtime.memory import peak_rss_mib
shutil.copytree(sys.argv[1], sys.argv[2])
print(peak_rss_mib())
"""
EXPORT = """
import sys
from feather_edge.cli import main
from feather_edge.runtime.memory import peak_rss_mib
main(["export", sys.argv[1], "-o", sys.argv[2], *sys.argv[3:]], standalone_mode=False)
print(peak_rss_mib())
"""


def measure(
    checkpoint: Path, work: Path, options: list[str], *, num_rounds: int
) -> dict[str, Any]:
    """Copy and export ``checkpoint`` in turn; returns samples, medians and what is allowed.

    Times are in seconds, memory in MiB. An export may take 1.3 times the copy and 5 s of CPU.
    """
    samples: dict[str, list[dict[str, float]]] = {"copy": [], "export": []}
    for _ in range(num_rounds):
        samples["copy"].append(_run(COPY, [], checkpoint, work / "copy"))
        samples["export"].append(_run(EXPORT, options, checkpoint, work / "bundle"))
    medians = {
        name: {key: round(statistics.median(s[key] for s in each), 2) for key in each[0]}
        for name, each in samples.items()
    }
    allowed = {key: round(1.3 * medians["copy"][key] + 5, 2) for key in ("wall_s", "cpu_s")}
    return {
        "checkpoint_mib": round(sum(f.stat().st_size for f in _files(checkpoint)) / 2**20, 1),
        "options": options,
        "median": medians,
        "allowed": allowed,
        "samples": samples,
    }


def _run(code: str, options: list[str], source: Path, output: Path) -> dict[str, float]:
    """Run ``code`` from ``source`` to ``output``, wait for the disk, delete, tell what it took."""
    for file in _files(source):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())  # pages not written yet cannot be dropped
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with tempfile.TemporaryFile("w+") as printed:
        started = time.perf_counter()
        command = [sys.executable, "-c", code, str(source), str(output), *options]
        process = subprocess.Popen(command, stdout=printed)  # noqa: S603 - our own commands
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        for file in _files(output):
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        wall_s = time.perf_counter() - started
        if process.returncode != 0:
            raise SystemExit(f"{command[2:]} failed with exit code {process.returncode}")
        printed.seek(0)
        peak = float(printed.read().split()[-1])
    shutil.rmtree(output)
    cpu_s = usage.ru_utime + usage.ru_stime
    return {"wall_s": round(wall_s, 2), "cpu_s": round(cpu_s, 2), "peak_rss_mib": round(peak, 1)}


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def main() -> None:
    """Parse the command line, make a checkpoint where one is asked for, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", help=f"a folder, or one of {', '.join(SHAPES)}")
    parser.add_argument("--work", type=Path, required=True, help="folder on the disk to write to")
    parser.add_argument("--precision", help="default: fp32, of a generated 7b fp16")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        work, precision = Path(folder), options.precision
        if options.checkpoint in SHAPES:
            dtype, sizes = SHAPES[options.checkpoint]
            demo = resolve_checkpoint("demo")
            checkpoint = write_checkpoint(demo, work / "checkpoint", sizes, dtype=dtype)
            precision = precision or ("fp16" if dtype is np.float16 else "fp32")
        else:
            checkpoint = resolve_checkpoint(options.checkpoint)
        extra = [] if precision is None else ["--precision", precision]
        result = measure(checkpoint, work, extra, num_rounds=options.rounds)
    print(json.dumps({"checkpoint": options.checkpoint, **result}, indent=2))


if __name__ == "__main__":
    main()
