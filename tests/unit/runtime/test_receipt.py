"""The receipt of `verify`: strict, and of what lies there or of nothing."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from click.testing import CliRunner
from support.sealing import edit_manifest

from feather_edge import Session
from feather_edge.bundle import Bundle
from feather_edge.cli import main
from feather_edge.errors import BundleError
from feather_edge.recipes import ExportRecipe
from feather_edge.runtime.receipt import (
    Verdict,
    read_receipt,
    subject,
    verification,
    write_receipt,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.bundles import BundleFactory

    from feather_edge.runtime.receipt import Verification


@pytest.fixture
def bundle(bundles: BundleFactory, tmp_path: Path) -> Bundle:
    made = bundles(num_layers=2, recipe=ExportRecipe(stages=(1,), opset="23")).bundle
    return Bundle.open(shutil.copytree(made.path, tmp_path / "bundle"))


def verdict(bundle: Bundle, **changes: Any) -> Verdict:
    found = Verdict(
        subject=subject(bundle, backend="onnxruntime", target=None),
        form=None,
        reference="transformers, unpruned",
        versions={"transformers": "5.23.0"},
        passed=True,
        failure=None,
        lowest_cosine=0.9999,
        lowest_overlap=0.9,
        worst_cosine=0.99999,
        worst_output="logits of decoder_1 (prefill, 00.png)",
        max_abs=1e-5,
        num_not_finite=0,
        worst_overlap=1.0,
        num_equal_tokens=8,
        num_tokens=8,
    )
    return msgspec.structs.replace(found, **changes)


def state(bundle: Bundle) -> Verification:
    return verification(bundle, backend="onnxruntime", target=None)


def test_without_one(bundle: Bundle) -> None:
    assert read_receipt(bundle) is None
    assert str(state(bundle)) == (
        f"not verified: run: feather-edge verify {bundle.path} --backend onnxruntime"
    )
    own = verification(bundle, backend="fake", target=None)
    assert str(own) == f"not verified: run: feather-edge verify {bundle.path}"


def test_what_is_written_is_read(bundle: Bundle) -> None:
    found = verdict(bundle)
    file = write_receipt(bundle, found)
    assert file == bundle.path / "verify.json"
    receipt = read_receipt(bundle)
    assert receipt is not None
    assert receipt.verdicts == (found,)
    assert str(state(bundle)) == (
        "verified: against transformers, unpruned; worst cosine 0.999990"
    )
    assert sorted(bundle.path.parent.iterdir()) == [bundle.path]


def test_it_is_no_part_of_what_was_exported(bundle: Bundle) -> None:
    seal = bundle.manifest.sha256
    write_receipt(bundle, verdict(bundle))
    again = Bundle.open(bundle.path)
    assert again.manifest.sha256 == seal
    again.check_files()


def test_a_later_verdict_replaces_that_of_the_same_comparison(bundle: Bundle) -> None:
    failed = verdict(bundle, passed=False, failure="logits differ")
    other = verdict(bundle, form=18, reference="onnxruntime with opset 23")
    write_receipt(bundle, failed, other)
    assert str(state(bundle)) == "failed: logits differ"
    write_receipt(bundle, verdict(bundle))
    receipt = read_receipt(bundle)
    assert receipt is not None
    assert [each.form for each in receipt.verdicts] == [None, 18]
    assert state(bundle).reason.startswith(
        "against transformers, unpruned, its own form of opset 18;"
    )


def test_of_another_backend_it_says_nothing(bundle: Bundle) -> None:
    write_receipt(bundle, verdict(bundle))
    assert verification(bundle, backend="openvino", target=None).state == "not verified"


@pytest.mark.parametrize("field", ["bundle", "library", "feather_edge"])
def test_of_something_else_it_is_stale(bundle: Bundle, field: str) -> None:
    value = "0" * 64 if field == "bundle" else "another 1.0"
    here = verdict(bundle)
    other = msgspec.structs.replace(here.subject, **{field: value})
    write_receipt(bundle, verdict(bundle, subject=other))
    found = state(bundle)
    assert found.state == "stale"
    assert found.reason.startswith(f"the receipt is of {field.replace('_', '-')} {value[:12]}")
    assert f"run: feather-edge verify {bundle.path}" in found.reason


def test_an_edited_bundle_makes_it_stale_and_a_new_one_drops_it(bundle: Bundle) -> None:
    write_receipt(bundle, verdict(bundle), verdict(bundle, form=18))
    edit_manifest(bundle.path, lambda document: document["recipe"].__setitem__("stride", 4))
    edited = Bundle.open(bundle.path)
    assert state(edited).state == "stale"
    write_receipt(edited, verdict(edited))
    receipt = read_receipt(edited)
    assert receipt is not None
    assert len(receipt.verdicts) == 1


def test_sessions_and_results_say_it(bundle: Bundle) -> None:
    with Session.open(bundle, backend="onnxruntime") as session:
        assert session.verification.state == "not verified"
        result = session.generate([], "what ?", max_new_tokens=1)
    assert result.to_dict()["verification"] == {
        "state": "not verified",
        "reason": f"run: feather-edge verify {bundle.path} --backend onnxruntime",
    }
    write_receipt(bundle, verdict(bundle))
    inspected = CliRunner().invoke(main, ["inspect", str(bundle.path), "--json"])
    assert [each["passed"] for each in json.loads(inspected.stdout)["verdicts"]] == [True]
    shown = CliRunner().invoke(main, ["inspect", str(bundle.path)])
    assert re.search(r"onnxruntime +transformers, unpruned +passed +0.999990 ", shown.stdout)


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(file: Path) -> None:
        document = json.loads(file.read_text())
        change(document)
        file.write_text(json.dumps(document))

    return edit


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "version": (
        edited(lambda d: d.__setitem__("format_version", 2)),
        "has format version 2; this feather-edge reads version 1",
    ),
    "no object": (lambda file: file.write_text("[]"), "has format version None"),
    "unknown key": (edited(lambda d: d.__setitem__("extra", 1)), "unknown field `extra`"),
    "unknown key within": (
        edited(lambda d: d["verdicts"][0]["subject"].__setitem__("gpu", 1)),
        "unknown field `gpu`",
    ),
    "missing key": (
        edited(lambda d: d["verdicts"][0].pop("failure")), "missing required field `failure`",
    ),
    "wrong type": (
        edited(lambda d: d["verdicts"][0].__setitem__("passed", "yes")), "Expected `bool`",
    ),
    "no cosine": (
        edited(lambda d: d["verdicts"][0].__setitem__("worst_cosine", 2)), "worst_cosine",
    ),
    "no hash": (
        edited(lambda d: d["verdicts"][0]["subject"].__setitem__("bundle", "x")), "regex",
    ),
    "contradiction": (
        edited(lambda d: d["verdicts"][0].__setitem__("passed", False)),
        "passed is False, but failure is None",
    ),
    "too many": (
        edited(lambda d: d.__setitem__("verdicts", d["verdicts"] * 65)), "length <= 64",
    ),
    "twice": (
        lambda file: file.write_text('{"format_version": 1, "format_version": 1}'),
        "key 'format_version' stands twice",
    ),
    "not finite": (
        lambda file: file.write_text('{"format_version": NaN}'), "numbers must be finite",
    ),
    "deep": (lambda file: file.write_text("[" * 500_000), "nested too deep"),
    "large": (lambda file: file.write_bytes(b" " * (2**20 + 1)), "has 1048577 bytes"),
    "not text": (lambda file: file.write_bytes(b"\xff"), "it is not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_receipt(bundle: Bundle, kind: str) -> None:
    damage, message = BROKEN[kind]
    damage(write_receipt(bundle, verdict(bundle)))
    with pytest.raises(BundleError) as error:
        read_receipt(bundle)
    assert message in str(error.value)
    assert str(error.value).endswith(f"write it anew with: feather-edge verify {bundle.path}")
    assert state(bundle).state == "not verified"
    assert message in state(bundle).reason
    write_receipt(bundle, verdict(bundle))
    assert state(bundle).state == "verified"


def test_a_link_that_leads_out(bundle: Bundle, tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    outside.write_text("{}")
    (bundle.path / "verify.json").symlink_to(outside)
    for act in (read_receipt, lambda opened: write_receipt(opened, verdict(opened))):
        with pytest.raises(BundleError, match=r"leads out of the bundle, to .*outside.json"):
            act(bundle)
    assert outside.read_text() == "{}"


def test_a_folder_that_cannot_be_written(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(BundleError, match=r"cannot write .*verify.json: No space left on device"):
        write_receipt(bundle, verdict(bundle))
