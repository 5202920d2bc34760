"""Hold the estimates of `feather-edge fit` against peaks of real exports, builds and runs.

Usage: python tools/measure_fit.py WORK [--case NAME]... [--output FILE]
       python tools/measure_fit.py WORK --again FILE

Needs a checkout with the extras dev and rtx. Makes random checkpoints of several families in the
folder WORK (about 3 GB, kept for the next time), exports, builds and runs each in a process of its
own, and prints a Markdown table: what `fit` says, what /proc says (VmHWM), and how far apart they
are. Weights are drawn with a fixed seed. The builder is TensorRT-RTX and needs no GPU; runs are
ONNX Runtime on the CPU. With --again, what was measured is read from the FILE of an earlier run,
and only what `fit` says is asked anew: a change of a formula needs no new measurement.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from feather_edge.bundle import Bundle
from feather_edge.fit import fit
from feather_edge.recipes import ExportRecipe, load_engine_recipe, override_engine
from feather_edge.samples import shipped_samples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


TESTS = Path(__file__).parent.parent / "tests"
CHILD = """
import sys
from feather_edge.cli import main
from feather_edge.runtime.memory import peak_rss_mib
main(sys.argv[1:], standalone_mode=False)
print(f"peak {peak_rss_mib()}")
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One checkpoint and what is done with it.

    Attributes:
        make: writes the checkpoint into a folder.
        exports: by a short name, the recipe.
        limits: of the engines, for the builds.
        built: exports of which engines are built.
        run: exports that are run on the CPU.
        words: of the longer prompt of a run, and the most tokens of its answer.
        is_held_out: no constant of `fit` was chosen by this case.
    """

    make: Callable[[Path], Any]
    exports: dict[str, ExportRecipe]
    limits: dict[str, Any]
    built: tuple[str, ...] = ()
    run: tuple[str, ...] = ()
    words: tuple[int, int] = (60, 32)
    is_held_out: bool = False


def _llava(folder: Path, **sizes: Any) -> None:
    import torch
    from support.checkpoints import tiny_llava

    vision = {
        name.removeprefix("vision_"): sizes.pop(name)
        for name in tuple(sizes)
        if name.startswith("vision_")
    }
    tiny_llava(
        folder,
        vision=sizes.pop("tower"),
        text=sizes.pop("text"),
        dtype=torch.float16 if sizes.pop("half") else torch.float32,
        image_size=sizes.pop("image_size"),
        patch_size=14,
        vision_overrides={**vision, "num_attention_heads": 8},
        max_position_embeddings=4096,
        **sizes,
    )


def _internvl(folder: Path) -> None:
    from support.families.internvl import tiny_internvl

    tiny_internvl(
        folder,
        num_layers=12,
        image_size=224,
        patch_size=14,
        max_patches=4,
        vision_overrides={
            "hidden_size": 384,
            "intermediate_size": 1536,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
        },
        hidden_size=640,
        intermediate_size=2048,
        num_attention_heads=10,
        num_key_value_heads=2,
        vocab_size=24000,
        max_position_embeddings=4096,
    )


def _qwen(folder: Path) -> None:
    from support.families.qwen_vl import tiny_qwen_vl

    tiny_qwen_vl(
        folder,
        model_type="qwen2_5_vl",
        layout="hub",
        is_tied=True,
        vision_overrides={
            "depth": 6,
            "hidden_size": 512,
            "intermediate_size": 1408,
            "num_heads": 8,
            "out_hidden_size": 1024,
            "window_size": 112,
            "fullatt_block_indexes": [2, 5],
        },
        mrope_section=[8, 12, 12],
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=14,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=48000,
        max_position_embeddings=4096,
    )


INT8 = ExportRecipe(precision="int8", activations="fp16")
INT4 = ExportRecipe(precision="int4", activations="fp16")
DYNAMIC = ExportRecipe(precision="int8-dynamic")
CASES = {
    "llava-1m": Case(
        make=lambda folder: _llava(
            folder, tower="clip", text="llama", half=False, image_size=224, num_layers=4,
            hidden_size=64, intermediate_size=128, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=600, vision_hidden_size=64,
            vision_intermediate_size=128, vision_num_hidden_layers=2,
        ),
        exports={"fp16": ExportRecipe(precision="fp16"), "int8-dynamic": DYNAMIC},
        limits={"max_prompt_tokens": 128, "max_visual_tokens": 256, "max_cache_capacity": 512},
        built=("fp16",),
    ),
    "llava-20m": Case(
        make=lambda folder: _llava(
            folder, tower="clip", text="llama", half=False, image_size=224, num_layers=8,
            hidden_size=320, intermediate_size=1024, num_attention_heads=8,
            num_key_value_heads=4, vocab_size=8000, vision_hidden_size=256,
            vision_intermediate_size=1024, vision_num_hidden_layers=4,
        ),
        exports={
            "fp32": ExportRecipe(),
            "fp16": ExportRecipe(precision="fp16"),
            "int8": INT8,
            "int8-dynamic": DYNAMIC,
        },
        limits={"max_prompt_tokens": 128, "max_visual_tokens": 256, "max_cache_capacity": 512},
        built=("fp16", "int8"),
        run=("fp32", "fp16"),
    ),
    "llava-135m": Case(
        make=lambda folder: _llava(
            folder, tower="siglip", text="qwen2", half=True, image_size=336, num_layers=12,
            hidden_size=768, intermediate_size=2560, num_attention_heads=12,
            num_key_value_heads=4, vocab_size=32000, vision_hidden_size=512,
            vision_intermediate_size=2048, vision_num_hidden_layers=6,
        ),
        exports={
            "fp32": ExportRecipe(keep_ratio=(0.5,)),
            "int8": INT8,
            "int4": INT4,
            "int8-dynamic": DYNAMIC,
        },
        limits={"max_visual_tokens": 576, "profiles": "one"},
        built=("int8", "int4"),
        run=("fp32", "int8"),
    ),
    "internvl-90m": Case(
        make=_internvl,
        exports={"fp32": ExportRecipe(), "fp16": ExportRecipe(precision="fp16")},
        limits={"max_visual_tokens": 512, "max_keep_ratio": (0.5,)},
        built=("fp32", "fp16"),
        run=("fp32", "fp16"),
        words=(400, 32),
    ),
    "qwen2_5_vl-250m": Case(
        make=_qwen,
        exports={
            "fp32": ExportRecipe(prune="none"),
            "fp16": ExportRecipe(precision="fp16", prune="none"),
            "int8": INT8,
        },
        limits={
            "max_prompt_tokens": 128, "max_visual_tokens": 256, "max_cache_capacity": 512,
            "profiles": "one",
        },
        built=("fp16",),
        run=("fp32", "int8"),
        is_held_out=True,
    ),
    "llava-400m": Case(
        make=lambda folder: _llava(
            folder, tower="clip", text="llama", half=True, image_size=336, num_layers=16,
            hidden_size=1280, intermediate_size=3584, num_attention_heads=16,
            num_key_value_heads=4, vocab_size=32000, vision_hidden_size=768,
            vision_intermediate_size=3072, vision_num_hidden_layers=8,
        ),
        exports={
            "fp32": ExportRecipe(),
            "int8": ExportRecipe(precision="int8"),
            "fp16": ExportRecipe(precision="fp16"),
            "int8-dynamic": DYNAMIC,
        },
        limits={"max_visual_tokens": 576, "profiles": "one"},
        built=("fp16",),
        run=("fp32", "int8"),
        words=(200, 32),
        is_held_out=True,
    ),
}  # fmt: skip
"""Checkpoints, smallest first; what is held out comes last."""


def child_peak_mib(*arguments: str) -> float:
    """Run the command line in a process of its own and return its peak, in MiB."""
    done = subprocess.run(  # noqa: S603 - our own command line
        [sys.executable, "-c", CHILD, *arguments], check=True, capture_output=True, text=True
    )
    return float(done.stdout.rsplit("peak ", 1)[1])


def measure(name: str, case: Case, work: Path) -> Iterator[dict[str, Any]]:
    """Yield what was measured of one case: a row each of an export, a run and a build."""
    checkpoint = ready_checkpoint(name, work)
    for precision, recipe in case.exports.items():
        bundle = work / f"{name}-{precision}"
        shutil.rmtree(bundle, ignore_errors=True)
        arguments = ("export", str(checkpoint), "-o", str(bundle), *export_options(recipe))
        of = {"case": name, "precision": precision}
        yield of | {"stage": "export", "limits": {}, "measured": child_peak_mib(*arguments)}
        if precision in case.run:
            yield from (of | row for row in measure_runs(case, bundle))
        if precision in case.built:
            yield of | measure_build(case, bundle)
        shutil.rmtree(bundle)


def say(row: dict[str, Any], work: Path) -> float:
    """Return what `fit` says of a measured row, told from the checkpoint alone."""
    recipe = CASES[row["case"]].exports[row["precision"]]
    is_build = row["stage"] == "build"
    settings = load_engine_recipe("rtx" if is_build else "desktop")
    # JSON has lists only.
    limits = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in row["limits"].items()
    }
    report = fit(
        ready_checkpoint(row["case"], work),
        target="rtx" if is_build else None,
        recipe=recipe,
        engine_recipe=override_engine(settings, **limits) if limits else None,
    )
    return next(stage.peak_mib for stage in report.stages if stage.name == row["stage"])


def ready_checkpoint(name: str, work: Path) -> Path:
    """Return the checkpoint of a case, made where it is missing."""
    checkpoint = work / name
    if not checkpoint.is_dir():
        make_apart(name, checkpoint)
    return checkpoint


def make_apart(name: str, checkpoint: Path) -> None:
    """Make the checkpoint in a process of its own: torch keeps what it took."""
    code = (
        f"import sys; sys.path[:0] = {[str(TESTS), str(Path(__file__).parent)]!r}\n"
        f"from pathlib import Path; from measure_fit import CASES\n"
        f"CASES[{name!r}].make(Path({str(checkpoint)!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603


def export_options(recipe: ExportRecipe) -> list[str]:
    """Return the options of `feather-edge export` that make ``recipe``."""
    options = ["--precision", recipe.precision]
    if recipe.activations is not None:
        options += ["--activations", recipe.activations]
    if recipe.prune == "none":
        return [*options, "--prune", "none"]
    return [*options, "--keep-ratio", ",".join(map(str, recipe.keep_ratio))]


def measure_runs(case: Case, bundle: Path) -> Iterator[dict[str, Any]]:
    """Yield a run with a short prompt and one with a longer one."""
    picture = large_picture(bundle.parent)
    for words, new_tokens in ((10, 16), case.words):
        prompt = " ".join(["where"] * words)
        yield {
            "stage": "run",
            "limits": prompt_limits(bundle, picture, prompt, new_tokens),
            "measured": child_peak_mib(
                "run", str(bundle), "--image", str(picture), "--prompt", prompt,
                "--max-new-tokens", str(new_tokens), "--backend", "onnxruntime",
            ),
        }  # fmt: skip


def large_picture(folder: Path) -> Path:
    """Return a shipped picture, large enough for as many tiles as a family takes."""
    from PIL import Image

    file = folder / "large.png"
    if not file.is_file():
        Image.open(str(shipped_samples(1)[0].image)).resize((1024, 1024)).save(file)
    return file


def prompt_limits(bundle: Path, picture: Path, prompt: str, new_tokens: int) -> dict[str, int]:
    """Return the limits that a prompt with a picture just keeps to."""
    from feather_edge.runtime.session import Session

    opened = Bundle.open(bundle)
    with Session.open(opened, backend="onnxruntime") as session:
        result = session.generate(picture, prompt, max_new_tokens=1)
    visual = result.num_visual_tokens
    text = result.num_prompt_tokens - visual
    return {
        "max_prompt_tokens": text,
        "opt_prompt_tokens": text,
        "max_visual_tokens": visual,
        "max_cache_capacity": text + visual + new_tokens,
    }


def measure_build(case: Case, bundle: Path) -> dict[str, Any]:
    """Build engines with TensorRT-RTX, one at a time, and return the largest peak."""
    from feather_edge.engines.build import build_engines
    from feather_edge.engines.memory import weight_bytes

    limits = case.limits | {"compute_capabilities": ("8.6",)}
    recipe = override_engine(load_engine_recipe("rtx"), **limits)
    opened = Bundle.open(bundle)
    report = build_engines(opened, recipe, target="rtx")
    weights = {
        graph.name: weight_bytes(onnx.load(bundle / graph.file, load_external_data=False))
        for graph in opened.manifest.graphs
    }
    return {
        "stage": "build",
        "limits": limits,
        "measured": max(engine.peak_rss_mib for engine in report.engines),
        "engines": {
            engine.graph: {
                "peak_mib": engine.peak_rss_mib,
                "engine_mib": round(engine.bytes / 2**20, 1),
                "weights": weights[engine.graph],
            }
            for engine in report.engines
        },
    }


def conditions(row: dict[str, Any]) -> str:
    """Return the limits of a row in words."""
    limits = row["limits"]
    if row["stage"] == "run":
        return f"{limits['max_prompt_tokens']} text + {limits['max_visual_tokens']} visual"
    return f"profiles: {limits.get('profiles', 'two')}" if row["stage"] == "build" else ""


def print_row(row: dict[str, Any], work: Path) -> None:
    """Print a row of the table."""
    said, measured = say(row, work), row["measured"]
    role = "held out" if CASES[row["case"]].is_held_out else "chosen by"
    print(
        f"| {row['case']} | {role} | {row['precision']} | {row['stage']} | {conditions(row)} | "
        f"{said:.0f} | {measured:.0f} | {said / measured - 1:+.1%} |",
        flush=True,
    )


def run(arguments: list[str]) -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description="estimates of fit against measured peaks")
    parser.add_argument("work", type=Path)
    parser.add_argument("--case", action="append", choices=list(CASES))
    parser.add_argument("--output", type=Path, help="raw results, a JSON document a line")
    parser.add_argument("--again", type=Path, help="raw results of an earlier run")
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    print("| checkpoint | constants | precision | stage | conditions | said, MiB | measured, MiB "
          "| error |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    if options.again is not None:
        for line in options.again.read_text(encoding="utf-8").splitlines():
            print_row(json.loads(line), options.work)
        return
    for name in options.case or CASES:
        for row in measure(name, CASES[name], options.work):
            print_row(row, options.work)
            if options.output is not None:
                with options.output.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    run(sys.argv[1:])
