"""OpenVINO GenAI: ``VLMPipeline`` over what optimum-intel exports."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from compare_peers.contenders import Environment, Precision, Row
from compare_peers.prompts import TEMPLATES

if TYPE_CHECKING:
    from pathlib import Path

ENVIRONMENT = Environment(
    name="openvino",
    packages=(
        "torch==2.13.0",
        "transformers==5.0.0",
        "optimum==2.3.0",
        "accelerate==1.15.0",
        "onnx==1.23.2",
        "openvino==2026.4.1",
        "openvino-genai==2026.4.1.0",
        "openvino-tokenizers==2026.4.1.0",
        "pillow==13.0.0",
        "jsonschema",
        "natsort",
        "networkx",
        "ninja",
        "num2words",
        "pandas",
        "pydot",
        "requests",
        "rich",
        "scikit-learn",
        "scipy",
        "tabulate",
    ),
    bare=("optimum-intel==2.2.0", "nncf==3.4.0", "torchvision==0.28.0"),
)
CDPRUNER_KEEPS = 0.25
VARIANTS: dict[str, tuple[str, Precision]] = {
    "f32": ("fp32 f32", "32"),
    "bf16": ("fp32 bf16", "16"),
    "int8": ("int8 f32", "8"),
    "int8 in bf16": ("int8 bf16", "8"),  # what it does by itself where the processor has bf16
}
ROWS = tuple(
    Row(
        name=f"OpenVINO GenAI {name}{', CDPruner' if keep_ratio else ''}",
        variant=variant,
        precision=bits,
        keep_ratio=keep_ratio,
    )
    for name, (variant, bits) in VARIANTS.items()
    for keep_ratio in (None, CDPRUNER_KEEPS)
)


def prepare(checkpoint: Path, folder: Path, variant: str) -> None:
    """Export with optimum-intel; variants of the same weights share the folder."""
    import torch

    # The torchvision of PyPI is built for another torch: what it would define itself is missing.
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")
    from optimum.commands.optimum_cli import main

    weights = variant.partition(" ")[0]
    sys.argv = ["optimum-cli", "export", "openvino", "--model", str(checkpoint)]
    sys.argv += ["--task", "image-text-to-text", "--weight-format", weights, str(folder)]
    main()
    if _model_type(checkpoint) == "llava":
        _write_crop(folder / "preprocessor_config.json")


def _write_crop(path: Path) -> None:
    """Say the size of pictures as CLIP's processor does; of SigLIP's words it takes none.

    Without them pictures are 336 pixels wide, whatever the encoder takes.
    """
    document = json.loads(path.read_text())
    crop = document["size"]
    document |= {"crop_size": crop, "size": {"shortest_edge": crop["height"]}}
    path.write_text(json.dumps(document, indent=2))


def _model_type(checkpoint: Path) -> str:
    config = json.loads((checkpoint / "config.json").read_text())
    return str(config["model_type"])


class Contender:
    """A pipeline without prefix cache: pictures differ, and prompts' starts are no free lunch."""

    def __init__(self, checkpoint: Path, folder: Path, variant: str, num_threads: int) -> None:
        import openvino
        import openvino_genai

        self._genai = openvino_genai
        self._template = TEMPLATES[_model_type(checkpoint)]
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.cache_size = 1
        hint = variant.partition(" ")[2]
        capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if hint == "bf16" and "BF16" not in capabilities:
            raise RuntimeError(
                "OpenVINO lists no BF16 for this CPU and would run the graphs in f32 all the same"
            )
        self._pipeline = openvino_genai.VLMPipeline(
            str(folder),
            "CPU",
            scheduler_config=scheduler,
            INFERENCE_NUM_THREADS=num_threads,
            INFERENCE_PRECISION_HINT=hint,
        )
        self.facts = {
            "openvino": openvino.__version__,
            "openvino_genai": openvino_genai.__version__,
        }

    def answer(
        self, image: str, question: str, max_new_tokens: int, keep_ratio: float | None
    ) -> dict[str, Any]:
        """Answer one question; see ``runner.Answer`` for what it returns."""
        import numpy as np
        import openvino
        from PIL import Image

        pixels = openvino.Tensor(np.array(Image.open(image).convert("RGB"))[None])
        config = self._genai.GenerationConfig()
        config.max_new_tokens = max_new_tokens
        config.do_sample = False
        config.ignore_eos = True
        config.apply_chat_template = False
        config.pruning_ratio = 0 if keep_ratio is None else round((1 - keep_ratio) * 100)
        # The pipeline writes what stands around a picture itself.
        prompt = self._template.render(question, "<ov_genai_image_0>")
        around = f"{self._template.before}<ov_genai_image_0>{self._template.after}"
        prompt = prompt.replace(around, "<ov_genai_image_0>")
        token_ids: list[int] = []
        at_s = [time.perf_counter()]

        class Clock(self._genai.StreamerBase):  # type: ignore[name-defined,misc]
            def write(clock, token: int | list[int]) -> Any:  # noqa: N805
                at_s.append(time.perf_counter())
                token_ids.extend([token] if isinstance(token, int) else token)
                return self._genai.StreamingStatus.RUNNING

            def end(clock) -> None:  # noqa: N805
                pass

        result = self._pipeline.generate(
            prompt, images=[pixels], generation_config=config, streamer=Clock()
        )
        metrics = result.perf_metrics
        return {
            "token_ids": token_ids,
            "num_prompt_tokens": metrics.get_num_input_tokens(),
            "vision_ms": metrics.get_prepare_embeddings_duration().mean,
            "ttft_ms": (at_s[1] - at_s[0]) * 1e3,
            "tpot_ms": (at_s[-1] - at_s[1]) / (len(token_ids) - 1) * 1e3,
        }
