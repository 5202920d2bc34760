"""The pure parts of the comparison with the peers: turns, figures, the report, its checkpoints."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from compare_peers import questions
from compare_peers.agreement import Difference, agreement
from compare_peers.arena import Result
from compare_peers.checkpoints import write_checkpoint
from compare_peers.compare import STEPS, parsed
from compare_peers.conditions import ROOT, command, cpu_features
from compare_peers.contenders import Row
from compare_peers.models import Decoder, Model
from compare_peers.prompts import TEMPLATES
from compare_peers.report import model_report
from compare_peers.runner import Answer, PeerError, Worker, measure, turns
from compare_peers.summary import bars, fastest, kept, median, ratio
from compare_peers.workers import Process, Workers, shared_processes

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


CHOICES = [[(1, 0.0)], [(2, 0.0)], [(3, 0.0), (9, 0.1), (8, 1.0)], [(4, 0.0)]]


def _reference(num: int = 1) -> list[Answer]:
    return [
        Answer(
            token_ids=[1, 2, 3, 4],
            num_prompt_tokens=9,
            ttft_ms=1.0,
            tpot_ms=1.0,
            vision_ms=None,
            choices=CHOICES,
        )
    ] * num


def test_agreement_counts_tokens_up_to_the_first_that_differs():
    same = agreement(_answers([1.0]), _reference())
    assert (same.share, same.same_prompt, same.verdict("32")) == (1.0, True, "same")
    given = [*_answers([1.0]), *_answers([1.0], token_ids=[1, 2, 9, 4])]
    other = agreement(given, _reference(2))
    assert other.share == 6 / 8
    assert other.differences == [Difference(question=1, place=2, rank=2, behind=0.1)]


def test_a_difference_is_explained_by_the_precision_or_by_nothing():
    near = agreement(_answers([1.0], token_ids=[1, 2, 9, 4]), _reference())
    assert [near.verdict(bits) for bits in ("32", "16", "8")] == [
        "unexplained",
        "explained",
        "explained",
    ]
    far = agreement(_answers([1.0], token_ids=[5, 2, 9, 4]), _reference())
    assert far.differences == [Difference(question=0, place=0, rank=None, behind=None)]
    assert far.verdict("8") == "unexplained"
    ended = agreement(_answers([1.0], token_ids=[1, 2]), _reference())
    assert ended.share == 0.5
    assert ended.verdict("8") == "unexplained"


def test_another_prompt_is_no_matter_of_precision():
    longer = [Answer(token_ids=[1], num_prompt_tokens=10, ttft_ms=1, tpot_ms=1, vision_ms=None)]
    assert agreement(longer, _reference()).verdict("8") == "another prompt"


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
    result = Result(
        answers={
            "peer": _answers([100.0]),
            "ours": _answers([120.0]),
            "pruned": _answers([40.0]),
        },
        agreement={
            "peer": agreement(_reference(), _reference()),
            "ours": agreement(_answers([1.0], token_ids=[1, 2, 9, 9]), _reference()),
        },
        reasons={"rival": "broke"},
    )
    lines = model_report("tiny", ROWS, result).splitlines()
    assert lines[4] == "| pruned | 30% asked for | 40 | - | 0.40 | 10.0 | - |"
    assert "| ours | all | 120 | - | 1.20 | 10.0 | 50% |" in lines
    assert "| peer | 100% | same | - |" in lines
    assert "| ours | 50% | unexplained | 3: choice 2, 0.10 |" in lines
    assert "- rival: broke" in lines
    assert (
        "| TTFT, both unpruned, weights of 32 bits | ours | peer | 1.20 **missed** | 1.00 |"
        in lines
    )


def test_report_says_what_stages_kept_not_what_they_were_asked_for():
    answer = Answer(
        token_ids=[1],
        num_prompt_tokens=448,
        ttft_ms=1.0,
        tpot_ms=1.0,
        vision_ms=None,
        num_visual_tokens=400,
        num_kept=[154, 13],
    )
    assert kept([answer], None) == [0.385, 0.0325]
    assert kept(_answers([1.0]), None) is None
    pruned = Answer(token_ids=[1], num_prompt_tokens=148, ttft_ms=1.0, tpot_ms=1.0, vision_ms=None)
    assert kept([pruned], answer) == [0.25]
    report = model_report("tiny", ROWS, Result(answers={"pruned": [answer]}))
    assert "| pruned | 39%, then 3% |" in report


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
        requests = [{"question": "where?"}, {"question": "who?"}]
        answers = measure([PEER], lambda _row, request: worker.ask(request), requests)
        assert [answer.token_ids for answer in answers["peer"]] == [[6], [4]]
        with pytest.raises(PeerError, match="ValueError: no"):
            worker.ask({"question": "what breaks?"})
    finally:
        worker.close()
    with pytest.raises(PeerError, match="ended with status 3"):
        Worker([sys.executable, "-c", "raise SystemExit(3)"], num_threads=1, log=tmp_path / "log")


class _FakeWorker:
    def __init__(self, row: Row, log: list[str]) -> None:
        self._row, self._log = row, log
        log.append(f"{row.name} starts")

    def ask(self, request: dict) -> Answer:
        self._log.append(f"{self._row.name} {request['question']} {request['keep_ratio']}")
        return _answers([1.0])[0]

    def close(self) -> None:
        self._log.append(f"{self._row.name} ends")


def test_processes_share_what_memory_there_is():
    log: list[str] = []
    processes = shared_processes({PEER: ("a", 60), RIVAL: ("a", 55), OURS: ("b", 50)})
    assert processes[PEER] == processes[RIVAL] == Process(name="a", memory_mib=60)

    def start(row: Row) -> _FakeWorker:
        return _FakeWorker(row, log)

    with Workers(start, processes, {"question": "warm"}, room_mib=120) as workers:
        for row in (PEER, RIVAL, OURS, PEER):
            workers.ask(row, {"question": "q"})
        workers.keep([OURS])
    assert log == [
        "peer starts", "peer warm None", "peer warm 0.25", "peer q None", "peer q 0.25",
        "ours starts", "ours warm None", "ours q None", "peer q None", "peer ends", "ours ends",
    ]  # fmt: skip
    log.clear()
    with Workers(start, processes, {"question": "warm"}, room_mib=100) as workers:
        for row in (PEER, OURS):
            workers.ask(row, {"question": "q"})
        assert log[-4:] == ["peer ends", "ours starts", "ours warm None", "ours q None"]
        workers.ask(PEER, {"question": "q"})
        assert log[-5:-2] == ["ours ends", "peer starts", "peer warm None"]


def test_conditions_tell_what_every_core_can_do():
    x86 = "processor: 0\nflags\t\t: fpu avx2 amx_int8\nprocessor: 1\nflags: fpu avx2 avx512_vnni\n"
    assert cpu_features(x86) == ["avx2"]
    assert cpu_features("Features\t: fp asimddp i8mm\n") == ["asimddp", "i8mm"]
    assert cpu_features("") == []


def test_conditions_have_the_command_but_no_folders(tmp_path: Path):
    given = [str(ROOT / "tools/compare_peers/compare.py"), str(tmp_path / "out"), "--rounds", "5"]
    assert command(given)[1:] == ["tools/compare_peers/compare.py", "out", "--rounds", "5"]
    assert "/" not in command(given)[0]


def test_all_steps_are_taken_unless_some_are_named():
    assert tuple(parsed(["out"]).step) == STEPS
    assert parsed(["out", "--step", "rounds", "report"]).step == ["rounds", "report"]


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
