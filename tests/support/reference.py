"""A pruned run of a VLM on transformers' own modules: the reference of the parity tests.

``ReferenceVlm`` is the whole of it for LLaVA; other families override what they do otherwise. It
shares no code with the package. Decoder layers of transformers run one by one, eager attention,
float32; hooks catch the queries and keys before rotary embedding; between layers the reference
itself drops hidden states, positions and masks. Slow and obvious.

Letters: S rows still alive, V visual tokens of the prompt, D width, H query heads, Dh head width.
"""

from __future__ import annotations

import math
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
import transformers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np

__all__ = [
    "ReferencePruning",
    "ReferenceRows",
    "ReferenceRun",
    "ReferenceStage",
    "ReferenceVlm",
]


@dataclass(frozen=True, kw_only=True)
class ReferencePruning:
    """What to prune, in the paper's terms.

    Attributes:
        stages: decoder layers before which tokens are dropped.
        pre_kept: visual tokens that enter the decoder; None for all.
        keep_ratio: 1 - R. One value is the method's own parameter, several are shares of V.
    """

    method: Literal[
        "feather", "fastv", "fastv-full", "pyramiddrop", "pyramiddrop-reset", "ivc", "ivc-value"
    ] = "feather"
    selection: Literal["fill", "union"] = "fill"
    stages: tuple[int, ...]
    keep_ratio: tuple[float, ...] = (0.3,)
    stride: int = 3
    pre_kept: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ReferenceStage:
    """What one stage kept.

    Attributes:
        kept: ascending indices into the prompt's visual tokens.
        scores: score of every visual token that entered the stage, by its index.
        cut_gap: smallest difference in score, over the images, between the last token that was
            kept for its rank and the first that was dropped; infinite if none was dropped.
    """

    before_layer: int
    kept: list[int]
    scores: dict[int, float]
    cut_gap: float


@dataclass(kw_only=True)
class ReferenceRun:
    """Greedy tokens, the logits [V] each was chosen from, and the stages of the prefill."""

    token_ids: list[int] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)
    stages: list[ReferenceStage] = field(default_factory=list)


@dataclass(kw_only=True)
class ReferenceRows:
    """Rows alive: hidden [1,S,D], positions [1,S] of the rotary embedding, visual index or -1.

    ``positions`` are those in the prompt, unless rows are numbered anew.
    """

    hidden: torch.Tensor
    positions: torch.Tensor
    visual: torch.Tensor


class ReferenceVlm:
    """A checkpoint in float32, run layer by layer.

    Attributes:
        picture_inputs: what of the processor's output is of pictures.
    """

    picture_inputs: tuple[str, ...] = ("pixel_values",)

    def __init__(self, folder: Path) -> None:
        self.model = transformers.AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.processor = self.load_processor(folder)
        self.decoder = self.model.get_decoder()

    def load_processor(self, folder: Path) -> Any:
        """Return the checkpoint's own processor."""
        return transformers.AutoProcessor.from_pretrained(folder)

    def grids(self, inputs: dict[str, torch.Tensor]) -> list[tuple[int, int]]:
        """Return (height, width) of each raster of visual tokens, in the order of the prompt."""
        config = self.model.config.vision_config
        side = config.image_size // config.patch_size
        return [(side, side)] * len(inputs.get("pixel_values", ()))

    def prepare(self, images: list[Any], prompt: str) -> dict[str, torch.Tensor]:
        """Return input_ids [1,S] and, with images, pixel_values [N,3,H,W] of one user turn."""
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": prompt}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        has_bos = text.startswith(self.processor.tokenizer.bos_token or "\0")
        return dict(
            self.processor(
                images=[images] if images else None,
                text=text,
                return_tensors="pt",
                add_special_tokens=not has_bos,
            )
        )

    def encoder_calls(self, inputs: dict[str, torch.Tensor]) -> list[dict[str, np.ndarray]]:
        """Return, of the processor's output, what the vision graph takes in each of its calls."""
        return [{"pixel_values": inputs["pixel_values"].numpy()}]

    def changed_features(
        self, before: dict[str, np.ndarray], after: dict[str, np.ndarray]
    ) -> np.ndarray:
        """Return which rows of the graph's ``image_features`` see pixels that differ."""
        differ = (before["pixel_values"] != after["pixel_values"]).any(axis=1)  # [N,H,W]
        number, height, width = differ.shape
        side = self.token_side
        rows, columns = height // side, width // side
        seen = differ[:, : rows * side, : columns * side]
        return seen.reshape(number, rows, side, columns, side).any(axis=(2, 4)).ravel()

    @property
    def token_side(self) -> int:
        """Side in pixels of the square that one visual token is made of."""
        return int(self.model.config.vision_config.patch_size)

    @torch.no_grad()
    def run(
        self,
        inputs: dict[str, torch.Tensor],
        pruning: ReferencePruning | None,
        *,
        max_new_tokens: int,
        stop_at_end: bool = True,
    ) -> ReferenceRun:
        """Prefill with pruning, then decode greedily; the end token is not part of the answer."""
        run = ReferenceRun()
        self._slots: dict[int, torch.Tensor] = {}
        cache = transformers.DynamicCache()
        rows = self.embed(inputs)
        length = rows.hidden.shape[1]
        grids = self.grids(inputs)
        visual_positions = rows.positions[0, rows.visual >= 0]
        rasters = list(
            zip(grids, visual_positions.split([math.prod(grid) for grid in grids]), strict=True)
        )
        if pruning is not None and pruning.pre_kept is not None:
            rows = _only(rows, set(pruning.pre_kept))
        captured: dict[str, torch.Tensor] = {}
        drops = dict.fromkeys(range(len(self.decoder.layers)), 0)
        for layer in range(len(self.decoder.layers)):
            if pruning is not None and layer in pruning.stages:
                before = rows.hidden.shape[1]
                rows, stage = self._prune(rows, captured, pruning, layer, rasters)
                run.stages.append(stage)
                if pruning.method == "pyramiddrop-reset":
                    if layer == min(pruning.stages):  # what never entered is not counted either
                        before = length
                    rows.positions = torch.arange(rows.hidden.shape[1])[None]
                    for later in range(layer, len(drops)):
                        drops[later] += before - rows.hidden.shape[1]
            with self._captured_projections(layer) as captured:
                rows.hidden = self._layer(layer, rows.hidden, rows.positions, cache)
        run.logits.append(self._logits(rows.hidden))
        end = self.model.generation_config.eos_token_id if stop_at_end else None
        while (token := int(run.logits[-1].argmax())) != end:
            run.token_ids.append(token)
            if len(run.token_ids) == max_new_tokens:
                break
            # As if nothing had been pruned, except where a stage has numbered its rows anew.
            position = length + len(run.token_ids) - 1
            run.logits.append(self._decode(token, position, cache, drops))
        return run

    def image_features(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return what the model puts in the place of the image placeholders, a row [D] each."""
        return torch.cat(self.features_by_picture(inputs))

    def features_by_picture(self, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """Return ``image_features``, picture by picture."""
        given = {name: inputs[name] for name in self.picture_inputs}
        return list(self.model.model.get_image_features(**given).pooler_output)

    def is_visual(self, features: torch.Tensor) -> torch.Tensor:
        """Return which image placeholders [placeholders] are visual tokens: newlines are not."""
        return torch.ones(len(features), dtype=torch.bool)

    @torch.no_grad()
    def embed(self, inputs: dict[str, torch.Tensor]) -> ReferenceRows:
        """Return the prompt's embeddings, visual tokens in their places."""
        ids = inputs["input_ids"]
        embeds = self.model.get_input_embeddings()(ids)
        is_visual = ids[0] == self.model.config.image_token_id
        if "pixel_values" in inputs:
            features = self.image_features(inputs)
            embeds[0, is_visual] = features
            is_visual[is_visual.clone()] = self.is_visual(features)
        visual = torch.where(is_visual, is_visual.cumsum(0) - 1, -1)
        return ReferenceRows(
            hidden=embeds, positions=torch.arange(ids.shape[1])[None], visual=visual
        )

    def rotary(
        self, hidden: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the decoder's cos and sin [1,S,Dh] of rows at ``positions`` [1,S]."""
        return self.decoder.rotary_emb(hidden, position_ids=positions)

    def angles(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the rotary angles [n,Dh/2] of ``positions`` [n]."""
        return positions[:, None] * self.decoder.rotary_emb.inv_freq.double()

    def visible(self, layer: int, positions: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Return which slots [T], of the positions ``slots``, rows at ``positions`` [S] see."""
        return slots[None, :] <= positions[:, None]

    def _layer(
        self, layer: int, hidden: torch.Tensor, positions: torch.Tensor, cache: Any
    ) -> torch.Tensor:
        slots = torch.cat([self._slots.pop(layer, positions[0, :0]), positions[0]])
        self._slots[layer] = slots
        visible = self.visible(layer, positions[0], slots)
        mask = torch.where(visible, 0.0, torch.finfo(torch.float32).min)[None, None]
        output = self.decoder.layers[layer](
            hidden,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            position_embeddings=self.rotary(hidden, positions),
        )
        return output[0] if isinstance(output, tuple) else output

    def _logits(self, hidden: torch.Tensor) -> np.ndarray:
        return self.model.lm_head(self.decoder.norm(hidden[:, -1:]))[0, -1].numpy()

    def _decode(self, token: int, position: int, cache: Any, drops: dict[int, int]) -> np.ndarray:
        hidden = self.model.get_input_embeddings()(torch.tensor([[token]]))
        for layer in range(len(self.decoder.layers)):
            positions = torch.tensor([[position - drops[layer]]])
            hidden = self._layer(layer, hidden, positions, cache)
        return self._logits(hidden)

    @contextmanager
    def _captured_projections(self, layer: int) -> Iterator[dict[str, torch.Tensor]]:
        """Catch queries and keys before rotary embedding, and values, [S, heads * Dh]."""
        captured: dict[str, torch.Tensor] = {}
        attention = self.decoder.layers[layer].self_attn
        last = "norm" if hasattr(attention, "q_norm") else "proj"
        hooks = [
            getattr(attention, f"{part}_{kind}").register_forward_hook(
                lambda _module, _args, output, part=part: captured.__setitem__(
                    part, output[0].flatten(1)
                )
            )
            for part, kind in (("q", last), ("k", last), ("v", "proj"))
        ]
        yield captured
        for hook in hooks:
            hook.remove()

    def _scores(
        self, rows: ReferenceRows, captured: dict[str, torch.Tensor], method: str, layer: int
    ) -> torch.Tensor:
        """Attention [S] of the last row, mean over heads; zero where the softmax does not look."""
        attention = self.decoder.layers[layer].self_attn
        query, key = (
            captured[part].unflatten(-1, (-1, attention.head_dim)).transpose(0, 1) for part in "qk"
        )
        if method not in {"feather", "ivc"}:
            rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
            cos, sin = self.rotary(rows.hidden, rows.positions)
            query, key = (x[0] for x in rotate(query[None], key[None], cos, sin))
        key = key.repeat_interleave(len(query) // len(key), dim=0)
        domain = torch.arange(len(rows.visual))
        if method not in {"fastv-full", "pyramiddrop", "pyramiddrop-reset"}:
            domain = domain[rows.visual >= 0]
        logits = (key[:, domain] @ query[:, -1, :, None])[..., 0] * attention.scaling
        if cap := getattr(attention, "attn_logit_softcapping", None):
            logits = cap * (logits / cap).tanh()
        scores = torch.zeros(len(rows.visual))
        scores[domain] = logits.softmax(dim=-1).mean(dim=0)
        return scores

    def _value_scores(
        self, values: torch.Tensor, visual: list[int], grids: list[tuple[int, int]]
    ) -> torch.Tensor:
        """Likeness [S] of values [Hkv,S,Dh]: text after the pictures asks, then its favourites."""
        last = max(row for row, token in enumerate(visual) if token >= 0)
        text = range(last + 1, len(visual))
        scores = torch.zeros(len(visual))
        first = 0
        for grid in grids:
            tokens = range(first, first := first + math.prod(grid))
            alive = [row for row, token in enumerate(visual) if token in tokens]

            def asks(row: int, alive: list[int] = alive) -> torch.Tensor:
                heads = [
                    (head[alive] @ head[row] / math.sqrt(head.shape[-1])).softmax(dim=0)
                    for head in values
                ]
                return torch.stack(heads).mean(dim=0)

            found = [asks(row) for row in text]
            likest = torch.stack(found).mean(dim=0).topk(max(1, len(alive) // 100)).indices
            found += [asks(alive[place]) for place in likest]
            scores[alive] = torch.stack(found).mean(dim=0)
            scores[[alive[place] for place in likest]] += 1
        return scores

    def _prune(
        self,
        rows: ReferenceRows,
        captured: dict[str, torch.Tensor],
        pruning: ReferencePruning,
        layer: int,
        rasters: list[tuple[tuple[int, int], torch.Tensor]],
    ) -> tuple[ReferenceRows, ReferenceStage]:
        """Prune before ``layer``; of each raster its grid, and the positions of its tokens."""
        if pruning.method == "ivc-value":
            heads = len(captured["v"]), -1, self.decoder.layers[0].self_attn.head_dim
            values = captured["v"].reshape(heads).transpose(0, 1)
            grids = [grid for grid, _ in rasters]
            by_row = self._value_scores(values, rows.visual.tolist(), grids)
        else:
            by_row = self._scores(rows, captured, pruning.method, layer - 1)
        scores = {int(v): float(s) for v, s in zip(rows.visual, by_row, strict=True) if v >= 0}
        kept: list[int] = []
        gaps, first = [math.inf], 0
        for grid, positions in rasters:
            total = math.prod(grid)
            alive = {v - first: s for v, s in scores.items() if first <= v < first + total}
            stage_index = pruning.stages.index(layer)
            chosen, gap = self._choose(alive, pruning, stage_index, positions, grid)
            kept += [first + place for place in chosen]
            gaps.append(gap)
            first += total
        stage = ReferenceStage(
            before_layer=layer, kept=sorted(kept), scores=scores, cut_gap=min(gaps)
        )
        return _only(rows, set(kept)), stage

    def _choose(
        self,
        alive: dict[int, float],
        pruning: ReferencePruning,
        stage: int,
        positions: torch.Tensor,
        grid: tuple[int, int],
    ) -> tuple[list[int], float]:
        """Choose among one raster's tokens, place -> score; return places and the gap.

        The raster's tokens are at ``positions`` of the prompt.
        """
        width, total = grid[1], math.prod(grid)
        ratios = pruning.keep_ratio
        ratio = ratios[0] if len(ratios) == 1 else ratios[stage]
        if pruning.method.startswith("pyramiddrop") and len(ratios) == 1:
            ratio **= stage + 1
        count = max(1, math.floor(ratio * total + 1e-6))
        if pruning.method in {"ivc", "ivc-value"}:
            coordinates = self._coordinates(positions) & alive.keys()
            return _best_with(coordinates, alive, min(count, len(alive)))
        if pruning.method != "feather":
            return _best(alive, min(count, len(alive)))
        if stage > 0:
            if len(ratios) == 1:
                count = max(1, math.floor(ratio**2 * len(alive) + 1e-6))
            return _best(alive, min(count, len(alive)))
        step = pruning.stride
        uniform = {
            place for place in range(total)
            if step and place // width % step == 0 and place % width % step == 0
        }  # fmt: skip
        if pruning.selection == "union":
            best, gap = _best(alive, count)
            return sorted({*best, *uniform}), gap
        if len(ratios) == 1:  # as many as the union has on average
            count = min(total, round(count + len(uniform) * (1 - count / total)))
        return _best_with(uniform, alive, count)

    def _coordinates(self, positions: torch.Tensor) -> set[int]:
        """Return places whose position has the largest sums of cosines or of sines."""
        angles = self.angles(positions)
        tenth = max(1, len(positions) // 10)
        return {
            int(place)
            for sums in (angles.cos().sum(1), angles.sin().sum(1))
            for place in sums.topk(tenth).indices
        }


def _only(rows: ReferenceRows, kept: set[int]) -> ReferenceRows:
    """Return text and the visual tokens ``kept``."""
    keep_rows = [row for row, v in enumerate(rows.visual.tolist()) if v < 0 or v in kept]
    return ReferenceRows(
        hidden=rows.hidden[:, keep_rows],
        positions=rows.positions[:, keep_rows],
        visual=rows.visual[keep_rows],
    )


def _best_with(first: set[int], alive: dict[int, float], count: int) -> tuple[list[int], float]:
    """Return ``count`` places, those of ``first`` before all others, and the gap at the cut."""
    if count <= len(first):
        return _best({place: alive[place] for place in first}, count)
    rest = {place: score for place, score in alive.items() if place not in first}
    best, gap = _best(rest, count - len(first))
    return sorted({*best, *first}), gap


def _best(scores: dict[int, float], count: int) -> tuple[list[int], float]:
    """Return the ``count`` best places, ascending, and how much better the last one is."""
    order = sorted(scores, key=lambda place: (-scores[place], place))
    if count >= len(order):
        return sorted(order), math.inf
    return sorted(order[:count]), scores[order[count - 1]] - scores[order[count]]
