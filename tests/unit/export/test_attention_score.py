"""The score as nodes, against the score in numpy."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from feather_edge.checkpoint.text_config import text_config
from feather_edge.export.blocks.decoder import attention_score
from feather_edge.export.builder import GraphBuilder
from feather_edge.export.dialects import DIALECTS
from feather_edge.export.precision import GraphPrecision
from feather_edge.graphs import GraphSpec, TensorSpec
from feather_edge.manifest import Rotary
from feather_edge.pruning import Layout, VisualSpan
from feather_edge.pruning.scores import attention_scores, score_mask
from feather_edge.runtime.rotary import rotary_tables

if TYPE_CHECKING:
    from feather_edge.graphs import DType

HEADS, HEAD_DIM, NUM_ROWS = 4, 8, 40
LAYOUT = Layout.full(NUM_ROWS, [VisualSpan(start=3, height=5, width=6)])


@cache
def score_session(kv_heads: int, dtype: DType, opset: int) -> onnxruntime.InferenceSession:
    text = text_config(
        {
            "text_config": {
                "model_type": "llama",
                "hidden_size": HEADS * HEAD_DIM,
                "num_attention_heads": HEADS,
                "num_key_value_heads": kv_heads,
            }
        }
    )
    tables = ("batch", "sequence", HEAD_DIM // 2)
    rows = ("batch", "sequence")
    spec = GraphSpec(
        name="score",
        forms=(),
        inputs=(
            TensorSpec(name="query", dtype=dtype, shape=("batch", HEADS, "sequence", HEAD_DIM)),
            TensorSpec(name="key", dtype=dtype, shape=("batch", kv_heads, "sequence", HEAD_DIM)),
            TensorSpec(name="score_cos", dtype="float32", shape=tables),
            TensorSpec(name="score_sin", dtype="float32", shape=tables),
            TensorSpec(name="score_mask", dtype="float32", shape=rows),
        ),
        outputs=(TensorSpec(name="scores", dtype="float32", shape=rows),),
    )
    g = GraphBuilder(spec, None, precision=GraphPrecision(dtype=dtype), dialect=DIALECTS[opset])
    scores = attention_score(g, g.inputs["query"], g.inputs["key"], text)
    return onnxruntime.InferenceSession(
        ir.to_proto(g.model({"scores": scores})).SerializeToString(),
        providers=["CPUExecutionProvider"],
    )


@pytest.mark.parametrize("opset", list(DIALECTS))
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("domain", ["visual", "sequence"])
@pytest.mark.parametrize("rotation", ["none", "rotary"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_graph_computes_the_numpy_score(
    kv_heads: int, rotation: str, domain: str, dtype: DType, opset: int
) -> None:
    rng = np.random.default_rng(kv_heads)
    layouts = [LAYOUT, LAYOUT.keep(np.r_[0:3, np.arange(3, 33, 2), 33:40])]
    for layout in layouts:
        queries = rng.standard_normal((HEADS, layout.num_rows, HEAD_DIM)).astype(dtype)
        keys = (2 * rng.standard_normal((kv_heads, layout.num_rows, HEAD_DIM))).astype(dtype)
        cos, sin = rotary_tables(Rotary(head_dim=HEAD_DIM, theta=10000.0), layout.positions)
        if rotation == "none":
            cos, sin = np.ones_like(cos), np.zeros_like(sin)
        mask = score_mask(layout, domain)
        feeds = {
            "query": queries[None],
            "key": keys[None],
            "score_cos": cos[None],
            "score_sin": sin[None],
            "score_mask": mask[None],
        }

        (scores,) = score_session(kv_heads, dtype, opset).run(["scores"], feeds)

        expected = attention_scores(queries, keys, cos, sin, mask)
        np.testing.assert_allclose(scores[0], expected, atol=2e-6, rtol=1e-5)
        assert scores.dtype == np.float32
        if domain == "visual":
            assert not scores[0, ~layout.is_visual].any()


def test_batch_rows_do_not_mix() -> None:
    rng = np.random.default_rng(0)
    shape = (2, HEADS, 12, HEAD_DIM)
    feeds = {
        "query": rng.standard_normal(shape).astype(np.float32),
        "key": rng.standard_normal(shape).astype(np.float32),
        "score_cos": rng.standard_normal((2, 12, HEAD_DIM // 2)).astype(np.float32),
        "score_sin": rng.standard_normal((2, 12, HEAD_DIM // 2)).astype(np.float32),
        "score_mask": rng.standard_normal((2, 12)).astype(np.float32),
    }
    session = score_session(HEADS, "float32", 23)

    (both,) = session.run(["scores"], feeds)
    alone = [
        session.run(["scores"], {name: value[b : b + 1] for name, value in feeds.items()})[0]
        for b in range(2)
    ]

    np.testing.assert_allclose(both, np.concatenate(alone), atol=1e-6)
