"""The tokens before a prompt's first image, run once for all requests that share them.

A chat template and a system prompt come before the picture. Where attention is causal, keys and
values of those tokens depend on nothing after them, neither on the picture nor on the question;
and they are text, which no stage prunes, so they fill the first slots of every segment's cache.
They are copied from there after a request's prefill, and a later request with the same tokens
starts with the copy and runs the rows from the first image on. Masks and rotary tables are of
positions, so windows and M-RoPE hold as before.

What it computes is the same, up to the rounding of sums in another order. Where it would not be,
nothing is remembered:

* every token of a prompt sees every other (``prefix`` attention, PaliGemma);
* ``int8-dynamic``, whose layers take the steps of their rounding from all rows of a run, so that
  even these tokens may depend on the picture;
* backends that cannot run several rows after cached ones: engines whose caches grow begin a prompt
  with an empty one, unless they have one profile for everything;
* requests whose criterion lets text take part in the ranking, see ``StagePlan.ranks_with_text``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from feather_edge.pruning.criteria import criterion
from feather_edge.runtime.least_recently_used import LeastRecentlyUsed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from feather_edge.bundle import Bundle
    from feather_edge.pruning import Layout, Pruning
    from feather_edge.runtime.backends import Backend
    from feather_edge.runtime.decoder import DecoderChain, PrefixSlots

__all__ = ["PrefixCache", "PromptPrefix"]


@dataclass(frozen=True, kw_only=True)
class PromptPrefix:
    """The tokens before the first image of one request.

    Attributes:
        key: their ids.
        num_tokens: P, at least 1.
        entries: what is remembered, by key.
    """

    key: bytes
    num_tokens: int
    entries: LeastRecentlyUsed

    def preload(self, chain: DecoderChain) -> int:
        """Fill a chain's empty caches; returns the rows that it need not run, P or 0."""
        slots: PrefixSlots | None = self.entries.get(self.key)
        if slots is None:
            return 0
        chain.preload(slots)
        return self.num_tokens

    def remember(self, chain: DecoderChain) -> None:
        """Keep the caches of these tokens, which a chain has run."""
        self.entries.put(self.key, chain.first_slots(self.num_tokens))


class PrefixCache:
    """Caches of the most recently used prefixes; used by one thread at a time.

    Args:
        bundle: whose prompts.
        backend: that runs its graphs.
        capacity: prefixes that are kept; 0 keeps none.

    Attributes:
        notes: why nothing is remembered although it was asked for.
    """

    def __init__(self, bundle: Bundle, backend: Backend, *, capacity: int) -> None:
        why_not = _why_not(bundle, backend) if capacity else None
        self.notes = () if why_not is None else (f"prefixes are not cached: {why_not}",)
        self._entries = LeastRecentlyUsed(0 if why_not else capacity)
        self._num_stages = len(bundle.schedule.stages)

    def of(
        self, prompt_ids: NDArray[np.int64], layout: Layout, pruning: Pruning | None
    ) -> PromptPrefix | None:
        """Return what a prompt has before its first image; None if it is to run anew.

        Args:
            prompt_ids: [S].
            layout: of the unpruned prompt.
            pruning: what to keep; None keeps everything.

        Raises:
            RequestError: if the request's options do not fit its criterion.
        """
        num_tokens = layout.spans[0].start if layout.spans else 0
        if not self._entries.capacity or not num_tokens or self._ranks_text(pruning, layout):
            return None
        key = prompt_ids[:num_tokens].tobytes()
        return PromptPrefix(key=key, num_tokens=num_tokens, entries=self._entries)

    def _ranks_text(self, pruning: Pruning | None, layout: Layout) -> bool:
        if pruning is None or pruning.criterion == "none" or not self._num_stages:
            return False
        plan = criterion(pruning.criterion).plan(pruning, 0, self._num_stages, layout)
        return plan.ranks_with_text


def _why_not(bundle: Bundle, backend: Backend) -> str | None:
    """Return why no prefix of a bundle can be reused on a backend; None where it can."""
    manifest = bundle.manifest
    if manifest.prompt_attention == "prefix":
        return f"every token of a prompt of {manifest.model_type} sees the picture"
    if manifest.recipe.precision == "int8-dynamic":
        return "layers of int8-dynamic round all rows of a prompt in the same steps"
    if not backend.continues_prompts:
        why = f"backend {backend.name} runs no prompt after tokens that are cached"
        remedy = "build its engines with --opset 24, or with --profiles one"
        return why if backend.target is None else f"{why}; {remedy}"
    return None
