from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import feather_edge
from feather_edge.errors import BackendError
from feather_edge.graphs import DecoderShape, decoder_spec, vision_encoder_spec
from feather_edge.pruning.selection import ALWAYS
from feather_edge.runtime.backends import FakeBackend

if TYPE_CHECKING:
    from feather_edge.runtime.backends import Graph

SHAPE = DecoderShape(
    num_layers=2,
    hidden_size=8,
    intermediate_size=16,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    vocab_size=11,
)
NOWHERE = Path("nowhere.onnx")


def open_segment(index: int, *, token_ids: tuple[int, ...] = (3,)) -> Graph:
    spec = decoder_spec(
        index, range(index, index + 1), SHAPE, is_last=index == 1, dtype="float32", opsets=(23,)
    )
    return FakeBackend(token_ids=token_ids).open(NOWHERE, spec)


def segment_inputs(index: int, *, num_rows: int = 5, num_past: int = 0) -> dict[str, np.ndarray]:
    rows = (1, num_rows)
    inputs = {
        "inputs_embeds" if index == 0 else "hidden_states": np.ones((*rows, 8), np.float32),
        "cos": np.ones((*rows, 2), np.float32),
        "sin": np.ones((*rows, 2), np.float32),
        "attention_mask": np.ones((1, 1, num_rows, num_past + num_rows), np.bool_),
        f"past_key_values.{index}.key": np.zeros((1, 1, num_past, 4), np.float32),
        f"past_key_values.{index}.value": np.zeros((1, 1, num_past, 4), np.float32),
    }
    if index == 0:
        inputs |= {
            "prune_priority": np.zeros(rows, np.float32),
            "score_cos": np.ones((*rows, 2), np.float32),
            "score_sin": np.zeros((*rows, 2), np.float32),
            "score_mask": np.zeros(rows, np.float32),
            "num_kept": np.array([num_rows]),
        }
    return inputs


def test_is_public() -> None:
    assert feather_edge.FakeBackend is FakeBackend


def test_needs_an_answer() -> None:
    with pytest.raises(BackendError, match="needs at least one token id to answer with"):
        FakeBackend(token_ids=[])


def test_answers_in_order_over_and_over() -> None:
    graph = open_segment(1, token_ids=(7, 2))

    answers = [int(graph.run(segment_inputs(1))["logits"].argmax()) for _ in range(5)]

    assert answers == [7, 2, 7, 2, 7]


def test_outputs_have_the_shapes_of_the_contract() -> None:
    outputs = open_segment(1).run(segment_inputs(1, num_rows=1, num_past=6))

    assert outputs["logits"].shape == (1, 1, 11)
    assert outputs["present.1.key"].shape == (1, 1, 7, 4)
    assert outputs["present.1.value"].dtype == np.float32


def test_prunes_by_priority_as_a_graph_does() -> None:
    inputs = segment_inputs(0)
    inputs["prune_priority"] = np.array([[0, ALWAYS, 0, ALWAYS, 0]], np.float32)
    inputs["num_kept"] = np.array([3])

    outputs = open_segment(0).run(inputs)

    assert outputs["kept_indices"].tolist() == [[0, 1, 3]]
    assert outputs["kept_hidden_states"].shape == (1, 3, 8)
    assert outputs["kept_cos"].shape == (1, 3, 2)
    assert outputs["present.0.key"].shape == (1, 1, 5, 4)
    assert outputs["scores"].tolist() == [[0] * 5]


def test_batch_entries_are_pruned_each() -> None:
    inputs = {n: np.concatenate([v, v]) for n, v in segment_inputs(0).items() if n != "num_kept"}
    inputs["prune_priority"][1, 4] = ALWAYS
    inputs["num_kept"] = np.array([2])

    outputs = open_segment(0).run(inputs)

    assert outputs["kept_indices"].tolist() == [[0, 1], [0, 4]]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("cos", None, "graph decoder_0 misses input cos"),
        (
            "cos",
            np.ones((1, 5, 3), np.float32),
            r"decoder_0 got cos as float32 \[1, 5, 3\], but takes float32 .*'sequence', 2\]",
        ),
        ("sin", np.ones((1, 4, 2), np.float32), r"got sin as float32 \[1, 4, 2\]"),
        ("sin", np.ones((1, 5, 2), np.float16), r"got sin as float16 \[1, 5, 2\]"),
        ("cos", np.ones((5, 2), np.float32), r"got cos as float32 \[5, 2\]"),
        ("attention_mask", np.ones((1, 1, 4, 5), np.bool_), "got attention_mask as bool"),
        ("num_kept", np.array([2, 3]), r"got num_kept as int64 \[2\], but takes int64 \[1\]"),
    ],
)
def test_broken_contract(name: str, value: np.ndarray | None, message: str) -> None:
    inputs = segment_inputs(0)
    if value is None:
        del inputs[name]
    else:
        inputs[name] = value

    with pytest.raises(BackendError, match=message):
        open_segment(0).run(inputs)


def test_image_features_fit_any_number_of_images() -> None:
    spec = vision_encoder_spec(
        num_channels=3, image_size=(4, 4), hidden_size=8, dtype="float32", opsets=(23,)
    )
    graph = FakeBackend(token_ids=[1]).open(NOWHERE, spec)

    features = graph.run({"pixel_values": np.zeros((3, 3, 4, 4), np.float32)})["image_features"]

    embeds = np.ones((50, 8), np.float32)
    embeds[:48] = features
    assert not embeds[:48].any()


def test_upload_and_download_are_the_array_itself() -> None:
    backend = FakeBackend(token_ids=[1])
    array = np.arange(4)

    assert backend.download(backend.upload(array)) is array
    assert (backend.name, backend.device) == ("fake", "cpu")
