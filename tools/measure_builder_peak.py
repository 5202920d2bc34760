"""Measure what building a split decoder costs in host memory, against the decoder in one piece.

Usage: python tools/measure_builder_peak.py [CHECKPOINT] [--layers N] [--width D] ...

Takes tokenizer and vision encoder of CHECKPOINT (default: demo), replaces its decoder by a random
one of the given sizes, exports that twice from the same weights, once split at the default stages
and once whole, builds both, and prints one JSON document. No GPU is needed with --target rtx.
Needs ``pip install 'feather-edge[rtx]'`` and disk for about six times the weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

from feather_edge.checkpoint import resolve_checkpoint
from feather_edge.checkpoint.reader import read_tensors
from feather_edge.engines.build import build_engines
from feather_edge.export.pipeline import export
from feather_edge.recipes import ExportRecipe, load_engine_recipe, override_engine

if TYPE_CHECKING:
    from feather_edge.engines.build import BuildReport

SIZES = {
    "num_hidden_layers": 8,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "head_dim": 128,
}
"""The decoder of Qwen2-VL-2B, cut to 8 layers."""


def write_checkpoint(
    source: Path,
    folder: Path,
    sizes: dict[str, int],
    *,
    dtype: type[np.floating[Any]] = np.float16,
    seed: int = 0,
) -> Path:
    """Write ``source`` with a random decoder of ``sizes`` into ``folder``, a shard for each layer.

    Values are small, so that activations stay within float16. One shard is in memory at a time.
    """
    folder.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix in {".json", ".jinja", ".model"} and "safetensors" not in file.name:
            shutil.copyfile(file, folder / file.name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["text_config"] |= {"max_position_embeddings": 4096} | sizes
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    kept = {}
    for file in source.glob("*.safetensors"):
        views = read_tensors(file)
        kept |= {n: v.read() for n, v in views.items() if not n.startswith("language_model.")}
    vision_width, width = config["vision_config"]["hidden_size"], sizes["hidden_size"]
    shapes = _decoder_shapes(config["text_config"]) | {
        "multi_modal_projector.linear_1.weight": (width, vision_width),
        "multi_modal_projector.linear_1.bias": (width,),
        "multi_modal_projector.linear_2.weight": (width, width),
        "multi_modal_projector.linear_2.bias": (width,),
    }
    shards: dict[str, list[str]] = {}
    for name in shapes:
        layer, _, _ = name.partition(".layers.")[2].partition(".")
        shards.setdefault(f"model-{layer or 'rest'}.safetensors", []).append(name)
    rng = np.random.default_rng(seed)
    weight_map = dict.fromkeys(kept, "model-rest.safetensors")
    for file_name, names in shards.items():
        tensors = dict(kept) if "rest" in file_name else {}
        for name in names:
            values = rng.standard_normal(shapes[name], np.float32) * np.float32(0.02)
            tensors[name] = values.astype(dtype)
        save_file(tensors, folder / file_name)
        weight_map |= dict.fromkeys(names, file_name)
    index = json.dumps({"weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    return folder


def _decoder_shapes(text: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, wide, vocab = text["hidden_size"], text["intermediate_size"], text["vocab_size"]
    queries = text["num_attention_heads"] * text["head_dim"]
    keys = text["num_key_value_heads"] * text["head_dim"]
    prefix = "language_model.model"
    shapes: dict[str, tuple[int, ...]] = {
        "language_model.lm_head.weight": (vocab, width),
        f"{prefix}.embed_tokens.weight": (vocab, width),
        f"{prefix}.norm.weight": (width,),
    }
    for layer in range(text["num_hidden_layers"]):
        shapes |= {
            f"{prefix}.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (width,),
                "post_attention_layernorm": (width,),
                "self_attn.q_proj": (queries, width),
                "self_attn.k_proj": (keys, width),
                "self_attn.v_proj": (keys, width),
                "self_attn.o_proj": (width, queries),
                "mlp.gate_proj": (wide, width),
                "mlp.up_proj": (wide, width),
                "mlp.down_proj": (width, wide),
            }.items()
        }
    return shapes


def measure(checkpoint: Path, work: Path, *, opset: str, capabilities: tuple[str, ...]) -> Any:
    """Build split and whole, one engine at a time, and return what it took."""
    recipe = override_engine(
        load_engine_recipe("rtx"), opset=opset, compute_capabilities=capabilities
    )
    result = {}
    for name, export_recipe in {
        "split": ExportRecipe(precision="fp16"),
        "whole": ExportRecipe(precision="fp16", prune="none"),
    }.items():
        bundle = export(checkpoint, work / name, export_recipe)
        started = time.perf_counter()
        report = build_engines(bundle, recipe, target="rtx")
        wall_s = time.perf_counter() - started
        weights = sum(
            bundle.manifest.files[graph.weights_file].num_bytes for graph in bundle.decoders
        )
        result[name] = _summary(report, wall_s) | {"weights_mib": round(weights / 2**20, 1)}
    ratio = result["split"]["peak_rss_mib"] / result["whole"]["peak_rss_mib"]
    return {"peak_ratio": round(ratio, 3), "opset": recipe.opset, **result}


def _summary(report: BuildReport, wall_s: float) -> dict[str, Any]:
    decoders = [engine for engine in report.engines if engine.graph.startswith("decoder_")]
    return {
        "peak_rss_mib": max(engine.peak_rss_mib for engine in decoders),
        "wall_s": round(wall_s, 1),
        "tensorrt_version": report.tensorrt_version,
        "engines": {
            engine.graph: {
                "build_s": engine.build_s,
                "peak_rss_mib": engine.peak_rss_mib,
                "mib": round(engine.bytes / 2**20, 1),
            }
            for engine in decoders
        },
    }


def run(arguments: list[str]) -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description="peak memory of building split and whole")
    parser.add_argument("checkpoint", nargs="?", default="demo")
    parser.add_argument("--layers", type=int, default=SIZES["num_hidden_layers"])
    parser.add_argument("--width", type=int, default=SIZES["hidden_size"])
    parser.add_argument("--intermediate", type=int, default=SIZES["intermediate_size"])
    parser.add_argument("--opset", choices=["18", "23", "24"], default="23")
    parser.add_argument("--compute-capability", default="8.6")
    options = parser.parse_args(arguments)
    head_dim = SIZES["head_dim"]
    sizes = SIZES | {
        "num_hidden_layers": options.layers,
        "hidden_size": options.width,
        "intermediate_size": options.intermediate,
        "num_attention_heads": options.width // head_dim,
    }
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        checkpoint = write_checkpoint(
            resolve_checkpoint(options.checkpoint), work / "checkpoint", sizes
        )
        capabilities = (options.compute_capability,)
        result = measure(checkpoint, work, opset=options.opset, capabilities=capabilities)
    print(json.dumps({"sizes": sizes, **result}, indent=2))


if __name__ == "__main__":
    run(sys.argv[1:])
