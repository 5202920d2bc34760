"""The page about what pruning costs on the pretrained decoder, in Markdown."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from evidence_measures import row_name
from evidence_runs import PAPER_GQA, PAPER_LOCALISATION, RUNS

from feather_edge.evaluate.comparison import UNPRUNED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from evidence_measures import Overlaps, Times
    from evidence_runs import Answers, Key, Run
    from kept_rows import KeptTokens

    from feather_edge.evaluate.records import Record
    from feather_edge.evaluate.summary import Evaluation, Row

FINDINGS = Path(__file__).with_name("evidence_findings.md")
LABELS = {
    "feather": "FEATHER",
    "fastv": "FastV, softmax over the image",
    "fastv-full": "FastV, softmax over everything",
    "pyramiddrop": "PyramidDrop",
    "pre-divprune": "DivPrune, before the decoder",
}
INTRODUCTION = """# Pruning a decoder that was pretrained on language

SmolLM2-135M-Instruct with the adapters in
[models/smol_scene_vlm](../models/smol_scene_vlm/README.md): 30 layers, 196 visual tokens, ONNX
Runtime on the CPU. Two questions about each scene: one for a place, and one for a word, of each
kind in turn; each table says how many of the test scenes it covers. Nothing was tuned on these
scenes. The paper is FEATHER's ([arXiv 2412.13180](https://arxiv.org/abs/2412.13180)), its model of
7 billion weights with 729 visual tokens.

```bash
python tools/scene_vlm/assemble.py FOLDER
python tools/scene_vlm/evidence.py FOLDER --output out/evidence      # writes this page
```
"""
KEY = """`keep` is the method's own parameter. `tokens` are the visual ones that entered each
segment (mean), `FLOPs` those of the decoder's prefill, text included, by the unpruned ones.
Localisation is right when the boxes overlap by at least 0.5, a coarse answer when it is the very
word; in brackets, 95 % intervals (Wilson). `kept row` is how far down the picture the tokens lie
that the first stage kept: 0 is the top, 1 the bottom, 0.5 no preference.

Under each table of results is one beside the paper: `FLOPs`, `localisation` and `coarse` by those
of the unpruned model on the same questions, here and there. The paper's localisation is the mean
of OCID-Ref and the three RefCOCO, its coarse task is GQA here. The ratio of FEATHER's second
setting is not printed in the paper; 0.6 gives its FLOPs.
"""
TABLES = {
    "One stage, and FEATHER as published": ("feather", "layer-3", "layer-8"),
    "At about FEATHER's cost": ("feather", "equal", "pyramiddrop"),
}
RESULTS = """## {title}

The first {num_scenes} of the {split} scenes, float32.
"""
PAIRS = (
    (("layer-3", "feather", 0.25), ("layer-3", "fastv", 0.25)),
    (("layer-3", "uniform", 0.25), ("layer-3", "fastv", 0.25)),
    (("layer-3", "uniform", 0.25), ("layer-3", "feather", 0.25)),
    (("layer-8", "feather", 0.25), ("layer-8", "fastv", 0.25)),
    (("layer-8", "uniform", 0.25), ("layer-8", "feather", 0.25)),
    *(
        ((name, method, ratio), ("feather", "feather", ratio))
        for name, method in (
            ("equal", "uniform"),
            ("equal", "pre-divprune"),
            ("pyramiddrop", "pyramiddrop"),
        )
        for ratio in (0.3, 0.6)
    ),
)
PAIRED = """## Question by question

The same questions are asked of every method, so pairs say more than intervals. Right with the
first method only, with the second only, and how probable so uneven a split is among equals (sign
test, two-sided; of so many comparisons, some are below 0.05 by chance).
"""
DEPTHS = """## Where the kept tokens lie

{num_prompts} questions for a place about development scenes, a quarter of the tokens kept, no
other stage before. How far down the picture the kept tokens lie, 0 at the top row and 1 at the
bottom; the paper reports 0.807 before layer 3 for an attention with RoPE. In brackets, how many
of the tokens of the object in question are among them; 0.25 is chance.
"""
QUANTISED = """## Quantised decoders

Weights of the decoder as int8 and int4 in blocks of 32, its head int8, the vision encoder
float32. The first {num_scenes} of the {split} scenes. `lost` and `won` count answers that were
right in float32 and are wrong here, and the other way round, of {num_questions}.
"""
KEPT_TOO = """`kept too`: the share of the tokens kept in float32 that the quantised decoder keeps
as well, stage after stage, on {num_questions} questions.
"""


def page(
    answers: Answers, times: Times | None, overlaps: Overlaps | None, rows: KeptTokens | None
) -> str:
    """Return the page of what was answered by all runs, and measured."""
    split = answers.task.samples[0].name.partition("/")[0]
    sections = [INTRODUCTION, KEY]
    for title, names in TABLES.items():
        num_scenes = answers.num_complete(names)
        found = answers.evaluations(names, num_scenes)
        sections += [
            RESULTS.format(title=title, num_scenes=num_scenes, split=split),
            *_table(_RESULT_COLUMNS, _result_rows(found, times)),
            *_table(_BESIDE_COLUMNS, _beside_rows(found)),
        ]
    sections += [
        *(_time_conditions(times) if times is not None else ()),
        PAIRED,
        *_table(_PAIR_COLUMNS, _pair_rows(answers)),
        FINDINGS.read_text(encoding="utf-8"),
        *(_depths(rows) if rows is not None else ()),
        *_quantised(answers, overlaps, split),
    ]
    return "\n".join(sections).rstrip() + "\n"


def label(run: Run, method: str) -> str:
    """Return how the page calls a method of a run."""
    if method == "feather" and run.recipe.stride == 0:
        return "RoPE-free"
    return LABELS.get(method, method)


_RESULT_COLUMNS = (
    "where", "method", "keep", "tokens", "FLOPs", "prefill time", "localisation", "mean IoU",
    "coarse", "kept row",
)  # fmt: skip
_PAIR_COLUMNS = ("first", "second", "questions", "localisation", "p", "coarse", "p")
_BESIDE_COLUMNS = (
    "where", "method", "keep", "FLOPs", "paper", "localisation", "paper", "coarse", "paper",
)  # fmt: skip


def _table(columns: Sequence[str], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "| " + " | ".join("---" for _ in columns) + " |"
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def _head(name: str, row: Row) -> tuple[str, str, str]:
    return RUNS[name].where, label(RUNS[name], row.method), f"{row.keep_ratio:g}"


def _each(found: dict[str, Evaluation]) -> Iterator[tuple[str, Row]]:
    """Yield run and row of everything pruned."""
    for name, evaluation in found.items():
        for row in evaluation.rows[1:]:
            yield name, row


def _full(found: dict[str, Evaluation]) -> Row:
    return next(iter(found.values())).rows[0]


def _result_rows(found: dict[str, Evaluation], times: Times | None) -> Iterator[tuple[str, ...]]:
    yield ("-", "unpruned", "1", *_result_cells(_full(found), "1.00"))
    for name, row in _each(found):
        prefill = "-"
        if times is not None:
            ratio = times.ratios[name][row_name((row.method, row.keep_ratio))]
            prefill = f"{ratio.median:.2f} ({ratio.p5:.2f}-{ratio.p95:.2f})"
        yield (*_head(name, row), *_result_cells(row, prefill))


def _result_cells(row: Row, prefill: str) -> tuple[str, ...]:
    return (
        ">".join(f"{count:.0f}" for count in row.num_visual_tokens),
        f"{row.flops_ratio:.2f}",
        prefill,
        _share(row.localisation_acc, row.ci95.localisation_acc),
        _number(row.mean_iou),
        _share(row.coarse_acc, row.ci95.coarse_acc),
        f"{row.mean_kept_row:.2f}",
    )


def _beside_rows(found: dict[str, Evaluation]) -> Iterator[tuple[str, ...]]:
    full = _full(found)
    for name, row in _each(found):
        paper = RUNS[name].paper.get((row.method, row.keep_ratio))
        theirs = ("-",) * 3
        if paper is not None:
            theirs = (
                f"{1 - paper.saved / 100:.2f}",
                f"{paper.localisation / PAPER_LOCALISATION:.2f}",
                "-" if paper.gqa is None else f"{paper.gqa / PAPER_GQA:.2f}",
            )
        ours = (
            f"{row.flops_ratio:.2f}",
            _left(row.localisation_acc, full.localisation_acc),
            _left(row.coarse_acc, full.coarse_acc),
        )
        pairs = zip(ours, theirs, strict=True)
        yield (*_head(name, row), *(cell for pair in pairs for cell in pair))


def sign_test(num_first: int, num_second: int) -> float:
    """Return how probable a split at least as uneven is when both sides are as likely."""
    total = num_first + num_second
    tail = sum(math.comb(total, count) for count in range(min(num_first, num_second) + 1))
    return min(1.0, 2 * tail / 2**total)


def _pair_rows(answers: Answers) -> Iterator[tuple[str, ...]]:
    for pair in PAIRS:
        num_scenes = answers.num_complete([name for name, _, _ in pair])
        first, second = (
            {
                (record.kind, record.sample, record.question): record.is_right
                for record in answers.records(name, num_scenes)
                if (record.method, record.keep_ratio) == (method, ratio)
            }
            for name, method, ratio in pair
        )
        cells: list[str] = []
        for kind in ("localisation", "coarse"):
            gained = sum(first[each] and not second[each] for each in first if each[0] == kind)
            lost = sum(second[each] and not first[each] for each in first if each[0] == kind)
            p = sign_test(gained, lost)
            cells += (f"{gained} : {lost}", "< 0.001" if p < 0.001 else f"{p:.3f}")
        heads = (
            f"{label(RUNS[name], method)} {ratio:g}, {RUNS[name].where}"
            for name, method, ratio in pair
        )
        yield (*heads, str(len(first)), *cells)


def _time_conditions(times: Times) -> Iterator[str]:
    stated = times.environment
    rounds = {len(pair.ratios) for each in times.ratios.values() for pair in each.values()}
    unpruned = ", ".join(f"{ms:.0f}" for ms in times.unpruned_ms.values())
    yield (
        f"`prefill time` is measured apart from the answers: in each of {max(rounds)} rounds all "
        "rows of a bundle answer the same question in turn with the unpruned model; median of the "
        f"rounds' ratios, and where 90 % of them lie. {stated.machine}, {stated.num_cores} "
        f"processors, onnxruntime {stated.runtimes['onnxruntime']}, load average "
        f"{stated.load_average:.2f} before and {times.load_average_after:.2f} after. Unpruned: "
        f"{unpruned} ms, bundle after bundle. A load above the number of processors means that "
        "other programs ran: then the medians tell something, the ranges little.\n"
    )


def _depths(rows: KeptTokens) -> Iterator[str]:
    yield DEPTHS.format(num_prompts=rows.num_prompts)
    columns = [
        [f"{row:.2f} ({share:.2f})" for row, share in zip(*each, strict=True)]
        for each in zip(rows.rows.values(), rows.object_shares.values(), strict=True)
    ]
    depths = (
        (str(layer), *cells) for layer, cells in enumerate(zip(*columns, strict=True), start=1)
    )
    yield from _table(("before layer", *rows.rows), depths)


def _quantised(answers: Answers, overlaps: Overlaps | None, split: str) -> Iterator[str]:
    by_float = _quantised_runs()
    names = [name for float_name, each in by_float.items() for name in (float_name, *each)]
    num_scenes = answers.num_complete(names)
    if num_scenes == 0:
        return
    found = answers.evaluations(names, num_scenes)
    first = found[names[0]]
    yield QUANTISED.format(
        num_scenes=num_scenes,
        split=split,
        num_questions=first.num_localisation + first.num_coarse,
    )
    if overlaps is not None:
        yield KEPT_TOO.format(num_questions=overlaps.num_questions)
    columns = ("where", "method", "keep", "decoder", "localisation", "coarse", "lost", "won")
    right = {name: _right(answers.records(name, num_scenes)) for name in names}
    rows = (
        row
        for float_name, each in by_float.items()
        for row in _compared((float_name, *each), found, right, overlaps)
    )
    yield from _table((*columns, "kept too"), rows)


def _quantised_runs() -> dict[str, list[str]]:
    """Return the quantised runs of each float32 run."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, run in RUNS.items():
        if run.float_run is not None:
            found[run.float_run].append(name)
    return found


def _right(records: Sequence[Record]) -> dict[Key, dict[tuple[str, int], bool]]:
    """Return which answers are right, by method and ratio, then by picture and question."""
    found: dict[Key, dict[tuple[str, int], bool]] = defaultdict(dict)
    for record in records:
        key = (record.method, record.keep_ratio)
        found[key][record.sample, record.question] = record.is_right
    return found


def _compared(
    names: Sequence[str],
    found: dict[str, Evaluation],
    right: dict[str, dict[Key, dict[tuple[str, int], bool]]],
    overlaps: Overlaps | None,
) -> Iterator[tuple[str, ...]]:
    """Yield the rows of a float32 run, the first of ``names``, and of its quantised ones."""
    keys = [(row.method, row.keep_ratio) for row in found[names[1]].rows]
    for key in keys:
        if key not in right[names[0]]:  # the unpruned rows of other runs are the same
            continue
        reference = right[names[0]][key]
        for name in names:
            row = next(r for r in found[name].rows if (r.method, r.keep_ratio) == key)
            given = right[name][key]
            lost = sum(was and not given[question] for question, was in reference.items())
            won = sum(given[question] and not was for question, was in reference.items())
            kept = {} if overlaps is None else overlaps.shares
            shares = kept.get(name, {}).get(row_name(key), ())
            changed = ("-", "-") if name == names[0] else (str(lost), str(won))
            yield (
                *(("-", "unpruned", "1") if key == UNPRUNED else _head(name, row)),
                RUNS[name].precision,
                _share(row.localisation_acc, row.ci95.localisation_acc),
                _share(row.coarse_acc, row.ci95.coarse_acc),
                *changed,
                " > ".join(f"{share:.2f}" for share in shares) or "-",
            )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _share(value: float | None, interval: tuple[float, float] | None) -> str:
    return _number(value) + ("" if interval is None else f" ({interval[0]:.2f}-{interval[1]:.2f})")


def _left(value: float | None, full: float | None) -> str:
    return "-" if value is None or not full else f"{value / full:.2f}"
