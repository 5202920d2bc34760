"""The tool that holds exports against copies."""

from __future__ import annotations

import numpy as np
import pytest

from feather_edge.checkpoint import resolve_checkpoint
from feather_edge.checkpoint.reader import Checkpoint

SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 40000,
}


@pytest.mark.parametrize("is_sparse", [False, True])
def test_checkpoint_has_one_shard_a_layer(tmp_path, is_sparse):
    from measure_builder_peak import write_checkpoint

    demo = resolve_checkpoint("demo")
    folder = write_checkpoint(demo, tmp_path / "made", SIZES, is_sparse=is_sparse)

    checkpoint = Checkpoint.open(folder)
    embeddings = checkpoint.tensor("language_model.model.embed_tokens.weight")
    up = checkpoint.tensor("language_model.model.layers.1.mlp.up_proj.weight")
    projector = checkpoint.tensor("multi_modal_projector.linear_1.weight")
    assert projector.shape[0] == SIZES["hidden_size"]
    assert (embeddings.shape, up.shape) == ((40000, 64), (96, 64))
    assert (embeddings.file.name, up.file.name) == (
        "model-rest.safetensors",
        "model-1.safetensors",
    )
    assert up.dtype == np.float16
    assert bool(up.read().any()) is not is_sparse
    on_disk = embeddings.file.stat().st_blocks * 512
    assert (on_disk < embeddings.nbytes) is is_sparse


def test_export_is_allowed_what_a_copy_takes_and_more(tmp_path):
    from measure_export import measure

    result = measure(resolve_checkpoint("demo"), tmp_path, [], num_rounds=1)

    copy, exported = result["median"]["copy"], result["median"]["export"]
    assert result["allowed"]["cpu_s"] == pytest.approx(1.3 * copy["cpu_s"] + 5, abs=0.01)
    assert 0 < copy["peak_rss_mib"] < exported["peak_rss_mib"]
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="exit code"):
        measure(tmp_path / "missing", tmp_path, [], num_rounds=1)
