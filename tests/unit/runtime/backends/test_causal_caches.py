from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.families.gemma import tiny_gemma3

from feather_edge import Pruning, Session
from feather_edge.errors import BackendError
from feather_edge.recipes import ExportRecipe
from feather_edge.runtime.backends import create_backend
from feather_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory

    from feather_edge.bundle import Bundle

PROMPT = "where is the red circle ?"


@pytest.fixture(scope="module")
def bundle(bundles: BundleFactory) -> Bundle:
    recipe = ExportRecipe(stages=(1, 3), opset="23")
    return bundles(num_layers=4, image_size=56, recipe=recipe).bundle


def test_causal_segments_keep_their_caches_in_place(bundle: Bundle) -> None:
    backend = create_backend("onnxruntime", bundle)
    for spec in bundle.decoders:
        graph = backend.open(bundle.path / spec.file, spec)

        assert graph.spec.caches_in_place == spec.caches
        assert "attention_mask" not in [tensor.name for tensor in graph.spec.inputs]


@pytest.mark.parametrize("keep_ratio", [1.0, 0.5])
@pytest.mark.parametrize("criterion", ["feather", "ivc-value"])
def test_answers_are_those_of_the_standard_graphs(
    bundle: Bundle, keep_ratio: float, criterion: str
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    pruning = Pruning(criterion=criterion, keep_ratio=(keep_ratio,))
    results = []
    for backend in (OnnxRuntimeBackend(), create_backend("onnxruntime", bundle)):
        with Session.open(bundle, backend=backend) as session:
            results.append(session.generate(image, PROMPT, pruning=pruning, max_new_tokens=12))

    standard, in_place = results
    assert in_place.token_ids == standard.token_ids
    for mine, theirs in zip(in_place.stages, standard.stages, strict=True):
        np.testing.assert_array_equal(mine.kept_indices, theirs.kept_indices)


def test_what_is_not_causal_stays_as_it_is(bundles: BundleFactory) -> None:
    gemma = bundles(tiny_gemma3).bundle
    backend = OnnxRuntimeBackend(causal_heads=gemma.manifest.decoder.num_attention_heads)
    for spec in gemma.decoders:
        graph = backend.open(gemma.path / spec.file, spec)
        assert graph.spec == spec


def test_a_broken_segment_is_named_by_its_file(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "decoder_0.onnx"
    file.write_bytes(b"not a graph")
    with pytest.raises(BackendError, match=r"onnxruntime cannot load .*decoder_0\.onnx: .+"):
        create_backend("onnxruntime", bundle).open(file, bundle.decoders[0])
