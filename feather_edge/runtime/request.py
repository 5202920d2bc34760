"""One request on its way through a session: the decoder's side, and the answer as it grows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from feather_edge.errors import RequestError
from feather_edge.pruning.criteria import CRITERIA
from feather_edge.pruning.pre_decoder import pre_quotas, prune_before_decoder
from feather_edge.runtime.decoder import PrunedStage
from feather_edge.runtime.result import FinishReason, StageResult, Token

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from feather_edge.manifest import BundleManifest
    from feather_edge.pruning import Layout, Pruning
    from feather_edge.pruning.pre_decoder import Entered
    from feather_edge.runtime.decoder import DecoderChain
    from feather_edge.runtime.prefix import PromptPrefix
    from feather_edge.runtime.prompt import StreamDecoder

DEFAULT_MAX_NEW_TOKENS = 128


@dataclass(kw_only=True)
class Run:
    """The decoder's side of one request.

    Attributes:
        chain: the segments with this request's caches.
        layout: of the unpruned prompt.
        pruning: what to keep; None keeps everything, for ``reason``.
        reason: why the request prunes nothing, known before it runs.
        prefix: the tokens before the first image, where their caches are remembered.
        num_cached_tokens: how many of them did not run, after the prefill.
        stages: what each stage did, after the prefill.
    """

    chain: DecoderChain
    layout: Layout
    pruning: Pruning | None
    reason: str | None
    prefix: PromptPrefix | None = None
    num_cached_tokens: int = 0
    stages: list[PrunedStage] = field(default_factory=list)

    def prefill(self, embeds: NDArray[Any], planes: NDArray[Any]) -> NDArray[np.float32]:
        """Run the prompt [S, D] with its planes [planes, S, D]; returns logits [V]."""
        layout = self.layout
        if self.pruning is not None and self.pruning.pre_criterion != "none":
            with self.chain.watch.stage("prune"):
                entered = prune_before_decoder(self.pruning, layout, embeds)
                planes = _entering_planes(planes, entered, self.pruning, layout)
                embeds = entered.embeds
                layout = layout.keep(entered.rows)
            self.stages.append(
                PrunedStage(
                    before_layer=0,
                    criterion=self.pruning.pre_criterion,
                    layout=layout,
                    quota_change=layout.num_kept - sum(pre_quotas(self.pruning, layout)),
                    is_merged=entered.is_merged,
                )
            )
        known = 0 if self.prefix is None else self.prefix.preload(self.chain)
        if known:
            embeds, planes = embeds[known:], planes[:, known:]
            layout = layout.keep(np.arange(known, layout.num_rows))
        logits, stages = self.chain.prefill(embeds, layout, self.pruning, planes=planes)
        if self.prefix is not None and not known:
            self.prefix.remember(self.chain)
        self.num_cached_tokens = known
        self.stages += stages
        return logits

    def reason_unpruned(self) -> str | None:
        """Return why nothing was pruned, also when the ratio itself keeps everything."""
        total = self.layout.num_visual_tokens
        if self.reason is None and all(s.layout.num_kept == total for s in self.stages):
            return "the keep ratio keeps every visual token"
        return self.reason

    def stage_results(self) -> tuple[StageResult, ...]:
        """Return what each stage kept, as the result reports it."""
        results, before = [], self.layout
        for stage in self.stages:
            kept = stage.layout.kept_indices
            results.append(
                StageResult(
                    before_layer=stage.before_layer,
                    num_kept=len(kept),
                    keep_ratio=len(kept) / max(1, self.layout.num_visual_tokens),
                    criterion=stage.criterion,
                    selection=self._selection(stage),
                    quota_change=stage.quota_change,
                    is_merged=stage.is_merged,
                    kept_indices=kept,
                    scores=_visual_scores(stage, before),
                )
            )
            before = stage.layout
        return tuple(results)

    def _selection(self, stage: PrunedStage) -> str:
        method = CRITERIA.get(stage.criterion)
        if self.pruning is None or method is None or "selection" not in method.options:
            return "fill"
        return self.pruning.selection


@dataclass(kw_only=True)
class Answer:
    """The answer as it grows, up to ``limit`` tokens."""

    limit: int
    decoder: StreamDecoder
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason = "length"

    def add(self, token_id: int) -> Token:
        """Append a token; returns it with the text it adds."""
        delta = self.decoder.step(token_id)
        self.token_ids.append(token_id)
        self.text += delta
        if self.is_full:
            delta += self.flush()
        return Token(token_id=token_id, text=delta)

    def flush(self) -> str:
        """Return text that was held back for a character to complete, at the end."""
        rest = self.decoder.flush()
        self.text += rest
        return rest

    @property
    def is_full(self) -> bool:
        """Whether the limit is reached."""
        return len(self.token_ids) == self.limit


def answer_limit(manifest: BundleManifest, layout: Layout, requested: int | None) -> int:
    """Return how many tokens an answer may have.

    Args:
        manifest: of the bundle, which says what the model was made for.
        layout: of the unpruned prompt.
        requested: what the request asks for; None takes the checkpoint's own limit, or 128.

    Raises:
        RequestError: if the prompt leaves no room, or less than was asked for.
    """
    room = manifest.max_positions - layout.num_rows
    if room < 1:
        raise RequestError(
            f"prompt has {layout.num_rows} tokens, {layout.num_visual_tokens} of them visual; "
            f"this model takes at most {manifest.max_positions - 1}, so shorten the prompt or "
            f"give fewer images"
        )
    if requested is None:
        return min(room, manifest.max_new_tokens or DEFAULT_MAX_NEW_TOKENS)
    if not 1 <= requested <= room:
        raise RequestError(
            f"max_new_tokens is {requested}; after a prompt of {layout.num_rows} tokens this "
            f"model can give 1 to {room}"
        )
    return requested


def _entering_planes(
    planes: NDArray[Any], entered: Entered, pruning: Pruning, layout: Layout
) -> NDArray[Any]:
    """Return the planes [planes, K, D] of what enters the decoder.

    A token that stands for several adds the mean of what they would have added.
    """
    if not entered.is_merged or not len(planes):
        return planes[:, entered.rows]
    return np.stack([prune_before_decoder(pruning, layout, plane).embeds for plane in planes])


def _visual_scores(stage: PrunedStage, before: Layout) -> NDArray[np.float32] | None:
    """Spread the scores of the tokens that entered a stage over all of the prompt's."""
    if stage.scores is None:
        return None
    scores = np.full(before.num_visual_tokens, np.nan, np.float32)
    scores[before.kept_indices] = stage.scores
    return scores
