"""Regions on real graphs: one image inside the graph, several on the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.images import random_images

from feather_edge import Pruning, Region, Session
from feather_edge.images import load_image
from feather_edge.recipes import ExportRecipe
from feather_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from feather_edge.runtime.regions import overlapping_tokens

if TYPE_CHECKING:
    from support.bundles import BundleFactory

STAGES = (2, 4)


@pytest.fixture(scope="module")
def session(bundles: BundleFactory) -> Session:
    exported = bundles(num_layers=6, image_size=56, recipe=ExportRecipe(stages=STAGES))
    return Session.open(exported.bundle, backend=OnnxRuntimeBackend(device="cpu", num_threads=1))


@pytest.mark.parametrize("num_images", [1, 2])
@pytest.mark.parametrize("selection", ["fill", "union"])
@pytest.mark.parametrize("criterion", ["feather", "fastv", "uniform"])
def test_regions_hold_in_the_graph_and_on_the_host(
    session: Session, criterion: str, selection: str, num_images: int
) -> None:
    images = random_images(num_images, seed=1)
    picture = load_image(images[-1])
    width, height = picture.size
    regions = [
        Region(box=(width / 2, height / 2, width / 2 + 3, height / 2 + 3), image=num_images),
        Region(box=(0, height * 2 / 3, width, height), rule="forbid", image=num_images),
    ]
    protected, forbidden = (
        overlapping_tokens(region, session.bundle.manifest.image.prepare([picture]).rasters[0])
        for region in regions
    )
    pruning = Pruning(criterion=criterion, selection=selection)

    result = session.generate(images, "what ?", pruning=pruning, regions=regions, max_new_tokens=2)

    first_token = 64 * (num_images - 1)
    for stage in result.stages:
        kept = stage.kept_indices[stage.kept_indices >= first_token] - first_token
        assert set(protected) <= set(kept)
        assert not set(forbidden) & set(kept)
    if criterion == "fastv":  # no grid: the rest of the first stage is kept by score
        stage = result.stages[0]
        scores = stage.scores[first_token:]
        kept = stage.kept_indices[stage.kept_indices >= first_token] - first_token
        dropped = np.setdiff1d(np.arange(64), np.concatenate([kept, forbidden]))
        assert scores[np.setdiff1d(kept, protected)].min() >= scores[dropped].max()
