"""The stage ``verify``: what the target runs against the graphs, and what pruning keeps of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from feather_edge.bundle import Bundle
from feather_edge.deploy.deployment import Outcome
from feather_edge.deploy.pictures import draw_kept_tokens
from feather_edge.deploy.state import VerifyResult
from feather_edge.deploy.target import plan_elsewhere
from feather_edge.manifest import RECEIPT_FILE
from feather_edge.runtime.receipt import write_receipt
from feather_edge.verify import verify, verify_checkpoint

if TYPE_CHECKING:
    from feather_edge.deploy.deployment import Work
    from feather_edge.evaluate.parity_report import VerifyReport

__all__ = ["is_verified", "run_verify"]


def run_verify(work: Work) -> Outcome:
    """Compare, write the receipt, and draw what pruning keeps.

    Raises:
        ParityError: naming what differs first.
    """
    target, bundle = work.target, Bundle.open(work.folder)
    reports = [verify(bundle, **link) for link in _links(work, bundle)]
    if work.deployment.against_checkpoint:
        reports.append(verify_checkpoint(bundle, work.deployment.checkpoint_folder))
    for report in reports:
        report.check()
    if reports:
        write_receipt(bundle, *(report.verdict for report in reports))
    name = work.deployment.output.name
    named = [msgspec.structs.replace(report, bundle=name) for report in reports]
    parity = tuple(msgspec.to_builtins(report) for report in named)
    pictures = draw_kept_tokens(bundle, backend=target.backend_here, target=target.target_here)
    return Outcome(
        summary="; ".join(map(_summary, reports))
        or "nothing to compare: the graphs have one form",
        status="done" if target.obstacle is None else "to-do",
        reason=target.obstacle,
        result=msgspec.to_builtins(VerifyResult(parity=parity, pictures=pictures)),
    )


def is_verified(work: Work) -> bool:
    """Return whether the receipt and the pictures are still there."""
    try:
        result = msgspec.convert(work.result("verify"), VerifyResult)
    except msgspec.ValidationError:
        return False
    files = [picture.file for row in result.pictures for picture in row]
    files += [RECEIPT_FILE] if result.parity else []
    return all((work.folder / file).is_file() for file in files)


def _links(work: Work, bundle: Bundle) -> list[dict[str, Any]]:
    """Return what is compared with ONNX Runtime on the main form of the graphs.

    What runs on the target, and where that is ONNX Runtime itself, the other forms. On another
    machine than the target the form that its engines are built from.
    """
    target = work.target
    main = bundle.vision_encoder.main_form.opset
    others = sorted({form.opset for form in bundle.vision_encoder.forms} - {main})
    if target.obstacle is None and target.backend != "onnxruntime":
        return [{"backend": target.backend, "target": target.target_here}]
    if target.engines is not None:
        plans = plan_elsewhere(target, bundle, plugin=work.deployment.plugin)
        others = [opset for opset in others if opset == plans[0].record.opset]
    return [{"backend": "onnxruntime", "opset": opset} for opset in others]


def _summary(report: VerifyReport) -> str:
    verdict = report.verdict
    return (
        f"{report.tested} against {report.reference}: worst cosine {verdict.worst_cosine:.6f}, "
        f"{verdict.num_equal_tokens} of {verdict.num_tokens} tokens equal"
    )
