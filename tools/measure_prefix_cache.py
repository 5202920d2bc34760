"""Measure what remembered system prompts spare: one request with and without, in turn.

Usage: python tools/measure_prefix_cache.py [BUNDLE] [--system-tokens N ...] [--rounds N]

Opens a bundle twice, with ``cache_prefixes`` and without, and asks both the same in every round,
in the opposite order of the round before, unpruned and as the bundle's recipe prunes, for each
length of the system prompt. No picture comes twice. Prints medians in milliseconds, the median
and the range of the rounds' ratios, and the conditions, as one JSON document.

Without BUNDLE it makes one: vision encoder and tokenizer of the shipped model, 196 visual tokens,
and 12 random decoder layers of the sizes of SmolLM2-135M.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from measure_builder_peak import write_checkpoint
from tokenizers import Tokenizer

from feather_edge.checkpoint import resolve_checkpoint
from feather_edge.export.pipeline import export
from feather_edge.pruning import Pruning
from feather_edge.recipes import ExportRecipe
from feather_edge.runtime.session import Session

if TYPE_CHECKING:
    from feather_edge.runtime.result import Result

SIZES = {
    "num_hidden_layers": 12,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
}
WORDS = "where is the red circle ?"


class Requests:
    """Requests with a system prompt of some length, each with a picture of its own."""

    def __init__(self, bundle: Path, num_system_tokens: int) -> None:
        tokenizer: Any = Tokenizer.from_file(str(bundle / "tokenizer.json"))
        words = WORDS
        while len(tokenizer.encode(words, add_special_tokens=False).ids) < num_system_tokens:
            words += f" {WORDS}"
        self._system = words if num_system_tokens else ""
        self._rng = np.random.default_rng(num_system_tokens)

    def __call__(self) -> tuple[np.ndarray, list[Any]]:
        """Return a picture and the messages about it."""
        picture = self._rng.integers(0, 256, (112, 112, 3), dtype=np.uint8)
        content: list[Any] = [{"type": "image"}, {"type": "text", "text": WORDS}]
        messages = [{"role": "user", "content": content}]
        if self._system:
            system = [{"type": "text", "text": self._system}]
            messages.insert(0, {"role": "system", "content": system})
        return picture, messages


def compare(
    plain: Session, cached: Session, requests: Requests, pruning: Pruning, *, rounds: int
) -> dict[str, Any]:
    """Return what the first token takes without and with what is remembered."""
    pairs: list[tuple[Result, Result]] = []
    for number in range(1 + rounds):
        picture, messages = requests()
        both = {}
        for session in (plain, cached) if number % 2 else (cached, plain):
            both[session] = session.generate(picture, messages, pruning=pruning, max_new_tokens=1)
        pairs.append((both[plain], both[cached]))
    pairs = pairs[1:]  # the first one fills the cache
    if not all(other.num_cached_tokens for _, other in pairs):
        raise SystemExit("requests start without what was remembered; choose another criterion")
    last = pairs[-1][1]
    found: dict[str, Any] = {
        "num_prompt_tokens": last.num_prompt_tokens,
        "num_cached_tokens": last.num_cached_tokens,
        "num_kept": [stage.num_kept for stage in last.stages],
        "same_tokens": sum(one.token_ids == other.token_ids for one, other in pairs),
    }
    for name in ("prefill_ms", "ttft_ms"):
        times = [(getattr(one, name), getattr(other, name)) for one, other in pairs]
        ratios = [with_cache / without for without, with_cache in times]
        found[name] = {
            "without": round(statistics.median(without for without, _ in times), 1),
            "cached": round(statistics.median(with_cache for _, with_cache in times), 1),
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(min(ratios), 3), round(max(ratios), 3)],
        }
    return found


def measure(bundle: Path, lengths: list[int], *, rounds: int) -> dict[str, Any]:
    """Return the conditions, and the figures of each length, unpruned and pruned."""
    with Session.open(bundle) as plain, Session.open(bundle, cache_prefixes=1) as cached:
        if why_not := [note for note in cached.notes if note.startswith("prefixes")]:
            raise SystemExit(why_not[0])
        kinds = {"unpruned": Pruning(criterion="none"), "pruned": plain.pruning}
        runs = [
            {"system_tokens": length, "requests": kind}
            | compare(plain, cached, Requests(bundle, length), pruning, rounds=rounds)
            for length in lengths
            for kind, pruning in kinds.items()
        ]
        decoder = plain.bundle.manifest.decoder
        per_token = 2 * decoder.num_layers * decoder.num_key_value_heads * decoder.head_dim
        return {
            "backend": plain.backend.name,
            "precision": plain.bundle.manifest.recipe.precision,
            "stages": plain.bundle.schedule.stages,
            "rounds": rounds,
            "load": round(os.getloadavg()[0], 1),
            "num_values_per_cached_token": per_token,
            "runs": runs,
        }


def main() -> None:
    """Parse options, make a bundle if none is given, measure, print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--system-tokens", type=int, nargs="+", default=[0, 50, 200])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle
        if bundle is None:
            checkpoint = write_checkpoint(
                resolve_checkpoint("demo"), Path(folder) / "checkpoint", SIZES
            )
            bundle = export(checkpoint, Path(folder) / "bundle", ExportRecipe()).path
        print(json.dumps(measure(bundle, options.system_tokens, rounds=options.rounds), indent=2))


if __name__ == "__main__":
    main()
