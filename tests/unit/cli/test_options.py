"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from feather_edge.cli import _options, _parsers
from feather_edge.errors import RequestError
from feather_edge.recipes import ExportRecipe
from feather_edge.runtime.backends import BACKEND_NAMES

PARAMETER = click.Option(["--x"])
CONTEXT = click.Context(click.Command("x"))


@pytest.mark.parametrize(
    ("text", "ratios"), [(None, None), ("0.5", (0.5,)), ("1, .25", (1.0, 0.25))]
)
def test_ratios(text: str | None, ratios: tuple[float, ...] | None) -> None:
    assert _parsers.parse_ratios(CONTEXT, PARAMETER, text) == ratios


@pytest.mark.parametrize("text", ["", "0.5,", "nan", "-0.1", "1.01", "inf"])
def test_what_is_no_ratio(text: str) -> None:
    with pytest.raises(click.BadParameter):
        _parsers.parse_ratios(CONTEXT, PARAMETER, text)


@pytest.mark.parametrize(
    ("text", "stages"), [(None, None), ("none", ()), ("8", (8,)), ("8, 16", (8, 16))]
)
def test_stages(text: str | None, stages: tuple[int, ...] | None) -> None:
    assert _parsers.parse_stages(CONTEXT, PARAMETER, text) == stages


@pytest.mark.parametrize("text", ["", "8,", "8.5", "all"])
def test_what_is_no_stage(text: str) -> None:
    with pytest.raises(click.BadParameter):
        _parsers.parse_stages(CONTEXT, PARAMETER, text)


def test_backends_are_the_runtime_s() -> None:
    assert _options.BACKENDS == BACKEND_NAMES


def test_only_given_keeps_zero_and_empty() -> None:
    assert _options.only_given(a=None, b=0, c=()) == {"b": 0, "c": ()}


def bundle(*stages: int) -> SimpleNamespace:
    return SimpleNamespace(path=Path("b"), schedule=SimpleNamespace(stages=stages))


@pytest.mark.parametrize("wanted", [None, (4, 6)])
def test_the_bundle_s_own_stages_pass(wanted: tuple[int, ...] | None) -> None:
    _options.require_stages(bundle(4, 6), stages=wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("own", "wanted", "text"),
    [
        ((4, 6), (2,), "b prunes before layers 4,6, which its export fixed; .* --stages 2"),
        ((), (2, 3), "b prunes before layers none, .* --stages 2,3"),
        ((4,), (), "b prunes before layers 4, .* --stages none"),
    ],
)  # fmt: skip
def test_other_stages_are_refused(
    own: tuple[int, ...], wanted: tuple[int, ...], text: str
) -> None:
    with pytest.raises(RequestError, match=text):
        _options.require_stages(bundle(*own), stages=wanted)  # type: ignore[arg-type]


def test_json_is_one_document_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    _options.emit_json({"recipe": ExportRecipe(), "where": "é"})
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith('{"recipe":{"stages":null,"prune":"feather","keep_ratio":[0.3],')
    assert out.endswith('"where":"é"}\n')
    assert out.count("\n") == 1
