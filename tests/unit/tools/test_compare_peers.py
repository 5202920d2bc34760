"""The pure parts of the comparison with the peers: turns, figures, the report, its checkpoints."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from compare_peers import questions
from compare_peers.checkpoints import write_checkpoint
from compare_peers.contenders import Row
from compare_peers.models import Decoder, Model
from compare_peers.prompts import TEMPLATES
from compare_peers.report import model_report
from compare_peers.runner import Answer, PeerError, Worker, measure, turns
from compare_peers.summary import agreement, bars, fastest, median, ratio

if TYPE_CHECKING:
    from pathlib import Path

PEER = Row(name="peer", variant="a", precision="32")
RIVAL = Row(name="rival", variant="a", precision="32", keep_ratio=0.25)
OURS = Row(name="ours", variant="b", precision="32", is_ours=True)
PRUNED = Row(name="pruned", variant="b", precision="32", keep_ratio=0.3, is_ours=True)
ROWS = [PEER, RIVAL, OURS, PRUNED]


def _answers(
    ttft_ms: list[float], tpot_ms: float = 10.0, token_ids: list[int] | None = None
) -> list[Answer]:
    return [
        Answer(
            token_ids=token_ids or [1, 2, 3, 4],
            num_prompt_tokens=9,
            ttft_ms=each,
            tpot_ms=tpot_ms,
            vision_ms=None,
        )
        for each in ttft_ms
    ]


def test_every_round_asks_every_row_once_and_starts_one_further():
    order = turns(ROWS, 5)
    rounds = [[row.name for at, row in order if at == number] for number in range(5)]
    assert rounds[0] == ["peer", "rival", "ours", "pruned"]
    assert rounds[1] == ["rival", "ours", "pruned", "peer"]
    assert rounds[4] == rounds[0]
    assert [number for number, _ in order] == sorted(number for number, _ in order)
    assert turns([], 3) == []


def test_ratio_is_of_answers_of_the_same_round():
    slow, fast = _answers([10.0, 20.0, 60.0]), _answers([5.0, 20.0, 20.0])
    assert ratio(slow, fast, "ttft_ms") == 2.0  # not 20 / 20, that of the medians
    assert median(slow, "ttft_ms") == 20.0
    assert median(slow, "vision_ms") is None


def test_fastest_leaves_out_rows_without_answers():
    answers = {"peer": _answers([30.0]), "ours": _answers([20.0]), "rival": []}
    row = fastest(ROWS, answers, "ttft_ms")
    assert row is OURS
    assert fastest([RIVAL], answers, "ttft_ms") is None


def test_agreement_counts_tokens_up_to_the_first_that_differs():
    answers = {
        "peer": _answers([1.0, 1.0]),
        "same": _answers([1.0, 1.0]),
        "other": _answers([1.0, 1.0], token_ids=[1, 2, 9, 4]),
    }
    assert agreement(answers, "peer") == {"peer": 1.0, "same": 1.0, "other": 0.5}


def test_bars_compare_like_with_like():
    answers = {
        "peer": _answers([100.0, 110.0], tpot_ms=20.0),
        "rival": _answers([80.0, 80.0], tpot_ms=8.0),
        "ours": _answers([120.0, 132.0]),
        "pruned": _answers([40.0, 44.0]),
    }
    found = {
        claim: (us, them, round(value, 3)) for claim, us, them, value, _ in bars(ROWS, answers)
    }
    assert found == {
        "TTFT, pruned by the fastest unpruned peer": ("pruned", "peer", 0.4),
        "TTFT, pruned by the fastest pruned peer": ("pruned", "rival", 0.525),
        "TPOT, pruned by the fastest peer": ("pruned", "rival", 1.25),
        "TTFT, both unpruned, weights of 32 bits": ("ours", "peer", 1.2),
    }


def test_report_names_what_was_missed_and_what_was_left_out():
    answers = {
        "peer": _answers([100.0]),
        "ours": _answers([120.0]),
        "pruned": _answers([40.0]),
    }
    report = model_report("tiny", ROWS, answers, {"peer": 1.0, "ours": 0.5}, {"rival": "broke"})
    lines = report.splitlines()
    assert lines[4] == "| pruned | 30% | 40 | - | 0.40 | 10.0 | - |"
    assert "| ours | all | 120 | - | 1.20 | 10.0 | 50% |" in lines
    assert "- rival: broke" in lines
    assert (
        "| TTFT, both unpruned, weights of 32 bits | ours | peer | 1.20 **missed** | 1.00 |"
        in lines
    )


WORKER = """
import json, sys
print(json.dumps({"ready": {"version": 1}}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if request["question"] == "what breaks?":
        answer = {"error": "ValueError: no"}
    else:
        answer = {"token_ids": [len(request["question"])], "num_prompt_tokens": 3,
                  "ttft_ms": 1.0, "tpot_ms": 2.0, "vision_ms": None}
    print(json.dumps(answer), flush=True)
"""


def test_workers_answer_in_turn_and_tell_what_went_wrong(tmp_path: Path):
    worker = Worker([sys.executable, "-c", WORKER], num_threads=1, log=tmp_path / "log")
    try:
        assert worker.facts == {"version": 1}
        assert worker.rss_mib() > 1
        answers = measure([PEER], {PEER: worker}, [{"question": "where?"}, {"question": "who?"}])
        assert [answer.token_ids for answer in answers["peer"]] == [[6], [4]]
        with pytest.raises(PeerError, match="ValueError: no"):
            worker.ask({"question": "what breaks?"})
    finally:
        worker.close()
    with pytest.raises(PeerError, match="ended with status 3"):
        Worker([sys.executable, "-c", "raise SystemExit(3)"], num_threads=1, log=tmp_path / "log")


def test_no_two_pictures_or_questions_are_alike(tmp_path: Path):
    asked = [
        *questions.ask(tmp_path, "check", side=28, number=3),
        *questions.ask(tmp_path, "round", side=28, number=20),
    ]
    assert len({question for _, question in asked}) == len(asked)
    assert len({path.read_bytes() for path, _ in asked}) == len(asked)


TINY = Decoder(
    num_layers=2,
    hidden_size=64,
    intermediate_size=96,
    num_heads=4,
    num_kv_heads=2,
    vocab_size=600,
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "vision"),
    [
        ("qwen2_5_vl", {"depth": 4, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}),
        (
            "llava",
            {
                "num_hidden_layers": 2,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 7,
            },
        ),
    ],
)
def test_checkpoints_answer_as_transformers_does(model_type: str, vision: dict, tmp_path: Path):
    import torch
    from compare_peers.peers import feather_edge_bundles, torch_transformers

    model = Model(model_type=model_type, decoder=TINY, vision=vision, image_side=56)
    checkpoint = tmp_path / "checkpoint"
    write_checkpoint(model, checkpoint, "where is the red circle? the first citizen speaks. " * 9)
    feather_edge_bundles.prepare(checkpoint, tmp_path / "bundle", "fp32 onnxruntime")
    ((picture, question),) = questions.ask(tmp_path, "check", side=56, number=1)
    request = {"image": str(picture), "question": question, "max_new_tokens": 6}
    threads = torch.get_num_threads()
    reference = torch_transformers.Contender(checkpoint, tmp_path, "float32", threads)
    expected = reference.answer(**request, keep_ratio=None)
    ours = feather_edge_bundles.Contender(checkpoint, tmp_path / "bundle", "fp32 onnxruntime", 1)
    given = ours.answer(**request, keep_ratio=None)
    assert given["token_ids"] == expected["token_ids"]
    assert given["num_prompt_tokens"] == expected["num_prompt_tokens"]
    assert len(set(given["token_ids"])) > 1
    assert len(ours.answer(**request, keep_ratio=0.3)["token_ids"]) == 6


def test_templates_of_checkpoints_render_as_prompts_do():
    import jinja2

    for template in TEMPLATES.values():
        messages = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "who?"}]}
        ]
        rendered = jinja2.Template(template.jinja).render(
            messages=messages, add_generation_prompt=True
        )
        assert rendered == template.render("who?", template.mark)
