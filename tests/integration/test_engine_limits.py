"""A stage that keeps more than engines were built for says so, before anything fails elsewhere.

Engines with ``--max-keep-ratio`` below 1 are the case: a quota that grows for protected regions
can outgrow what the next segment takes. On a fake device; no GPU is involved.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.fake_engines import MAX_ROWS, TARGET, bundle_with_engines

from feather_edge.errors import BackendError
from feather_edge.pruning import Pruning, Region
from feather_edge.recipes import ExportRecipe
from feather_edge.runtime.session import Session

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory

    from feather_edge.bundle import Bundle

PICTURE = np.zeros((56, 56, 3), np.uint8)
EVERYTHING = Region(box=(0, 0, 56, 56))
FEW = Pruning(criterion="feather", keep_ratio=(0.2, 0.1))


@pytest.fixture
def bundle(bundles: BundleFactory, tmp_path: Path) -> Bundle:
    exported = bundles(num_layers=4, image_size=56, recipe=ExportRecipe(stages=(1, 3)))
    return bundle_with_engines(exported.bundle, tmp_path / "bundle")


def narrow(bundle: Bundle, graph: str, rows: int, *, only: str | None = None) -> None:
    """Let the record of an engine say that a prefill takes at most ``rows``, or keeps them."""
    file = bundle.path / "engines" / TARGET / f"{graph}.json"
    record = json.loads(file.read_text())
    for name, span in record["profiles"][0]["inputs"].items():
        if only in (None, name):
            span["max"] = [rows if size == MAX_ROWS else size for size in span["max"]]
    file.write_text(json.dumps(record))


@pytest.mark.usefixtures("trt")
@pytest.mark.parametrize("selection", ["fill", "union"])
def test_a_quota_grown_for_protected_regions_may_not_fit(bundle: Bundle, selection: str) -> None:
    narrow(bundle, "decoder_1", 40)
    pruning = Pruning(criterion="feather", keep_ratio=(0.2, 0.1), selection=selection)
    with Session.open(bundle, backend="tensorrt") as session:
        session.generate(PICTURE, "hi", pruning=pruning, max_new_tokens=2)
        with pytest.raises(BackendError) as error:
            session.generate(
                PICTURE, "hi", pruning=pruning, regions=[EVERYTHING], max_new_tokens=2
            )
    text = str(error.value)
    num_rows = session.last_result.num_prompt_tokens if session.last_result else 0
    assert text.startswith(
        f"the pruning stage before layer 1 keeps {num_rows} rows (text and visual tokens), "
    )
    assert (
        "of them beyond its quota for protected regions, but the engines here take at most 40"
        in text
    )
    assert text.endswith("or build them with a higher --max-keep-ratio")


@pytest.mark.usefixtures("trt")
def test_an_unpruned_request_may_not_fit(bundle: Bundle) -> None:
    narrow(bundle, "decoder_2", 40)
    with Session.open(bundle, backend="tensorrt") as session:
        session.generate(PICTURE, "hi", pruning=FEW, max_new_tokens=2)
        with pytest.raises(BackendError) as error:
            session.generate(PICTURE, "hi", pruning=Pruning(criterion="none"), max_new_tokens=2)
    assert "the pruning stage before layer 3 keeps" in str(error.value)
    assert "protected" not in str(error.value)


@pytest.mark.usefixtures("trt")
def test_more_than_top_k_takes(bundle: Bundle) -> None:
    """Where all rows are more than TopK keeps, K itself is limited."""
    narrow(bundle, "decoder_0", 30, only="num_kept")
    with Session.open(bundle, backend="tensorrt") as session:
        session.generate(PICTURE, "hi", pruning=FEW, max_new_tokens=2)
        with pytest.raises(BackendError, match="before layer 1 keeps .* take at most 30"):
            session.generate(PICTURE, "hi", pruning=FEW, regions=[EVERYTHING], max_new_tokens=2)
