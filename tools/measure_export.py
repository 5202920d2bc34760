"""Measure what an export costs beside a plain copy of the checkpoint's bytes.

Usage: python tools/measure_export.py [--model qwen-0.5b|llava-0.5b|llava-7b] [--repeat N]

Writes the checkpoint that ``compare_peers`` asks about (llava-7b in fp16, as a file of zeros that
takes no space), then copies and exports it in turn, each in a process of its own, and prints one
JSON document. Disk: twice the checkpoint.
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

from compare_peers.checkpoints import MODELS, write_checkpoint

MAX_COPY_RATIO, MAX_MORE_CPU_S = 1.3, 5.0
MAX_RSS_GB = {"llava-7b": 3.0, "qwen-0.5b": 1.5, "llava-0.5b": 1.5}
COPY = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2])"


def main(arguments: list[str]) -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description="cost of an export")
    parser.add_argument("--model", choices=sorted(MAX_RSS_GB), default="llava-0.5b")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where there is room; default: temporary")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        print(json.dumps(measure(options.model, Path(name), options.repeat), indent=2))


def measure(model: str, work: Path, repeat: int) -> dict[str, Any]:
    """Return medians of copying and exporting ``model`` in turn, and what they may be."""
    text = Path(__file__).with_name("texts") / "coriolanus.txt"
    checkpoint, output, is_large = work / "checkpoint", work / "output", model == "llava-7b"
    write_checkpoint(
        MODELS[model],
        checkpoint,
        text.read_text(encoding="utf-8"),
        dtype="F16" if is_large else "F32",
        is_sparse=is_large,
    )
    export = [sys.executable, "-m", "feather_edge", "export", str(checkpoint), "-o", str(output)]
    export += ["--precision", "fp16" if is_large else "fp32", "--opset", "23"]
    commands = {
        "copy": [sys.executable, "-c", COPY, str(checkpoint), str(output)],
        "export": export,
    }
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for _ in range(repeat):
        for name, command in commands.items():
            samples[name].append(_run(command))
            shutil.rmtree(output)
    medians = {
        name: {key: round(statistics.median(each[key] for each in runs), 2) for key in runs[0]}
        for name, runs in samples.items()
    }
    cost, copy = medians["export"], medians["copy"]
    return {
        "model": model,
        "bytes": (checkpoint / "model.safetensors").stat().st_size,
        **medians,
        "limits": {
            "wall_s": round(MAX_COPY_RATIO * copy["wall_s"] + MAX_MORE_CPU_S, 2),
            "peak_rss_gb": MAX_RSS_GB[model],
        },
        "holds": cost["wall_s"] <= MAX_COPY_RATIO * copy["wall_s"] + MAX_MORE_CPU_S
        and cost["peak_rss_gb"] <= MAX_RSS_GB[model],
        "samples": samples,
    }


def _run(command: list[str]) -> dict[str, float]:
    """Run a command until its bytes are on the disk; return its times and largest memory."""
    os.sync()
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    os.sync()
    return {
        "wall_s": time.perf_counter() - started,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_rss_gb": usage.ru_maxrss * 1024 / 1e9,
    }


if __name__ == "__main__":
    main(sys.argv[1:])
