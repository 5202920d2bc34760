"""onnxruntime-genai over the graphs that mobius builds from a checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from compare_peers.contenders import Environment, Row
from compare_peers.prompts import TEMPLATES

if TYPE_CHECKING:
    from pathlib import Path

ENVIRONMENT = Environment(
    name="genai",
    packages=(
        "torch==2.13.0",
        "transformers==5.24.0",
        "onnx==1.23.2",
        "onnxscript==0.7.2",
        "onnxruntime==1.32.0",
        "onnxruntime-genai==0.18.0",
        "rich",
    ),
    bare=("mobius-onnx==0.1.0", "onnx-shape-inference==0.4.0"),
)
ROWS = (Row(name="onnxruntime-genai fp32", variant="f32", precision="32"),)


def prepare(checkpoint: Path, folder: Path, variant: str) -> None:
    """Build the graphs, and complete their configuration, which mobius writes for text alone."""
    command = [sys.executable, "-m", "mobius", "build", "--config", str(checkpoint), str(folder)]
    command += ["--ep", "cpu", "--dtype", variant, "--runtime", "ort-genai"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
    sys.stderr.write(done.stderr)
    lines = (done.stdout + done.stderr).splitlines()
    if missing := [line for line in lines if "without weights" in line]:
        raise RuntimeError(f"mobius: {missing[0].strip()}")
    done.check_returncode()
    config = json.loads((checkpoint / "config.json").read_text())
    path = folder / "genai_config.json"
    document = json.loads(path.read_text())
    document["model"] |= {
        "type": config["model_type"],
        "image_token_id": config["image_token_id"],
        "video_token_id": config["video_token_id"],
        "vision_start_token_id": config["vision_start_token_id"],
    }
    path.write_text(json.dumps(document, indent=2))
    _write_processor(folder, json.loads((checkpoint / "preprocessor_config.json").read_text()))


def _write_processor(folder: Path, pictures: dict[str, Any]) -> None:
    """Write the steps from picture to patches as onnxruntime-extensions wants them."""
    steps = [
        {"name": "decode_image", "type": "DecodeImage", "attrs": {"color_space": "RGB"}},
        {"name": "convert_to_rgb", "type": "ConvertRGB"},
        {
            "name": "smart_resize",
            "type": "Resize",
            "attrs": {
                "width": 540,
                "height": 360,
                "smart_resize": 1,
                "min_pixels": pictures["min_pixels"],
                "max_pixels": pictures["max_pixels"],
                "patch_size": pictures["patch_size"],
                "merge_size": pictures["merge_size"],
            },
        },
        {"name": "rescale", "type": "Rescale", "attrs": {"rescale_factor": 1 / 255}},
        {
            "name": "normalize",
            "type": "Normalize",
            "attrs": {
                "mean": pictures["image_mean"],
                "std": pictures["image_std"],
                "qwen2_5_vl": 1,
            },
        },
        {
            "name": "patch_image",
            "type": "PatchImage",
            "attrs": {
                "patch_size": pictures["patch_size"],
                "temporal_patch_size": pictures["temporal_patch_size"],
                "merge_size": pictures["merge_size"],
            },
        },
    ]
    document = {
        "processor": {
            "name": "qwen2_5_image_processor",
            "transforms": [{"operation": step} for step in steps],
        }
    }
    (folder / "processor_config.json").write_text(json.dumps(document, indent=2))


class Contender:
    """A loaded model. It does not tell how long its vision graph takes."""

    def __init__(self, checkpoint: Path, folder: Path, variant: str, num_threads: int) -> None:
        import onnxruntime_genai

        del variant
        self._genai = onnxruntime_genai
        config = json.loads((checkpoint / "config.json").read_text())
        self._template = TEMPLATES[config["model_type"]]
        options = {
            "provider_options": [],
            "intra_op_num_threads": num_threads,
            # Threads that wait would otherwise take time from the other contenders.
            "session.intra_op.allow_spinning": "0",
        }
        overlay = {
            "model": {
                name: {"session_options": options} for name in ("decoder", "vision", "embedding")
            }
        }
        settings = onnxruntime_genai.Config(str(folder))
        settings.overlay(json.dumps(overlay))
        self._model = onnxruntime_genai.Model(settings)
        self._processor = self._model.create_multimodal_processor()
        self.facts = {"onnxruntime_genai": onnxruntime_genai.__version__}

    def answer(
        self, image: str, question: str, max_new_tokens: int, keep_ratio: float | None
    ) -> dict[str, Any]:
        """Answer one question; see ``runner.Answer`` for what it returns."""
        assert keep_ratio is None  # noqa: S101 - no row asks for anything else
        prompt = self._template.render(question, self._template.mark)
        pictures = self._genai.Images.open(image)
        at_s = [time.perf_counter()]
        inputs = self._processor(prompt, images=pictures)
        parameters = self._genai.GeneratorParams(self._model)
        parameters.set_search_options(max_length=2048, do_sample=False)
        generator = self._genai.Generator(self._model, parameters)
        generator.set_inputs(inputs)
        num_prompt = 0
        for _ in range(max_new_tokens):
            generator.generate_next_token()
            at_s.append(time.perf_counter())
            num_prompt = num_prompt or len(generator.get_sequence(0)) - 1
        return {
            "token_ids": [int(each) for each in generator.get_sequence(0)[num_prompt:]],
            "num_prompt_tokens": num_prompt,
            "vision_ms": None,
            "ttft_ms": (at_s[1] - at_s[0]) * 1e3,
            "tpot_ms": (at_s[-1] - at_s[1]) / (max_new_tokens - 1) * 1e3,
        }
