"""What runs inside a contender's own environment: prepares its model, or answers questions.

Usage, by ``compare.py`` alone:
    python -m compare_peers.worker prepare PEER VARIANT CHECKPOINT FOLDER
    python -m compare_peers.worker answer PEER VARIANT CHECKPOINT FOLDER THREADS

``answer`` reads one JSON request a line and writes one JSON answer a line; what libraries print
goes to stderr. Between requests it waits for its input and takes no time from the others.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any


def main(arguments: list[str]) -> None:
    """Do the step that the command line names."""
    step, peer, variant, checkpoint, folder, *rest = arguments
    module = importlib.import_module(f"compare_peers.peers.{peer}")
    # Libraries print to the descriptor, too: the answers get one of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    if step == "prepare":
        module.prepare(Path(checkpoint), Path(folder), variant)
        return
    try:
        contender = module.Contender(Path(checkpoint), Path(folder), variant, int(rest[0]))
        answers.write(json.dumps({"ready": contender.facts}) + "\n")
    except Exception:
        traceback.print_exc()
        _fail(answers)
        return
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        try:
            answers.write(json.dumps(contender.answer(**request)) + "\n")
        except Exception:
            traceback.print_exc()
            _fail(answers)


def _fail(answers: Any) -> None:
    """Answer with the last line of the exception that is being handled."""
    kind, error, _ = sys.exc_info()
    text = str(error).strip().splitlines() or [""]
    answers.write(json.dumps({"error": f"{getattr(kind, '__name__', kind)}: {text[0]}"}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
