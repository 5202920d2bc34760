"""The chain of decoder segments for one request: prefill with pruning, then decode.

Letters as in ``feather_edge.graphs``. Batch is 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from feather_edge.errors import BackendError
from feather_edge.graphs import DECODER, DEEPSTACK_EMBEDS
from feather_edge.pruning.criteria import criterion
from feather_edge.runtime.prune_inputs import PruneInputs
from feather_edge.runtime.rotary import prompt_coordinates, require_plain, rotary_tables
from feather_edge.runtime.segment import SegmentRun
from feather_edge.runtime.timing import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from feather_edge.manifest import BundleManifest
    from feather_edge.pruning.layout import Layout
    from feather_edge.pruning.plan import StagePlan
    from feather_edge.pruning.request import Pruning
    from feather_edge.pruning.schedule import PruningSchedule
    from feather_edge.runtime.backends.base import Backend, Graph, Tensor

    PrefixSlots = tuple[dict[str, NDArray[Any]], ...]
    """For each segment, the first slots [B, Hkv, P, Dh] of its caches, by the graph's input."""


@dataclass(frozen=True, kw_only=True)
class PrunedStage:
    """What a stage did.

    Attributes:
        before_layer: decoder layer the stage stands before.
        criterion: which ranked the rows; ``none`` when all passed.
        layout: of the rows that left it.
        scores: of the visual tokens that entered; None where the graph's scores decided nothing.
        quota_change: tokens more than the criterion asked for, for the user's regions.
        is_merged: whether a kept token stands for several, averaged.
    """

    before_layer: int
    criterion: str
    layout: Layout
    scores: NDArray[np.float32] | None = None
    quota_change: int = 0
    is_merged: bool = False


@dataclass(kw_only=True)
class _Rows:
    """The rows between two segments: handles of [B, S, D] and [B, S, Dh/2], and their layout.

    ``coordinates`` [axes, S] are what the rotary tables turn by: those of the unpruned prompt,
    unless a stage has numbered its rows anew; ``lag`` is how far that numbering is behind.
    """

    hidden: Tensor
    cos: Tensor
    sin: Tensor
    layout: Layout
    coordinates: NDArray[np.int64]
    lag: int = 0


class DecoderChain:
    """All segments of a decoder, with the caches of one request.

    Args:
        graphs: of the segments, in order.
        manifest: of the bundle.
        schedule: where the decoder is split.
        backend: that opened the graphs.
        max_new_tokens: of the answer; room for them where a graph leaves the capacity of its
            caches open. The default is for chains that only prefill.

    Attributes:
        watch: notes each segment's prefill under its graph's name, and the host's part in pruning
            as ``prune``.
        next_position: of the token that comes next.
    """

    def __init__(
        self,
        graphs: Sequence[Graph],
        manifest: BundleManifest,
        schedule: PruningSchedule,
        backend: Backend,
        *,
        max_new_tokens: int = 1,
        watch: Stopwatch | None = None,
    ) -> None:
        self.watch = Stopwatch() if watch is None else watch
        self._segments = [
            SegmentRun(graph, manifest, backend, max_new_tokens=max_new_tokens) for graph in graphs
        ]
        self._manifest = manifest
        self._schedule = schedule
        self._backend = backend
        self._dtype = manifest.graphs[-1].inputs[0].dtype
        self._prune_inputs = PruneInputs(manifest, schedule, backend)
        self.next_position = 0
        self._lags = [0] * len(schedule.segments)
        """How far each segment's numbering is behind, where a stage has begun a new one."""
        self._planes: dict[str, Tensor] = {}

    def preload(self, slots: PrefixSlots) -> None:
        """Start with slots that ``first_slots`` of another request's chain gave.

        They must be of the same first tokens, all text; ``prefill`` is then given the rows after
        them alone.
        """
        for segment, of_segment in zip(self._segments, slots, strict=True):
            segment.preload(of_segment)

    def first_slots(self, num_tokens: int) -> PrefixSlots:
        """Return copies of what the caches hold of the first ``num_tokens``, which are text."""
        return tuple(segment.cache.first_slots(num_tokens) for segment in self._segments)

    def prefill(
        self,
        embeds: NDArray[Any],
        layout: Layout,
        pruning: Pruning | None,
        *,
        planes: NDArray[Any] | None = None,
    ) -> tuple[NDArray[np.float32], list[PrunedStage]]:
        """Run the prompt through all segments, pruning between them.

        Args:
            embeds: [S, D], visual tokens spliced in.
            layout: of the rows given; those pruned before the decoder and those that were
                preloaded are missing.
            pruning: what to keep; None keeps everything.
            planes: [planes, S, D] of DeepStack; None for a decoder without.

        Returns:
            Logits [V] of the next token, and what each stage did.
        """
        every = self._coordinates(layout)
        self.next_position = int(every.max()) + 1
        coordinates = every[:, layout.positions]
        cos, sin = self._tables(coordinates)
        rows = _Rows(
            hidden=self._upload(embeds[None]),
            cos=cos,
            sin=sin,
            layout=layout,
            coordinates=coordinates,
        )
        self._planes = {} if planes is None else self._named_planes(planes)
        stages: list[PrunedStage] = []
        for index, before_layer in enumerate(self._schedule.stages):
            rows, stage = self._prefill_segment(index, rows, pruning, before_layer)
            stages.append(stage)
            self._lags[index + 1] = rows.lag
        logits = self._last_segment(rows)
        zeros = np.zeros((len(self._planes), 1, embeds.shape[-1]), self._dtype)
        self._planes = self._named_planes(zeros)  # new tokens are text
        return logits, stages

    def decode_step(self, embed: NDArray[Any]) -> NDArray[np.float32]:
        """Consume one new token's embedding [D]; returns logits [V] of the one after it.

        Positions go on after the unpruned prompt, as if nothing had been pruned; after a stage
        that numbers its rows anew, they go on after those.
        """
        tables = {
            lag: self._tables(np.array([self.next_position - lag])) for lag in set(self._lags)
        }
        hidden = self._upload(embed[None, None])
        others = {**self._planes, **self._prune_inputs.one_row_passes}
        outputs: dict[str, Tensor] = {}
        for segment, lag in zip(self._segments, self._lags, strict=True):
            outputs = segment.run(hidden, tables[lag], self.next_position, others)
            hidden = outputs.get("kept_hidden_states")  # the last segment ends in logits
        self.next_position += 1
        return self._logits(outputs)

    def _prefill_segment(
        self, index: int, rows: _Rows, pruning: Pruning | None, before_layer: int
    ) -> tuple[_Rows, PrunedStage]:
        layout, segment = rows.layout, self._segments[index]
        with self.watch.stage("prune"):
            plan = self._plan(index, layout, pruning)
            num_leaving = _num_leaving(plan, layout)
            change = 0 if plan is None else plan.quota_change(layout)
            self._check_room(index, num_leaving, segment.graph.limits.max_kept, change)
            prune_inputs = self._stage_inputs(index, plan, rows, num_kept=num_leaving)
        with self.watch.stage(DECODER.format(index)):
            outputs = segment.run(
                rows.hidden, (rows.cos, rows.sin), layout, {**self._planes, **prune_inputs}
            )
            kept = self._backend.download(outputs["kept_indices"])[0]  # waits for the device
        with self.watch.stage("prune"):
            scores = None if plan is None else self._scores(index, outputs, plan, layout)
            survivors = [outputs[n] for n in ("kept_hidden_states", "kept_cos", "kept_sin")]
            if plan is not None and scores is not None and plan.needs_host:
                kept = plan.select(scores, layout)
                survivors = [self._backend.take_rows(tensor, kept) for tensor in survivors]
            next_graph = self._segments[index + 1].graph
            self._check_room(index, len(kept), next_graph.limits.max_rows, change)
            pruned = self._survivors(plan, rows, kept, survivors)
        return pruned, PrunedStage(
            before_layer=before_layer,
            criterion="none" if plan is None or pruning is None else pruning.criterion,
            layout=pruned.layout,
            scores=None if scores is None else scores[layout.is_visual],
            quota_change=change,
        )

    def _stage_inputs(
        self, index: int, plan: StagePlan | None, rows: _Rows, *, num_kept: int
    ) -> dict[str, Tensor]:
        """Return the prune inputs of a stage; without a plan every row passes."""
        if plan is None:
            return self._prune_inputs.all_pass(num_kept)
        return self._prune_inputs.of_plan(
            plan, rows.layout, index=index, coordinates=rows.coordinates, num_kept=num_kept
        )

    def _check_room(self, index: int, num_kept: int, limit: int | None, quota_change: int) -> None:
        """Refuse a stage that keeps more rows than the graphs around it were built for."""
        if limit is None or num_kept <= limit:
            return
        stage = f"the pruning stage before layer {self._schedule.stages[index]}"
        why = f", {quota_change} of them beyond its quota for protected regions"
        raise BackendError(
            f"{stage} keeps {num_kept} rows (text and visual tokens)"
            f"{why if quota_change > 0 else ''}, but the engines here take at most {limit}; "
            f"keep or protect less, shorten the prompt, or build them with a higher "
            f"--max-keep-ratio"
        )

    def _plan(self, index: int, layout: Layout, pruning: Pruning | None) -> StagePlan | None:
        """Return what stage ``index`` shall keep; None lets every row pass."""
        if pruning is None or pruning.criterion == "none":
            return None
        num_stages = len(self._schedule.stages)
        plan = criterion(pruning.criterion).plan(pruning, index, num_stages, layout)
        if plan.resets_positions:
            require_plain(self._manifest)
        return plan

    def _survivors(
        self,
        plan: StagePlan | None,
        rows: _Rows,
        kept: NDArray[np.int64],
        survivors: Sequence[Tensor],
    ) -> _Rows:
        """Return the rows that left a stage, with new rotary tables if it numbers them anew."""
        hidden, cos, sin = survivors
        layout, coordinates, lag = rows.layout.keep(kept), rows.coordinates[:, kept], rows.lag
        if plan is not None and plan.resets_positions:
            coordinates = np.arange(layout.num_rows)[None]
            lag = self.next_position - layout.num_rows
            cos, sin = self._tables(coordinates)
        return _Rows(
            hidden=hidden, cos=cos, sin=sin, layout=layout, coordinates=coordinates, lag=lag
        )

    def _last_segment(self, rows: _Rows) -> NDArray[np.float32]:
        last = len(self._segments) - 1
        with self.watch.stage(DECODER.format(last)):
            outputs = self._segments[last].run(
                rows.hidden, (rows.cos, rows.sin), rows.layout, self._planes
            )
            return self._logits(outputs)

    def _named_planes(self, planes: NDArray[Any]) -> dict[str, Tensor]:
        """Return [planes, S, D] as inputs of the first segment."""
        return {
            DEEPSTACK_EMBEDS.format(number): self._upload(plane[None])
            for number, plane in enumerate(planes)
        }

    def _scores(
        self, index: int, outputs: dict[str, Tensor], plan: StagePlan, layout: Layout
    ) -> NDArray[np.float32] | None:
        if not plan.uses_scores:
            return None
        scores: NDArray[np.float32]
        if plan.value_score is None:
            scores = self._backend.download(outputs["scores"])[0]
        else:
            cache = self._segments[index].cache
            values = self._backend.download(cache.last_values)[0, :, : cache.length]
            scores = plan.value_score(values.astype(np.float32), layout)
        if not np.isfinite(scores).all():
            raise BackendError(
                f"graph decoder_{index} gave {np.count_nonzero(~np.isfinite(scores))} pruning "
                f"scores that are not finite; with fp16 this is an overflow, export with "
                f"--precision fp32"
            )
        return scores

    def _logits(self, outputs: dict[str, Tensor]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self._backend.download(outputs["logits"])[0, -1]
        return logits

    def _coordinates(self, layout: Layout) -> NDArray[np.int64]:
        """Return what turns each row of the unpruned prompt, [axes, rows]."""
        return prompt_coordinates(self._manifest.rotary, layout.num_positions, layout.spans)

    def _tables(self, coordinates: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        cos, sin = rotary_tables(self._manifest.rotary, coordinates)
        return self._upload(cos[None]), self._upload(sin[None])

    def _upload(self, array: NDArray[Any]) -> Tensor:
        return self._backend.upload(np.ascontiguousarray(array, dtype=self._dtype))


def _num_leaving(plan: StagePlan | None, layout: Layout) -> int:
    """Return the rows that leave a graph; all of them where the host finishes the selection."""
    return layout.num_rows if plan is None or plan.needs_host else plan.num_kept(layout)
