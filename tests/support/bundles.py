"""Tiny checkpoints exported once per test run, and a chain of their graphs without a session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from support.checkpoints import tiny_llava

from feather_edge.bundle import Bundle
from feather_edge.export.pipeline import export
from feather_edge.pruning import Layout, VisualSpan
from feather_edge.recipes import ExportRecipe
from feather_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from feather_edge.runtime.decoder import DecoderChain
from feather_edge.runtime.embeddings import Embeddings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from feather_edge.pruning import Pruning
    from feather_edge.runtime.decoder import PrunedStage

__all__ = ["BundleFactory", "ChainRunner", "Exported"]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A checkpoint folder and the bundle made from it."""

    checkpoint: Path
    bundle: Bundle


class BundleFactory:
    """Makes tiny checkpoints and bundles below one folder; asks for the same are made once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._made: dict[str, Path] = {}

    def checkpoint(self, make: Callable[..., Path] = tiny_llava, **options: Any) -> Path:
        """Return a checkpoint of ``make(folder, **options)``, not to be changed."""
        key = f"checkpoint {make.__name__} {sorted(options.items())!r}"
        if key not in self._made:
            folder = self._root / f"checkpoint-{len(self._made)}"
            self._made[key] = make(folder, **options)
        return self._made[key]

    def __call__(
        self,
        make: Callable[..., Path] = tiny_llava,
        *,
        recipe: ExportRecipe | None = None,
        **options: Any,
    ) -> Exported:
        """Return a checkpoint and its bundle, neither to be changed."""
        checkpoint = self.checkpoint(make, **options)
        return self.export(checkpoint, recipe=recipe)

    def export(self, checkpoint: Path, *, recipe: ExportRecipe | None = None) -> Exported:
        """Return a checkpoint folder and its bundle, neither to be changed."""
        recipe = ExportRecipe() if recipe is None else recipe
        key = f"bundle {checkpoint} {recipe}"
        if key not in self._made:
            folder = self._root / f"bundle-{len(self._made)}"
            self._made[key] = export(checkpoint, folder, recipe).path
        return Exported(checkpoint=checkpoint, bundle=Bundle.open(self._made[key]))


class ChainRunner:
    """The graphs of a bundle in ONNX Runtime on one CPU thread, driven by prompt ids."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._backend = OnnxRuntimeBackend(device="cpu", num_threads=1)
        self._vision = self._backend.open(
            bundle.path / bundle.vision_encoder.file, bundle.vision_encoder
        )
        self._graphs = [
            self._backend.open(bundle.path / spec.file, spec) for spec in bundle.decoders
        ]
        self._embeddings = Embeddings.open(bundle)
        self._chain: DecoderChain

    def image_features(self, pixel_values: np.ndarray) -> np.ndarray:
        """Return the visual tokens [V, D] of preprocessed images [N, 3, H, W]."""
        dtype = self._bundle.vision_encoder.inputs[0].dtype
        outputs = self._vision.run(
            {"pixel_values": self._backend.upload(pixel_values.astype(dtype))}
        )
        return self._backend.download(outputs["image_features"])

    def prefill(
        self, prompt_ids: np.ndarray, pixel_values: np.ndarray, pruning: Pruning | None = None
    ) -> tuple[np.ndarray, list[PrunedStage]]:
        """Run a prompt; returns logits [V] and what each stage did."""
        image = self._bundle.manifest.image
        is_visual = prompt_ids == image.token_id
        height, width = image.grid
        # A span starts at a placeholder whose neighbour is none, or where an image is full.
        places = np.flatnonzero(is_visual)[:: height * width]
        spans = [VisualSpan(start=int(place), height=height, width=width) for place in places]
        embeds = self._embeddings[prompt_ids]
        embeds[is_visual] = self.image_features(pixel_values)
        self._chain = DecoderChain(
            self._graphs,
            self._bundle.manifest,
            self._bundle.schedule,
            self._backend,
            max_new_tokens=64,
        )
        return self._chain.prefill(embeds, Layout.full(len(prompt_ids), spans), pruning)

    def step(self, token_id: int) -> np.ndarray:
        """Consume one token; returns logits [V]."""
        return self._chain.decode_step(self._embeddings[token_id])
