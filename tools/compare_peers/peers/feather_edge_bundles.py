"""Feather-edge itself: bundles of three precisions, on three backends, unpruned and pruned.

Not `int8-dynamic` on OpenVINO, which multiplies its codes as float32: slower than float32 itself.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

from compare_peers.contenders import Environment, Precision, Row

ROOT = Path(__file__).parents[3]
ENVIRONMENT = Environment(
    name="feather-edge",
    packages=("onnxruntime==1.32.0", "openvino==2026.4.1", "pillow==13.0.0", f"-e{ROOT}"),
)
KEEP_RATIO = 0.3
BLOCK_SIZE = 128
"""Of `int8`: within 1 % of fp32, and the fastest; docs/precision.md."""
VARIANTS: dict[str, Precision] = {
    "fp32 onnxruntime": "32",
    "fp32 openvino": "32",
    "fp32 openvino-bf16": "16",
    "int8 onnxruntime": "8",
    "int8 openvino": "8",
    "int8 openvino-bf16": "8",
    "int8-dynamic onnxruntime": "8",
}
ROWS = tuple(
    Row(
        name=f"feather-edge {variant.replace(' ', ', ')}{', FEATHER' if keep_ratio else ''}",
        variant=variant,
        precision=bits,
        keep_ratio=keep_ratio,
        is_ours=True,
    )
    for (variant, bits), keep_ratio in itertools.product(VARIANTS.items(), (None, KEEP_RATIO))
)


def prepare(checkpoint: Path, folder: Path, variant: str) -> None:
    """Export with the paper's stages, the default."""
    from feather_edge.export.pipeline import export
    from feather_edge.recipes import load_recipe, override

    precision = variant.partition(" ")[0]
    recipe = override(
        load_recipe("feather"), precision=precision, block_size=BLOCK_SIZE, opset="23"
    )
    export(checkpoint, folder, recipe)


class Contender:
    """A session."""

    def __init__(self, checkpoint: Path, folder: Path, variant: str, num_threads: int) -> None:
        from feather_edge import Session

        del checkpoint
        backend = variant.partition(" ")[2]
        self._session = Session.open(folder, backend=backend, num_threads=num_threads)
        self.facts = {"load_ms": self._session.load_ms, "backend": backend}

    def answer(
        self, image: str, question: str, max_new_tokens: int, keep_ratio: float | None
    ) -> dict[str, Any]:
        """Answer one question; see ``runner.Answer`` for what it returns."""
        from PIL import Image

        from feather_edge import Pruning

        if keep_ratio is None:
            pruning = Pruning(criterion="none")
        else:
            pruning = Pruning(criterion="feather", keep_ratio=(keep_ratio,))
        picture = Image.open(image).convert("RGB")
        start_s = time.perf_counter()
        tokens = self._session.stream(
            picture, question, pruning=pruning, max_new_tokens=max_new_tokens
        )
        next(tokens)
        ttft_ms = (time.perf_counter() - start_s) * 1e3
        for _ in tokens:
            pass
        result = self._session.last_result
        assert result is not None  # noqa: S101 - the stream has just ended
        return {
            "token_ids": list(result.token_ids),
            "num_prompt_tokens": result.num_prompt_tokens,
            "num_visual_tokens": result.num_visual_tokens,
            "num_kept": [stage.num_kept for stage in result.stages] if keep_ratio else None,
            "vision_ms": result.preprocess_ms + result.vision_ms,
            "prefill_ms": result.prefill_ms,
            "ttft_ms": ttft_ms,
            "tpot_ms": result.tpot_ms,
        }
