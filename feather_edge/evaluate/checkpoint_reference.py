"""A checkpoint in torch and transformers, without pruning: what a bundle must compute.

This file owns torch and transformers at run time (extra ``torch``). Preprocessing, prompt and
model are transformers' own, in float32 on the CPU, so whatever an export or a session does to any
of them shows. No code of a checkpoint is run.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from feather_edge.errors import BackendError
from feather_edge.graphs import cache_names
from feather_edge.images import load_image

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from feather_edge.manifest import BundleManifest
    from feather_edge.samples import Sample

__all__ = ["LAYER", "CheckpointAnswer", "CheckpointReference"]

LAYER = "layers.{}/mlp/residual/output"
"""What a layer's output is called, in the graphs and here; counted through the whole model."""


@dataclass(kw_only=True)
class CheckpointAnswer:
    """What transformers computed for one sample.

    Attributes:
        prompt_ids: [S], a placeholder for each visual token.
        tensors: ``inputs_embeds`` [S, D], ``cos`` and ``sin`` [S, Dh/2] where the decoder has one
            table of them, layers' outputs [S, D] by ``LAYER``, caches
            [Hkv, S, Dh] by ``cache_names``, ``logits`` [V] of the last row.
        token_ids: of the greedy answer, the end token left out.
        text: the answer.
    """

    prompt_ids: NDArray[np.int64]
    tensors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    token_ids: tuple[int, ...] = ()
    text: str = ""


class CheckpointReference:
    """An opened checkpoint.

    Args:
        folder: of the checkpoint.
        manifest: of a bundle that was made from it.

    Raises:
        BackendError: if torch or transformers is missing, or they cannot open the checkpoint.
    """

    def __init__(self, folder: Path, manifest: BundleManifest) -> None:
        self._torch, transformers = _libraries()
        self._manifest = manifest
        options = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._processor = transformers.AutoProcessor.from_pretrained(folder, **options)
            self._model = transformers.AutoModelForImageTextToText.from_pretrained(
                folder,
                dtype=self._torch.float32,
                attn_implementation="eager",
                use_safetensors=True,  # never a pickle
                **options,
            ).eval()
        except Exception as error:  # of a damaged or unknown checkpoint it raises anything
            wants = "torchvision" in str(error).lower()
            remedy = "; its processor needs it: pip install torchvision" if wants else ""
            raise BackendError(
                f"transformers {transformers.__version__} cannot open {folder}: "
                f"{_line(error)}{remedy}"
            ) from error
        self._decoder = self._model.get_decoder()
        self._config = transformers.GenerationConfig

    def answer(
        self, sample: Sample, *, layers: Collection[int], max_new_tokens: int
    ) -> CheckpointAnswer:
        """Answer a sample greedily and without pruning.

        Args:
            sample: what to ask.
            layers: whose outputs to keep.
            max_new_tokens: of the answer.

        Raises:
            BackendError: if transformers fails.
        """
        try:
            with self._torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of libraries about each other
                return self._answer(sample, layers, max_new_tokens)
        except Exception as error:  # whatever a processor or a model stumbles over
            raise BackendError(f"transformers fails on {sample.name}: {_line(error)}") from error

    def _answer(
        self, sample: Sample, layers: Collection[int], max_new_tokens: int
    ) -> CheckpointAnswer:
        inputs = self._prepare(sample)
        ids = inputs["input_ids"]
        answer = CheckpointAnswer(prompt_ids=ids[0].numpy())
        with self._watched(answer.tensors, layers):
            output = self._model(**inputs, logits_to_keep=1, use_cache=True)
        for layer, cached in enumerate(output.past_key_values.layers):
            names = cache_names("present", range(layer, layer + 1))
            for name, values in zip(names, (cached.keys, cached.values), strict=True):
                answer.tensors[name] = values[0].numpy()
        if _is_shifted(answer.tensors):
            for name in [*cache_names("present", range(len(self._decoder.layers))), "cos", "sin"]:
                answer.tensors.pop(name, None)
        answer.tensors["logits"] = output.logits[0, -1].numpy()
        ends = self._manifest.eos_token_ids
        self._model.generation_config = self._config(
            do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=list(ends),
            pad_token_id=ends[0],
        )  # fmt: skip
        tokens = self._model.generate(**inputs)[0, ids.shape[1] :].tolist()
        stop = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
        answer.token_ids = tuple(tokens[:stop])
        answer.text = self._processor.tokenizer.decode(tokens[:stop], skip_special_tokens=True)
        return answer

    def _prepare(self, sample: Sample) -> dict[str, Any]:
        """Return the model's inputs of one turn of a user, as transformers makes them."""
        text, has_template = sample.prompt, bool(self._processor.chat_template)
        if has_template:
            content = [{"type": "image"}, {"type": "text", "text": sample.prompt}]
            text = self._processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
        elif self._manifest.prompt.without_template == "lines":
            text = f"{self._processor.image_token}\n{sample.prompt}"
        start = self._processor.tokenizer.bos_token or "\0"
        inputs = self._processor(
            images=[[load_image(sample.image)]],
            text=text,
            return_tensors="pt",
            add_special_tokens=not text.startswith(start),
        )
        return {name: value for name, value in inputs.items() if name != "labels"}

    def _watched(
        self, tensors: dict[str, NDArray[np.float32]], layers: Collection[int]
    ) -> ExitStack:
        """Keep what enters the decoder, its rotary tables, and what layers give, in one run."""

        def keep(name: str, value: Any) -> None:
            tensors.setdefault(name, value[0].numpy().copy())

        def keep_tables(_module: Any, _inputs: Any, output: Any) -> None:
            for name, table in zip(("cos", "sin"), output, strict=True):
                if table.ndim == 3 and len(table) == 1:  # [1, S, Dh]: M-RoPE has three of them
                    keep(name, table[..., : table.shape[-1] // 2])

        def keep_layer(layer: int, _module: Any, _inputs: Any, output: Any) -> None:
            keep(LAYER.format(layer), output[0] if isinstance(output, tuple) else output)

        hooks = [
            self._decoder.register_forward_pre_hook(
                lambda _module, _args, given: keep("inputs_embeds", given["inputs_embeds"]),
                with_kwargs=True,
            )
        ]
        if not self._manifest.decoder.has_local_rotary:
            hooks.append(self._decoder.rotary_emb.register_forward_hook(keep_tables))
        hooks += [
            self._decoder.layers[layer].register_forward_hook(partial(keep_layer, layer))
            for layer in layers
        ]
        stack = ExitStack()
        for hook in hooks:
            stack.callback(hook.remove)
        return stack


def _libraries() -> tuple[Any, Any]:
    """Return torch and transformers, which then keep to themselves what they do."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise BackendError(
            "the checkpoint runs in torch and transformers, of which one is not installed; run: "
            "pip install 'feather-edge[torch]'"
        ) from error
    logging: Any = transformers.utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return torch, transformers


def _is_shifted(tensors: dict[str, NDArray[np.float32]]) -> bool:
    """Return whether positions start elsewhere than at 0, as PaliGemma's do.

    Attention sees differences of positions alone, so tables and keys then tell nothing.
    """
    return "cos" in tensors and bool((tensors["cos"][0] != 1).any())


def _line(error: Exception) -> str:
    """Return the first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
