"""``verify.json``: what ``feather-edge verify`` found of a bundle, and whether it still holds.

The receipt lies in the bundle and is no part of the manifest. It has a verdict for each thing that
was compared: a backend, or a form of the graphs, against a reference. A verdict names what it is
of by hash and version; of anything else it says nothing, and is shown as stale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from feather_edge import __version__, strict_json
from feather_edge.engine_record import records_sha256
from feather_edge.errors import BundleError
from feather_edge.locking import exclusive
from feather_edge.manifest import RECEIPT_FILE
from feather_edge.runtime.backend_names import BACKEND_NAMES
from feather_edge.runtime.fingerprint import difference, library
from feather_edge.staging import write_whole

if TYPE_CHECKING:
    from pathlib import Path

    from feather_edge.bundle import Bundle

__all__ = [
    "Receipt", "Subject", "Verdict", "Verification", "read_receipt", "subject", "verification",
    "write_receipt",
]  # fmt: skip

FORMAT_VERSION = 1
MAX_BYTES = 2**20

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Cosine = Annotated[float, msgspec.Meta(ge=-1.000001, le=1.000001)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Size = Annotated[float, msgspec.Meta(ge=0)]
SHA256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Subject(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a verdict is of; if any of it differs, the verdict says nothing.

    Attributes:
        bundle: the manifest's own SHA-256; it has the recipe and the hash of every file.
        engines: SHA-256 of the records of the target's engines; None where graphs run.
        feather_edge: version.
        backend: name.
        target: whose engines; None where graphs run.
        library: distribution and version of what runs the graphs; None where none is installed.
    """

    bundle: SHA256
    engines: SHA256 | None
    feather_edge: str
    backend: str
    target: str | None
    library: str | None


class Verdict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One comparison.

    Attributes:
        subject: what was compared.
        form: of the graphs, by opset; None for the one that the backend runs.
        reference: what it was compared with.
        versions: of the packages that ran the reference.
        passed: whether nothing was below its threshold.
        failure: what was, None where it passed.
        lowest_cosine: threshold.
        lowest_overlap: threshold.
        worst_cosine: of all outputs of all graphs.
        worst_output: whose that is, in words.
        max_abs: largest difference of any value.
        num_not_finite: values that are infinite or no number.
        worst_overlap: of the kept rows; 1 where nothing is pruned.
        num_equal_tokens: of the answers, before the first that differs.
        num_tokens: of the reference's answers.
    """

    subject: Subject
    form: Count | None
    reference: str
    versions: dict[str, str]
    passed: bool
    failure: str | None
    lowest_cosine: Cosine
    lowest_overlap: Share
    worst_cosine: Cosine
    worst_output: str
    max_abs: Size
    num_not_finite: Count
    worst_overlap: Share
    num_equal_tokens: Count
    num_tokens: Count

    def __post_init__(self) -> None:
        if self.passed != (self.failure is None):
            raise ValueError(f"passed is {self.passed}, but failure is {self.failure!r}")

    @property
    def key(self) -> tuple[str, str | None, int | None, str]:
        """What a later verdict replaces."""
        kind = self.reference.split(maxsplit=1)[0] if self.reference else ""
        return (self.subject.backend, self.subject.target, self.form, kind)


class Receipt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file."""

    format_version: int
    verdicts: Annotated[tuple[Verdict, ...], msgspec.Meta(max_length=64)]


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a bundle and the backend that runs it.

    ``stale`` is a receipt of something else; ``reason`` says of what, or what failed.
    """

    state: Literal["verified", "failed", "stale", "not verified"]
    reason: str

    def __str__(self) -> str:
        return f"{self.state}: {self.reason}"


def subject(bundle: Bundle, *, backend: str, target: str | None) -> Subject:
    """Return what a verdict on a backend and a target of engines would be of, here and now."""
    return Subject(
        bundle=bundle.manifest.sha256,
        engines=None if target is None else records_sha256(bundle.path, target),
        feather_edge=__version__,
        backend=backend,
        target=target,
        library=library(backend),
    )


def verification(bundle: Bundle, *, backend: str, target: str | None) -> Verification:
    """Return whether what a backend runs of a bundle is what was verified."""
    here = subject(bundle, backend=backend, target=target)
    command = f"feather-edge verify {bundle.path}"
    if here.backend in BACKEND_NAMES:  # a robot's own backend has no name there
        command += f" --backend {here.backend}"
    if here.target is not None:
        command += f" --target {here.target}"
    try:
        receipt = read_receipt(bundle)
    except BundleError as error:
        return Verification(state="not verified", reason=str(error))
    found = [
        verdict
        for verdict in ([] if receipt is None else receipt.verdicts)
        if (verdict.subject.backend, verdict.subject.target) == (here.backend, here.target)
    ]
    if not found:
        return Verification(state="not verified", reason=f"run: {command}")
    changes = [difference(verdict.subject, here) for verdict in found]
    current = [verdict for verdict, change in zip(found, changes, strict=True) if change is None]
    if not current:
        reason = f"the receipt is of {changes[0]}; run: {command}"
        return Verification(state="stale", reason=reason)
    for verdict in current:
        if verdict.failure is not None:
            return Verification(state="failed", reason=verdict.failure)
    references = ", ".join(
        verdict.reference if verdict.form is None else f"its own form of opset {verdict.form}"
        for verdict in current
    )
    cosine = min(verdict.worst_cosine for verdict in current)
    reason = f"against {references}; worst cosine {cosine:.6f}"
    return Verification(state="verified", reason=reason)


def read_receipt(bundle: Bundle) -> Receipt | None:
    """Return the receipt of a bundle, None if it has none.

    Raises:
        BundleError: if it cannot be read, is of another version, or is no receipt.
    """
    file = _file(bundle)
    remedy = f"write it anew with: feather-edge verify {bundle.path}"
    if not file.exists():
        return None
    try:
        return strict_json.read_record(
            file, Receipt, max_bytes=MAX_BYTES, format_version=FORMAT_VERSION
        )
    except strict_json.StrictJSONError as error:
        raise BundleError(f"{file} is no valid receipt: {error}; {remedy}") from error


def write_receipt(bundle: Bundle, *verdicts: Verdict) -> Path:
    """Write verdicts into a bundle's receipt; they replace earlier ones of the same comparison.

    Verdicts on another state of the bundle go: nothing can be learnt from them any more.

    Raises:
        BundleError: if another process writes the bundle, or its folder cannot be written.
    """
    file = _file(bundle)
    with exclusive(bundle.path):
        try:
            earlier = read_receipt(bundle)
        except BundleError:  # it was no receipt, and is one now
            earlier = None
        kept = {
            verdict.key: verdict
            for verdict in (() if earlier is None else earlier.verdicts)
            if verdict.subject.bundle == bundle.manifest.sha256
        }
        kept |= {verdict.key: verdict for verdict in verdicts}
        receipt = Receipt(format_version=FORMAT_VERSION, verdicts=tuple(kept.values()))
        try:
            write_whole(file, strict_json.dumps(receipt))
        except OSError as error:
            raise BundleError(f"cannot write {file}: {error.strerror or error}") from error
    return file


def _file(bundle: Bundle) -> Path:
    """Return where the receipt is; a link may lead to it, but not out of the bundle."""
    return bundle.inside(RECEIPT_FILE)
