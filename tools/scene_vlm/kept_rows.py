"""Where the tokens lie that attention would keep, before every decoder layer.

    python tools/scene_vlm/kept_rows.py FOLDER

Prints how far down the picture they are, and how many of the tokens of the object that was asked
for are among them. FOLDER is a checkpoint of either recipe. Scores are those of a stage before
layer K: layer K-1's own weights on its own input, the last prompt token as the query, mean over
heads. 0 is the top row, 1 the bottom, and 0.5 no preference. Questions for a place, on
development scenes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from evaluate import prepare
from transformers import AutoProcessor, LlavaForConditionalGeneration
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from feather_edge.evaluate.scenes import IMAGE_SIZE_PX, NUM_PATCHES_PER_SIDE, unseen_scenes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from feather_edge.images.geometry import Box

_TOKENS = torch.arange(NUM_PATCHES_PER_SIDE**2)
_ROWS, _COLUMNS = _TOKENS // NUM_PATCHES_PER_SIDE, _TOKENS % NUM_PATCHES_PER_SIDE
_PATCH_PX = IMAGE_SIZE_PX / NUM_PATCHES_PER_SIDE
SCORES = ("rope, image softmax", "rope, full softmax", "rope-free, image softmax")


def kept_tokens(scores: torch.Tensor, keep_ratio: float) -> torch.Tensor:
    """Return the indices of the best-scored share of the tokens [196]."""
    return scores.topk(int(keep_ratio * len(scores))).indices


def mean_row(kept: torch.Tensor) -> float:
    """Return the mean row of some tokens, 0 to 1."""
    return float(_ROWS[kept].float().mean()) / (NUM_PATCHES_PER_SIDE - 1)


def object_share(kept: torch.Tensor, box: Box) -> float:
    """Return how many of the tokens whose centre lies in a box, in pixels, are among some."""
    left, top, right, bottom = (side / _PATCH_PX - 0.5 for side in box)
    inside = (left <= _COLUMNS) & (right >= _COLUMNS) & (top <= _ROWS) & (bottom >= _ROWS)
    return float(inside[kept].sum() / inside.sum())


def layer_scores(
    layer: torch.nn.Module, normed: torch.Tensor, rotary: tuple[torch.Tensor, ...], first: int
) -> dict[str, torch.Tensor]:
    """Return the scores of the visual tokens [196] by the three rules.

    Args:
        layer: a Llama decoder layer.
        normed: [n, D], its input after its norm; the last row is the query's.
        rotary: cosine and sine, [1, n, d] each.
        first: position of the first visual token.
    """
    attention = layer.self_attn
    heads = (1, len(normed), -1, attention.head_dim)
    query = attention.q_proj(normed).view(heads).transpose(1, 2)
    key = attention.k_proj(normed).view(heads).transpose(1, 2)
    turned_query, turned_key = apply_rotary_pos_emb(query, key, *rotary)
    image = slice(first, first + len(_ROWS))

    def products(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        return (q[0, :, -1:] @ k[0].transpose(-1, -2))[:, 0] * attention.scaling

    turned, plain = products(turned_query, turned_key), products(query, key)
    whole = (
        turned[:, image].softmax(-1),
        turned.softmax(-1)[:, image],
        plain[:, image].softmax(-1),
    )
    return {name: item.mean(0) for name, item in zip(SCORES, whole, strict=True)}


@torch.inference_mode()
def depth_scores(
    model: LlavaForConditionalGeneration, inputs: dict[str, Any]
) -> list[dict[str, torch.Tensor]]:
    """Return the scores of the visual tokens [196] before layers 1, 2, ..., for one prompt."""
    decoder = model.model.language_model
    seen: list[torch.Tensor] = []
    hooks = [
        layer.input_layernorm.register_forward_hook(lambda *call: seen.append(call[2][0]))
        for layer in decoder.layers
    ]
    model(**inputs, logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    is_image = inputs["input_ids"][0] == model.config.image_token_index
    first = int(is_image.nonzero()[0])
    rotary = decoder.rotary_emb(seen[0][None], torch.arange(len(is_image))[None])
    # The last layer's scores could only prune after it.
    return [
        layer_scores(layer, normed, rotary, first)
        for layer, normed in zip(decoder.layers[:-1], seen, strict=False)
    ]


def prompts(processor: Any, num_scenes: int) -> Iterator[tuple[dict[str, Any], Box]]:
    """Yield the inputs of one question for a place about each development scene, and its box."""
    for scene, questions in unseen_scenes("development", num_scenes):
        for question in questions:
            if question.box is not None:
                yield prepare(processor, [(scene.image, question.text)]), question.box


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptTokens:
    """What is kept before layers 1, 2, ... by each rule, over a number of prompts.

    Attributes:
        num_prompts: questions for a place.
        rows: mean row of the kept tokens, 0 to 1.
        object_shares: mean share of the tokens of the object in question that are kept.
    """

    num_prompts: int
    rows: dict[str, list[float]]
    object_shares: dict[str, list[float]]


def measure(checkpoint: Path, *, num_scenes: int, keep_ratio: float) -> KeptTokens:
    """Return where the tokens lie that each rule keeps of a checkpoint's prompts."""
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    # [prompts, layers, rows and shares] by rule.
    found: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in SCORES}
    for inputs, box in prompts(processor, num_scenes):
        depths = depth_scores(model, inputs)
        for name in SCORES:
            kept = [kept_tokens(scores[name], keep_ratio) for scores in depths]
            found[name].append([(mean_row(each), object_share(each, box)) for each in kept])
    means = {name: np.mean(items, axis=0).round(3) for name, items in found.items()}
    return KeptTokens(
        num_prompts=len(found[SCORES[0]]),
        rows={name: mean[:, 0].tolist() for name, mean in means.items()},
        object_shares={name: mean[:, 1].tolist() for name, mean in means.items()},
    )


def main() -> None:
    """Parse options, measure, print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--num-scenes", type=int, default=100)
    parser.add_argument("--keep-ratio", type=float, default=0.25)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = measure(
        options.checkpoint, num_scenes=options.num_scenes, keep_ratio=options.keep_ratio
    )
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
