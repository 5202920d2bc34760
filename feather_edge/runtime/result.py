"""What a request gives back: tokens while it runs, and the record of what happened."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from feather_edge.images import Raster
    from feather_edge.runtime.calibration import DeadlineChoice
    from feather_edge.runtime.receipt import Verification

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One generated token and the text it adds (may be empty in the middle of a character)."""

    token_id: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """What one pruning stage kept.

    Attributes:
        before_layer: decoder layer the stage stands before; 0 for the stage before the decoder.
        num_kept: visual tokens left after it.
        keep_ratio: ``num_kept`` by the visual tokens before any pruning.
        criterion: which ranked them; ``none`` when the stage let everything pass.
        selection: ``fill`` or ``union``.
        quota_change: how many tokens more than the criterion's own count the stage had to keep
            for protected regions; negative where forbidden regions left fewer.
        is_merged: whether a kept token stands for several that were averaged (``pooling``).
        kept_indices: [num_kept] into the prompt's visual tokens, ascending; of merged tokens, the
            one in the middle.
        scores: [num_visual_tokens] as the stage ranked them, NaN where a token was already gone;
            None without scores. Not part of ``to_dict``.
    """

    before_layer: int
    num_kept: int
    keep_ratio: float
    criterion: str
    selection: str
    quota_change: int
    is_merged: bool
    kept_indices: NDArray[np.int64]
    scores: NDArray[np.float32] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """An answer and its record.

    Attributes:
        text: the answer.
        token_ids: its tokens, the end token left out.
        finish_reason: ``stop`` at an end token, ``length`` at the limit.
        num_prompt_tokens: S, visual tokens included.
        num_cached_tokens: those of the prompt that did not run, because their keys and values were
            remembered from an earlier request (``cache_prefixes``).
        num_visual_tokens: before any pruning.
        rasters: what the visual tokens show, in their order: a raster for each picture or tile,
            with its box in pixels of the picture.
        stages: one entry per pruning stage of the bundle, after that of the stage before the
            decoder if the request has one.
        reason: why nothing was pruned; None when something was.
        deadline: which keep ratio a deadline led to, and why; None without one.
        preprocess_ms: images and prompt to arrays.
        vision_ms: vision encoder.
        prefill_ms: all decoder segments over the prompt, pruning included.
        segment_ms: the part of each segment in it, in order; its end ranks and gathers tokens.
        prune_ms: the host's part in it: asking for tokens, and taking over those that were kept.
        ttft_ms: from the call to the first token id, waiting for other requests included.
        tpot_ms: mean time of each further token; None for one token.
        itl_ms: the time of each of them, the end token included. What the reader of a stream does
            between two tokens does not count.
        load_ms: how long it took to open the session.
        peak_rss_mib: most host memory of the process until now.
        backend: what ran the graphs, and where.
        precision: of the graphs.
        notes: how the backend ran, where that is not as one might expect.
        verification: whether ``feather-edge verify`` compared what ran; None without a bundle.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_visual_tokens: int
    rasters: tuple[Raster, ...]
    stages: tuple[StageResult, ...]
    reason: str | None
    deadline: DeadlineChoice | None
    preprocess_ms: float
    vision_ms: float
    prefill_ms: float
    segment_ms: tuple[float, ...]
    prune_ms: float
    ttft_ms: float
    tpot_ms: float | None
    itl_ms: tuple[float, ...]
    load_ms: float
    peak_rss_mib: float
    backend: str
    device: str
    precision: str
    notes: tuple[str, ...] = ()
    verification: Verification | None = None
    num_cached_tokens: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values, ready for JSON."""
        record = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "stages"
        }
        record["deadline"] = None if self.deadline is None else self.deadline.to_dict()
        for name in ("token_ids", "segment_ms", "itl_ms", "notes"):
            record[name] = list(record[name])
        record["verification"] = msgspec.to_builtins(self.verification)
        record["rasters"] = [
            {
                "image": raster.image,
                "height": raster.height,
                "width": raster.width,
                "box": list(raster.box),
            }
            for raster in self.rasters
        ]
        record["stages"] = [
            {
                "before_layer": stage.before_layer,
                "num_kept": stage.num_kept,
                "keep_ratio": stage.keep_ratio,
                "criterion": stage.criterion,
                "selection": stage.selection,
                "quota_change": stage.quota_change,
                "is_merged": stage.is_merged,
                "kept_indices": stage.kept_indices.tolist(),
            }
            for stage in self.stages
        ]
        return record
