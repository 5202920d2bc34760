"""llama.cpp: its server, as the wheel of xllamacpp has it, over GGUF files of its converter."""

from __future__ import annotations

import base64
import json
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from compare_peers.contenders import Environment, Row
from compare_peers.prompts import TEMPLATES

ENVIRONMENT = Environment(
    name="llama",
    packages=(
        "torch==2.13.0",
        "transformers==5.23.0",
        "xllamacpp==2026.10.11549",
        "pyyaml==6.0.4",
        "sentencepiece==0.2.3",
    ),
    sources=("llama-cpp-python==0.3.36",),  # has the converter, and the gguf that it needs
)
DIFFERS = "its Qwen2-VL decoder reads no epsilon of its norms and takes 0; its KV cache is f16"
ROWS = (
    Row(name="llama.cpp f32", variant="f32", precision="32", is_timed=False, differs=DIFFERS),
    Row(name="llama.cpp f16", variant="f16", precision="16", differs=DIFFERS),
    Row(name="llama.cpp q8_0", variant="q8_0", precision="8", differs=DIFFERS),
)


def prepare(checkpoint: Path, folder: Path, variant: str) -> None:
    """Convert the decoder, and the vision encoder, which q8_0 leaves in f16 as users have it."""
    converter = next(Path(sys.prefix).glob("sources/*/vendor/llama.cpp"))
    sys.path.insert(0, str(converter))
    import convert_hf_to_gguf
    from conversion import base

    # Known by a hash of how a long text is split, which depends on the vocabulary.
    base.TextModel.get_vocab_base_pre = lambda _self, _tokenizer: "qwen2"
    folder.mkdir(parents=True)
    vision = "f16" if variant == "q8_0" else variant
    for kind, outtype in (("model", variant), ("mmproj", vision)):
        sys.argv = ["convert", str(checkpoint), "--outtype", outtype]
        sys.argv += ["--outfile", str(folder / f"{kind}.gguf")]
        sys.argv += ["--mmproj"] if kind == "mmproj" else []
        convert_hf_to_gguf.main()


class Contender:
    """A server in this process; TTFT is to the first piece of its stream."""

    def __init__(self, checkpoint: Path, folder: Path, variant: str, num_threads: int) -> None:
        import xllamacpp

        config = json.loads((checkpoint / "config.json").read_text())
        self._template = TEMPLATES[config["model_type"]]
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(folder / "model.gguf")
        parameters.mmproj.path = str(folder / "mmproj.gguf")
        parameters.mmproj_use_gpu = False
        parameters.n_ctx = 2048
        parameters.n_parallel = 1
        parameters.cache_prompt = False
        parameters.cache_ram_mib = 0
        for threads in (parameters.cpuparams, parameters.cpuparams_batch):
            threads.n_threads = num_threads
        self._server = xllamacpp.Server(parameters)
        address = self._server.listening_address
        with urllib.request.urlopen(f"{address}/props") as answer:  # noqa: S310 - our own server
            self._mark = json.load(answer)["media_marker"]  # drawn anew by each server
        self.facts = {
            "xllamacpp": xllamacpp.__version__,
            "system": xllamacpp.get_system_info(),
            "variant": variant,
        }

    def answer(
        self, image: str, question: str, max_new_tokens: int, keep_ratio: float | None
    ) -> dict[str, Any]:
        """Answer one question; see ``runner.Answer`` for what it returns."""
        assert keep_ratio is None  # noqa: S101 - no row asks for anything else
        # The server writes what stands around a picture itself.
        around = f"{self._template.before}{self._mark}{self._template.after}"
        prompt = self._template.render(question, self._mark).replace(around, self._mark)
        picture = base64.b64encode(Path(image).read_bytes()).decode()
        request = {
            "prompt": {"prompt_string": prompt, "multimodal_data": [picture]},
            "n_predict": max_new_tokens,
            "temperature": 0,
            "top_k": 1,
            "ignore_eos": True,
            "cache_prompt": False,
            "return_tokens": True,
            "stream": True,
        }
        call = urllib.request.Request(  # noqa: S310 - the server in this process
            f"{self._server.listening_address}/completion",
            data=json.dumps(request).encode(),
            headers={"Content-Type": "application/json"},
        )
        token_ids: list[int] = []
        piece: dict[str, Any] = {}
        at_s = [time.perf_counter()]

        with urllib.request.urlopen(call) as stream:  # noqa: S310
            for line in stream:
                if not line.startswith(b"data: {"):
                    continue
                piece = json.loads(line.removeprefix(b"data: "))
                if piece.get("tokens"):
                    at_s.append(time.perf_counter())
                    token_ids += piece["tokens"]
        return {
            "token_ids": token_ids,
            "num_prompt_tokens": piece.get("tokens_evaluated"),
            "vision_ms": None,
            "ttft_ms": (at_s[1] - at_s[0]) * 1e3,
            "tpot_ms": (at_s[-1] - at_s[1]) / (len(token_ids) - 1) * 1e3,
        }
