"""The page of a deployment: complete, escaped, and with nothing to fetch."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import msgspec
import pytest
from support.killing import deployment

from feather_edge.deploy.chain import deploy
from feather_edge.deploy.target import read_target
from feather_edge.deploy.web_page import render
from feather_edge.errors import BundleError

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory

    from feather_edge.deploy.report import DeployReport

LOADING = ("src", "href", "srcset", "action", "data", "poster", "background", "ping", "formaction")


class Page(HTMLParser):
    """What a page has in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.handlers: list[str] = []
        self.headings: list[str] = []
        self.styles = ""
        self._within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._within = tag
        self.loaded += [value or "" for name, value in attrs if name in LOADING]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.styles += "".join(value or "" for name, value in attrs if name == "style")

    def handle_data(self, data: str) -> None:
        if self._within == "h2":
            self.headings.append(data.strip())
        if self._within == "style":
            self.styles += data

    def handle_endtag(self, tag: str) -> None:
        self._within = ""


@pytest.fixture(scope="module")
def source(bundles: BundleFactory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose name is an attack on whoever does not escape it."""
    folder = tmp_path_factory.mktemp("source") / "<script>alert('&\")<"
    shutil.copytree(bundles.checkpoint(num_layers=4), folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "max_new_tokens": 3}))
    return folder


@pytest.fixture(scope="module")
def deployed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DeployReport]:
    """A bundle and its report."""
    output = tmp_path_factory.mktemp("deployed") / "bundle"
    return output, deploy(deployment(str(source), output))


def test_nothing_is_fetched_and_nothing_runs(deployed: tuple[Path, DeployReport]) -> None:
    text = (deployed[0] / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.loaded
    assert [value[:20] for value in page.loaded if not value.startswith("data:")] == []
    assert page.handlers == []
    assert not {"script", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert "url(" not in page.styles
    assert "@import" not in page.styles
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text
    assert re.findall(r"https?://", text) == []


def test_names_are_escaped(deployed: tuple[Path, DeployReport]) -> None:
    text = (deployed[0] / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;alert(&#39;&amp;&#34;)&lt;" in text


def test_everything_is_on_it(deployed: tuple[Path, DeployReport]) -> None:
    output, report = deployed
    text = (output / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.headings == [
        "The chain", "Where visual tokens go", "What was kept", "Parity",
        "Time to the first token", "Memory", "Conditions",
    ]  # fmt: skip
    assert page.tags.count("img") == 2 * 2  # two scenes: the answer, and one stage
    assert page.tags.count("svg") == 2
    for stage in report.stages:
        assert f'<td class="name">{stage.name}</td>' in text
    assert "complete: verified and measured on its target" in text


def test_a_bundle_that_prunes_nothing(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    asked = deployment(str(source), output)
    recipe = msgspec.structs.replace(asked.recipe, prune="none", stages=(), keep_ratio=(1.0,))
    deploy(dataclasses.replace(asked, recipe=recipe))
    text = (output / "report.html").read_text(encoding="utf-8")
    assert "What was kept" not in Page(text).headings
    assert "every layer sees every visual token" in text
    assert "nothing is pruned" in text


def test_a_device_elsewhere(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    deploy(deployment(str(source), output, target=read_target("orin-nano-8gb")))
    text = (output / "report.html").read_text(encoding="utf-8")
    assert "to be finished on the device" in text
    assert "--from-stage build-engine" in text
    assert "Time to the first token" not in Page(text).headings


def test_a_record_of_another_version(deployed: tuple[Path, DeployReport]) -> None:
    output, report = deployed
    other = msgspec.structs.replace(report, bench={"rounds": 3})
    message = "the record of bench is of another feather-edge: .*; do that stage again with --from"
    with pytest.raises(BundleError, match=message):
        render(output, other)
