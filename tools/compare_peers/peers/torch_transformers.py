"""transformers on torch: the reference that all others are compared with."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from compare_peers.contenders import Environment, Row
from compare_peers.prompts import TEMPLATES

if TYPE_CHECKING:
    from pathlib import Path

ENVIRONMENT = Environment(
    name="torch",
    packages=("torch==2.13.0", "transformers==5.23.0", "pillow==13.0.0", "gguf==0.19.0"),
)
ROWS = (
    Row(name="transformers fp32", variant="float32", precision="32"),
    Row(name="transformers bf16", variant="bfloat16", precision="16"),
)


def prepare(checkpoint: Path, folder: Path, variant: str) -> None:
    """Nothing to do: it reads checkpoints."""
    del checkpoint, variant
    folder.mkdir(parents=True)


class Contender:
    """A loaded model. Hooks around the vision encoder time it."""

    def __init__(self, checkpoint: Path, folder: Path, variant: str, num_threads: int) -> None:
        import torch
        import transformers

        del folder
        torch.set_num_threads(num_threads)
        self._torch = torch
        config = transformers.AutoConfig.from_pretrained(checkpoint)
        self._template = TEMPLATES[config.model_type]
        self._model = transformers.AutoModelForImageTextToText.from_pretrained(
            checkpoint, dtype=getattr(torch, variant)
        ).eval()
        self._pictures = transformers.AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
        self._vision_ms = 0.0
        self._vision_start_s = 0.0
        inner = self._model.model
        tower = inner.visual if config.model_type == "qwen2_5_vl" else inner.vision_tower
        tower.register_forward_pre_hook(self._note_start)
        tower.register_forward_hook(self._note_end)
        self.facts = {"torch": torch.__version__, "transformers": transformers.__version__}

    def answer(
        self,
        image: str,
        question: str,
        max_new_tokens: int,
        keep_ratio: float | None,
        num_choices: int = 0,
    ) -> dict[str, Any]:
        """Answer one question; see ``runner.Answer`` for what it returns."""
        from PIL import Image

        assert keep_ratio is None  # noqa: S101 - no row asks for anything else
        picture = Image.open(image)
        picture.load()
        clock = _Clock()
        self._vision_ms = 0.0
        inputs = self._inputs(picture, question)
        with self._torch.inference_mode():
            output = self._model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                streamer=clock,
                return_dict_in_generate=True,
                output_logits=num_choices > 0,
            )
        num_prompt = inputs["input_ids"].shape[1]
        image_token_id = self._model.config.image_token_id
        return {
            "token_ids": output.sequences[0, num_prompt:].tolist(),
            "num_prompt_tokens": num_prompt,
            "num_visual_tokens": int((inputs["input_ids"] == image_token_id).sum()),
            "vision_ms": self._vision_ms,
            "choices": [
                _choices(logits[0, : len(self._tokenizer)], num_choices)
                for logits in output.logits or ()
            ],
            **clock.times(),
        }

    def _inputs(self, picture: Any, question: str) -> dict[str, Any]:
        """Return what ``generate`` takes. Not by the processor, which wants torchvision."""
        inputs = dict(self._pictures(picture, return_tensors="pt"))
        inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        if "image_grid_thw" in inputs:
            num_tokens = int(inputs["image_grid_thw"].prod()) // self._pictures.merge_size**2
        else:
            num_tokens = self._model.config.image_seq_length
        prompt = self._template.render(question, self._template.mark * num_tokens)
        ids = self._tokenizer(prompt, return_tensors="pt")["input_ids"]
        inputs["input_ids"] = ids
        inputs["attention_mask"] = self._torch.ones_like(ids)
        if "image_grid_thw" in inputs:
            inputs["mm_token_type_ids"] = (ids == self._model.config.image_token_id).int()
        return inputs

    def _note_start(self, *_: Any) -> None:
        self._vision_start_s = time.perf_counter()

    def _note_end(self, *_: Any) -> None:
        self._vision_ms += (time.perf_counter() - self._vision_start_s) * 1e3


def _choices(logits: Any, number: int) -> list[tuple[int, float]]:
    """Return the best tokens, and how many standard deviations their logits are behind."""
    best = logits.float().topk(number)
    behind = (best.values[0] - best.values) / logits.float().std()
    return [
        (int(each), round(float(far), 4)) for each, far in zip(best.indices, behind, strict=True)
    ]


class _Clock:
    """A streamer that notes when tokens come."""

    def __init__(self) -> None:
        self._at_s = [time.perf_counter()]

    def put(self, value: Any) -> None:
        """Take the prompt, then token after token."""
        if value.numel() == 1:
            self._at_s.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is held back."""

    def times(self) -> dict[str, float]:
        """Return TTFT and TPOT, in milliseconds."""
        start_s, first_s, *_, last_s = self._at_s
        return {
            "ttft_ms": (first_s - start_s) * 1e3,
            "tpot_ms": (last_s - first_s) / (len(self._at_s) - 2) * 1e3,
        }
