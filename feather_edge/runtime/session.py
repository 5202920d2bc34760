"""A session: an opened bundle that answers questions about images.

Example::

    with Session.open("bundle") as session:
        for token in session.stream("kitchen.jpg", "where is the red cup?"):
            print(token.text, end="")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from feather_edge.bundle import Bundle
from feather_edge.errors import BackendError, BundleError, RequestError
from feather_edge.images import load_image
from feather_edge.pruning import Layout, Pruning, criterion
from feather_edge.pruning.pre_criteria import pre_criterion
from feather_edge.pruning.request import unpruned_reason
from feather_edge.runtime.backends import Backend, create_backend
from feather_edge.runtime.decoder import DecoderChain
from feather_edge.runtime.embeddings import Embeddings
from feather_edge.runtime.prompt import PromptFormatter
from feather_edge.runtime.regions import mark_regions
from feather_edge.runtime.request import Answer, Run
from feather_edge.runtime.result import Result, Token
from feather_edge.runtime.sampling import Sampler, Sampling
from feather_edge.runtime.spans import place_spans, prompt_layout
from feather_edge.runtime.timing import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray
    from PIL import Image
    from typing_extensions import Self

    from feather_edge.images import PreparedImages
    from feather_edge.images.pixels import ImageSource
    from feather_edge.pruning import Region
    from feather_edge.runtime.prompt import EncodedPrompt, Message

DEFAULT_MAX_NEW_TOKENS = 128


class Session:
    """An opened bundle, ready to generate. Not safe for use from several threads at once.

    Attributes:
        bundle: what was opened.
        pruning: what a request that asks for nothing else gets: the bundle's recipe.
        last_result: the record of the last finished answer.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.pruning = default_pruning(bundle)
        self.last_result: Result | None = None
        self._backend = backend
        self._prompt = PromptFormatter.open(
            bundle.path, image_token_id=manifest.image.token_id, form=manifest.prompt
        )
        vision, *decoders = (
            backend.open(bundle.path / graph.file, graph)
            for graph in (bundle.vision_encoder, *bundle.decoders)
        )
        self._vision, self._decoders = vision, decoders
        self._embeddings = Embeddings.open(bundle)
        self._is_open = True

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle,
        *,
        backend: str | Backend = "auto",
        target: str | None = None,
        cuda_graphs: bool = True,
    ) -> Session:
        """Open a bundle.

        Args:
            bundle: a bundle folder, or one already opened.
            backend: a backend's name, or one of your own.
            target: whose engines a TensorRT backend runs, as ``agx-orin-64gb``; None takes those
                of the only target there is.
            cuda_graphs: whether TensorRT's decode steps may be captured as CUDA graphs, which
                happens where KV caches are updated in place; ``notes`` say why not.

        Raises:
            BundleError: if the folder is no valid bundle.
            BackendError: if the backend is missing or cannot load a graph.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        if isinstance(backend, str):
            return cls(
                opened, create_backend(backend, opened, target=target, cuda_graphs=cuda_graphs)
            )
        if target is not None or not cuda_graphs:
            option = "cuda_graphs" if target is None else f"target {target}"
            raise BackendError(f"{option} goes with a backend's name, not with your own")
        return cls(opened, backend)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to know of how the backend runs, such as what it leaves out."""
        return self._backend.notes if self._is_open else ()

    def close(self) -> None:
        """Let go of graphs, weights and device; a closed session can only be closed again."""
        if self._is_open:
            self._is_open = False
            self._decoders = []
            del self._vision, self._embeddings, self._backend

    def generate(
        self,
        images: ImageSource | Sequence[ImageSource],
        prompt: str | Sequence[Message],
        *,
        pruning: Pruning | None = None,
        regions: Sequence[Region] = (),
        sampling: Sampling | None = None,
        max_new_tokens: int | None = None,
    ) -> Result:
        """Answer a prompt about images; see ``stream`` for the arguments and errors."""
        for _ in self.stream(
            images,
            prompt,
            pruning=pruning,
            regions=regions,
            sampling=sampling,
            max_new_tokens=max_new_tokens,
        ):
            pass
        if self.last_result is None:  # pragma: no cover - stream always leaves a result
            raise AssertionError("stream ended without a result")
        return self.last_result

    def stream(
        self,
        images: ImageSource | Sequence[ImageSource],
        prompt: str | Sequence[Message],
        *,
        pruning: Pruning | None = None,
        regions: Sequence[Region] = (),
        sampling: Sampling | None = None,
        max_new_tokens: int | None = None,
    ) -> Iterator[Token]:
        """Answer a prompt about images, token by token; ``last_result`` has the record after.

        Args:
            images: one image or several: path, bytes, PIL image or uint8 array [H, W, 3].
            prompt: text, put into the model's chat template, or a list of chat messages.
            pruning: what to keep; None takes the bundle's recipe.
            regions: boxes in the images whose tokens every stage keeps, or none of them does.
            sampling: how to choose tokens; None is greedy.
            max_new_tokens: None takes the checkpoint's own limit, or 128.

        Raises:
            RequestError: if an image, the prompt or an option cannot be used.
            BackendError: if a graph fails.
        """
        if not self._is_open:
            raise RequestError("the session is closed; open another with Session.open")
        watch = Stopwatch()
        pruning = self.pruning if pruning is None else pruning
        sampler = Sampler(Sampling() if sampling is None else sampling)
        # 1. The vision encoder's inputs, and prompt ids [S] with an id per visual token.
        with watch.stage("preprocess"):
            pictures = _load_images(images)
            prepared = self.bundle.manifest.image.prepare(pictures)
            encoded = self._prompt.encode(prompt, images=prepared.prompt_pieces)
            layout = self._layout(encoded, prepared, pictures, regions)
            limit = self._max_new_tokens(max_new_tokens, layout)
        # 2. Visual tokens [V, D], and further planes of them where the decoder adds such.
        with watch.stage("vision"):
            features, *deep = self._encode_images(prepared)
        # 3. Splice them into the prompt's embeddings; 4. run the segments, pruning in between.
        with watch.stage("prefill"):
            embeds = self._embeddings[encoded.prompt_ids]  # [S, D]
            embeds[encoded.is_image] = features
            planes = np.zeros((len(deep), *embeds.shape), embeds.dtype)
            for plane, values in zip(planes, deep, strict=True):
                plane[encoded.is_image] = values
            run = self._begin(layout, pruning, limit)
            logits = run.prefill(embeds, planes)
        # 5. Decode: each token passes the same graphs, over each segment's own cache.
        answer = Answer(limit=limit, decoder=self._prompt.stream_decoder())
        while True:
            token_id = sampler(logits)
            watch.token()
            if token_id in self.bundle.manifest.eos_token_ids:
                answer.finish_reason = "stop"
                if rest := answer.flush():  # text held back for a character to complete
                    yield Token(token_id=token_id, text=rest)
                break
            yield answer.add(token_id)
            if answer.is_full:
                break
            logits = run.chain.decode_step(self._embeddings[token_id])
        self.last_result = self._result(watch, prepared, run, answer)

    def _layout(
        self,
        encoded: EncodedPrompt,
        prepared: PreparedImages,
        pictures: Sequence[Image.Image],
        regions: Sequence[Region],
    ) -> Layout:
        spans = place_spans(prepared.rasters, encoded.is_image)
        layout = prompt_layout(self.bundle.manifest.rotary, len(encoded.prompt_ids), spans)
        sizes = [picture.size for picture in pictures]
        return mark_regions(layout, regions, sizes, prepared.rasters)

    def _max_new_tokens(self, requested: int | None, layout: Layout) -> int:
        manifest = self.bundle.manifest
        room = manifest.max_positions - layout.num_rows
        if room < 1:
            raise RequestError(
                f"prompt has {layout.num_rows} tokens, {layout.num_visual_tokens} of them visual; "
                f"this model takes at most {manifest.max_positions - 1}, so shorten the prompt or "
                f"give fewer images"
            )
        if requested is None:
            return min(room, manifest.max_new_tokens or DEFAULT_MAX_NEW_TOKENS)
        if not 1 <= requested <= room:
            raise RequestError(
                f"max_new_tokens is {requested}; after a prompt of {layout.num_rows} tokens this "
                f"model can give 1 to {room}"
            )
        return requested

    def _encode_images(self, prepared: PreparedImages) -> NDArray[Any]:
        """Return the vision graph's outputs, one row for each placeholder, [outputs, V, D]."""
        spec = self.bundle.vision_encoder
        shape = (len(spec.outputs), 0, self.bundle.manifest.decoder.hidden_size)
        parts = [np.empty(shape, spec.outputs[0].dtype)]
        for call in prepared.calls:
            if call.keys() != {tensor.name for tensor in spec.inputs}:
                raise BundleError(
                    f"{spec.name} takes {', '.join(t.name for t in spec.inputs)}, but pictures "
                    f"give {', '.join(call)}; export the bundle again"
                )
            inputs = {
                tensor.name: self._backend.upload(
                    np.ascontiguousarray(call[tensor.name], dtype=tensor.dtype)
                )
                for tensor in spec.inputs
            }
            outputs = self._vision.run(inputs)
            parts.append(np.stack([self._backend.download(outputs[t.name]) for t in spec.outputs]))
        features = np.concatenate(parts, axis=1)
        if prepared.arrange is None:
            return features
        return np.stack([prepared.arrange(output) for output in features])

    def _begin(self, layout: Layout, pruning: Pruning, max_new_tokens: int) -> Run:
        schedule = self.bundle.schedule
        if pruning.criterion != "none":
            criterion(pruning.criterion)  # unknown is wrong also where nothing can be pruned
        if pruning.pre_criterion != "none":
            pre_criterion(pruning.pre_criterion)
        reason = unpruned_reason(pruning, layout, len(schedule.stages))
        if reason and (layout.is_protected | layout.is_forbidden).any():
            raise RequestError(f"regions have no effect, since {reason}; prune, or leave them out")
        chain = DecoderChain(
            self._decoders,
            self.bundle.manifest,
            schedule,
            self._backend,
            max_new_tokens=max_new_tokens,
        )
        return Run(chain=chain, layout=layout, pruning=None if reason else pruning, reason=reason)

    def _result(
        self, watch: Stopwatch, prepared: PreparedImages, run: Run, answer: Answer
    ) -> Result:
        return Result(
            text=answer.text,
            token_ids=tuple(answer.token_ids),
            finish_reason=answer.finish_reason,
            num_prompt_tokens=run.layout.num_rows,
            num_visual_tokens=run.layout.num_visual_tokens,
            rasters=prepared.rasters,
            stages=run.stage_results(),
            reason=run.reason_unpruned(),
            preprocess_ms=watch.stage_ms["preprocess"],
            vision_ms=watch.stage_ms["vision"],
            prefill_ms=watch.stage_ms["prefill"],
            ttft_ms=watch.ttft_ms,
            tpot_ms=watch.tpot_ms,
            backend=self._backend.name,
            device=self._backend.device,
            precision=self.bundle.manifest.recipe.precision,
            notes=self.notes,
        )


def default_pruning(bundle: Bundle) -> Pruning:
    """Return what the bundle's recipe asks of a request that asks for nothing else."""
    return Pruning.from_recipe(bundle.manifest.recipe)


def _load_images(images: ImageSource | Sequence[ImageSource]) -> list[Image.Image]:
    several: Sequence[ImageSource] = (
        images if isinstance(images, list | tuple) else [cast("ImageSource", images)]
    )
    return [load_image(source) for source in several]
