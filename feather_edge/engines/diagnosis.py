"""Reading a builder's log: which lines mean that there is no engine, or a wrong one.

TensorRT returns an engine although it said that something is wrong with it, so warnings of that
kind are failures here. Lines are of Polygraphy's log: ``[E] message``, ``[W] message``, ``[!]``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Problem", "find_problem", "last_lines"]

UNUSED = (
    "TensorRT dropped an input that the graph declares, so its value would have no effect; "
    "export the bundle again with this version of feather-edge, or use --opset 18"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """The line that says what is wrong, the node it is about if known, and what to do."""

    message: str
    node: str | None
    remedy: str


_WRONG_ENGINE: tuple[tuple[str, str], ...] = (
    (r"Unused Input", UNUSED),
    (
        r"not self-consistent",
        "a profile's sizes contradict each other, and the engine would fail when they are used; "
        "check the limits, --dry-run prints every profile",
    ),
    (
        r"(?i)values? in range .* (will be|are) (clamped|clipped)|out of range .*clamp",
        "weights do not fit their type; export with --precision fp32",
    ),
    (
        r"(?i)subnormal|detected \w+ weights? .*(overflow|infinite|inf\b|nan)",
        "weights do not fit float16; export with --precision fp32",
    ),
    (
        r"(?i)cast(ing)? down to (INT32|float)|was cast to INT32 and clamped",
        "the graph holds a type that this TensorRT narrows; export the bundle again",
    ),
)
"""Warnings after which TensorRT returns an engine that is not the graph."""

_HARMLESS_ERRORS = (r"Could not read timing cache",)

_REMEDIES: tuple[tuple[str, str], ...] = (
    (
        r"[Pp]lugin not found|No plugin|no importer|No importer registered|"
        r"[Uu]nsupported operator|Failed to find plugin",
        "TensorRT does not know this operator; register its library with --plugin LIB, or export "
        "the bundle again: graphs of feather-edge need no plugin",
    ),
    (
        r"exceeds the maximum value allowed \(3840\)|K exceeds",
        "TensorRT's TopK keeps at most 3840 rows; lower --max-visual-tokens or "
        "--max-prompt-tokens, give --max-keep-ratio below 1, or use --plugin",
    ),
    (
        r"must have same input types|same type|incompatible types",
        "networks are strongly typed, so a cast is missing in the graph; export the bundle again",
    ),
    (
        r"HW-specific datatypes|[Cc]annot compile for target",
        "this GPU lacks a data type of the graph; export with another --precision or build for "
        "newer --compute-capabilities",
    ),
    (
        r"[Cc]ompute capability.* (invalid|not supported)",
        "TensorRT-RTX has no code for this GPU; choose others with --compute-capabilities, or "
        "--backend tensorrt on the device itself",
    ),
    (
        r"dedicated kernel|decomposable",
        "no fused attention fits; use --opset 18",
    ),
    (
        r"[Oo]ut of memory|OutOfMemory|cudaErrorMemoryAllocation|bad_alloc",
        "close other programs, lower --pool-limit or --builder-optimization-level, or add swap "
        "while building",
    ),
    (
        r"kMIN|kMAX|kOPT|[Oo]ptimization profile|[Pp]rofile \d",
        "the graph does not accept the sizes of a profile; check the limits, --dry-run prints "
        "every profile",
    ),
    (
        r"libcuda|CUDA (driver|initialization)|cudaError|no CUDA-capable",
        "TensorRT needs the GPU that will run the engine; build on the device",
    ),
    (
        r"(?i)deserializ|model file|protobuf|external data|Failed to open",
        "a file of the graph cannot be read; export the bundle again",
    ),
)
"""What to do about an error, by what it says."""

_DEFAULT_REMEDY = "the log has the rest"
_NODE = (r"with name: ?([^\s,]+)", r"[Nn]ode (?:name: )?'?([\w./-]+/[\w./-]+)'?", r"\[([\w./-]+/[\w./-]+)\]")


def find_problem(log: str) -> Problem | None:
    """Return the first thing in a log that makes its engine unusable, or None."""
    lines = log.splitlines()
    for line in lines:
        level, _, message = line.partition(" ")
        if level == "[W]":
            for pattern, remedy in _WRONG_ENGINE:
                if re.search(pattern, message):
                    return Problem(message=message.strip(), node=_node(message), remedy=remedy)
    errors = [
        line[4:].strip()
        for line in lines
        if line.startswith(("[E] ", "[!] "))
        and not any(re.search(pattern, line) for pattern in _HARMLESS_ERRORS)
    ]
    if not errors:
        return None
    # A parser's error comes first and the complaint that there is no engine last.
    told = next((text for text in errors if _remedy(text) != _DEFAULT_REMEDY), errors[0])
    node = next((name for text in errors if (name := _node(text))), None)
    return Problem(message=told, node=node, remedy=_remedy(told))


def last_lines(log: str, *, num_lines: int = 4) -> str:
    """Return the end of a log on one line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return " | ".join(lines[-num_lines:]) or "the log is empty"


def _remedy(message: str) -> str:
    return next(
        (remedy for pattern, remedy in _REMEDIES if re.search(pattern, message)), _DEFAULT_REMEDY
    )


def _node(message: str) -> str | None:
    for pattern in _NODE:
        if found := re.search(pattern, message):
            return found.group(1)
    return None
