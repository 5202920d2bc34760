"""Reading a builder's log: which lines mean that there is no engine, or a wrong one.

TensorRT returns an engine although it said that something is wrong with it, so warnings of that
kind are failures here. Lines are of Polygraphy's log: ``[E] message``, ``[W] message``, ``[!]``.
Every pattern was seen in a log, or stands in the parser's library, of TensorRT-RTX 1.7.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Problem", "find_problem", "last_lines"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """The line that says what is wrong, the node it is about if known, and what to do."""

    message: str
    node: str | None
    remedy: str


@dataclass(frozen=True, slots=True)
class _Rule:
    """What to do about a message that ``pattern`` finds."""

    pattern: str
    remedy: str


_CHECK_LIMITS = "check the limits: --dry-run prints every profile"
_FEWER_ROWS = (
    "TensorRT's TopK keeps at most 3840 rows; lower --max-visual-tokens or --max-prompt-tokens, "
    "give --max-keep-ratio below 1, or use --plugin"
)

_WRONG_ENGINE = (
    # num_kept is read while shapes are computed, so it may look unused to the optimiser.
    _Rule(
        r"Unused Input|Input Tensor (?!num_kept\b)\S+ is unused",
        "TensorRT drops an input of this graph, so its value would have no effect; export the "
        "bundle again with this version of feather-edge, or use --opset 18",
    ),
    _Rule(
        r"not self-consistent",
        f"sizes of a profile contradict each other, and running them would fail; {_CHECK_LIMITS}",
    ),
    _Rule(
        r"Clamping to|outside the range of \w+ was clamped",
        "a number of the graph does not fit its type; export with --precision fp32",
    ),
    _Rule(
        r"doesn't support INT64 for inputs, will cast",
        "this TensorRT narrows an integer of the graph; export the bundle again, or use a newer "
        "TensorRT",
    ),
    _Rule(
        r"Ignoring shape input indices|attribute tensorrt_plugin_shape_input_indices has unsup",
        "the plugin does not fit the graph; compile it again with: feather-edge build-plugin",
    ),
    _Rule(
        r"configured as TensorLocation::kHOST but will be treated",
        "an input that is a shape is read as data; export the bundle again",
    ),
)
"""Warnings after which TensorRT returns an engine that is not the graph."""

_ERRORS = (
    _Rule(
        r"Plugin not found|Plugin creator not found|No importer registered",
        "TensorRT does not know this operator; register its library with --plugin LIB, or export "
        "the bundle again: graphs of feather-edge need no plugin",
    ),
    _Rule(
        r"must have a static sequence length",
        "TensorRT wants the capacity of caches in place in the graph, and build-engine puts it "
        "there; build with that command, or use --opset 23",
    ),
    _Rule(r"K exceeds the maximum value", _FEWER_ROWS),
    _Rule(
        r"must have (the )?same (input )?types?",
        "networks are strongly typed, so a cast is missing in the graph; export the bundle again",
    ),
    _Rule(
        r"for Turing",
        "TensorRT-RTX has no float32 matrix product for Turing; export with --precision fp16, or "
        "leave Turing out: --compute-capabilities 8.0,8.6,8.9,12.0",
    ),
    _Rule(
        r"HW-specific datatypes|[Cc]annot compile for target",
        "this GPU lacks a data type of the graph; export with another --precision, or build for "
        "newer --compute-capabilities",
    ),
    _Rule(
        r"(?i)compute capability.*(invalid|not supported)",
        "TensorRT-RTX has no code for this GPU; choose others with --compute-capabilities, or "
        "build on the device itself with --backend tensorrt",
    ),
    _Rule(r"dedicated kernel|decomposable", "no fused attention fits; use --opset 18"),
    _Rule(
        r"(?i)out ?of ?memory|cudaErrorMemoryAllocation|bad_alloc",
        "close other programs, lower --pool-limit or --builder-optimization-level, or add swap "
        "for the time of the build",
    ),
    _Rule(
        r"kMIN|kMAX|kOPT|[Oo]ptimization profile",
        f"the graph does not accept the sizes of a profile; {_CHECK_LIMITS}",
    ),
    _Rule(
        r"Failed to open|[Ff]ailed to parse|external data|does the model file exist",
        "a file of the graph cannot be read; export the bundle again",
    ),
    _Rule(
        r"libcuda|cudaError 35|no CUDA-capable|CUDA initialization",
        "TensorRT needs the GPU that will run the engine; build on the device",
    ),
)
"""What to do about an error, by what it says; the first that fits."""

_NODE = (r"with name: ?([^\s,]+)", r"operation '([^']+)'", r"\b(\S+/\S+): \w")
_LEVEL_LENGTH = len("[E] ")


def find_problem(log: str) -> Problem | None:
    """Return what makes the engine of a log unusable, or None."""
    lines = log.splitlines()
    warnings = [line[_LEVEL_LENGTH:] for line in lines if line.startswith("[W] ")]
    errors = [line[_LEVEL_LENGTH:].strip() for line in lines if line.startswith(("[E] ", "[!] "))]
    # The most telling error: rules go from the cause to what follows from it.
    for rules, messages in ((_ERRORS, errors), (_WRONG_ENGINE, warnings)):
        for rule in rules:
            for message in messages:
                if re.search(rule.pattern, message):
                    node = next(filter(None, map(_node, [message, *errors])), None)
                    return Problem(message=message.strip(), node=node, remedy=rule.remedy)
    if not errors:
        return None
    return Problem(message=errors[0], node=_node(errors[0]), remedy="the log has the rest")


def last_lines(log: str, *, num_lines: int = 4) -> str:
    """Return the end of a log on one line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return " | ".join(lines[-num_lines:]) or "the log is empty"


def _node(message: str) -> str | None:
    for pattern in _NODE:
        if found := re.search(pattern, message):
            return found.group(1)
    return None
