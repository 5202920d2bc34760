"""A session: an opened bundle that answers questions about images.

Example::

    with Session.open("bundle") as session:
        for token in session.stream("kitchen.jpg", "where is the red cup?"):
            print(token.text, end="")
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import numpy as np

from feather_edge.bundle import Bundle
from feather_edge.errors import BackendError, FeatherEdgeError, RequestError
from feather_edge.images import load_images
from feather_edge.pruning import Layout, Pruning, criterion
from feather_edge.pruning.pre_criteria import require_pre_criterion
from feather_edge.pruning.request import unpruned_reason
from feather_edge.runtime.backends import Backend, create_backend
from feather_edge.runtime.calibration import Deadlines
from feather_edge.runtime.decoder import DecoderChain
from feather_edge.runtime.embeddings import Embeddings
from feather_edge.runtime.graph_loading import OpeningGraphs
from feather_edge.runtime.memory import peak_rss_mib
from feather_edge.runtime.prefix import PrefixCache
from feather_edge.runtime.prompt import PromptFormatter
from feather_edge.runtime.receipt import verification
from feather_edge.runtime.regions import mark_regions
from feather_edge.runtime.request import Answer, Run, answer_limit
from feather_edge.runtime.result import Result, Token
from feather_edge.runtime.sampling import Sampler, Sampling
from feather_edge.runtime.spans import place_spans, prompt_layout
from feather_edge.runtime.timing import Stopwatch
from feather_edge.runtime.vision import VisionEncoder, require_rows

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from PIL import Image
    from typing_extensions import Self

    from feather_edge.images import PreparedImages
    from feather_edge.images.pixels import ImageSource
    from feather_edge.pruning import Region
    from feather_edge.runtime.calibration import DeadlineChoice
    from feather_edge.runtime.prompt import EncodedPrompt, Message


class Session:
    """An opened bundle, ready to generate.

    Several threads may share a session, and one thread may read several streams of it in turn:
    each request has caches of its own, and requests take turns at the graphs, one encoder run,
    prefill or decode step at a time. A stream that is closed or dropped midway leaves nothing
    behind; one whose session is closed meanwhile ends with an error.

    Attributes:
        bundle: what was opened.
        pruning: what a request that asks for nothing else gets: the bundle's recipe.
        last_result: the record of the answer that finished last, in whichever thread.
        load_ms: how long it took to open; of a lazy session, until requests could be asked.
        verification: whether ``feather-edge verify`` compared what runs here.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        *,
        cache_images: int = 0,
        cache_prefixes: int = 0,
        lazy: bool = False,
    ) -> None:
        start_s = time.perf_counter()
        manifest = bundle.manifest
        self.bundle = bundle
        self.pruning = default_pruning(bundle)
        self.last_result: Result | None = None
        self.verification = verification(bundle, backend=backend.name, target=backend.target)
        self._backend = backend
        self._prompt = PromptFormatter.open(
            bundle.path, image_token_id=manifest.image.token_id, form=manifest.prompt
        )
        self._graphs = OpeningGraphs(bundle, backend)
        self._vision = VisionEncoder(bundle, backend, cache_images=cache_images)
        self._prefixes = PrefixCache(bundle, backend, capacity=cache_prefixes)
        try:
            self._embeddings = Embeddings.open(bundle)
            if not lazy:
                self._graphs.vision()
                self._graphs.decoders()
        except FeatherEdgeError:
            self._graphs.close()
            raise
        self._deadlines = Deadlines(bundle, backend)
        self._lock = threading.Lock()
        self._is_open = True
        self.load_ms = (time.perf_counter() - start_s) * 1e3

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle,
        *,
        backend: str | Backend = "auto",
        target: str | None = None,
        num_threads: int | None = None,
        cuda_graphs: bool = True,
        cache_images: int = 0,
        cache_prefixes: int = 0,
        lazy: bool = False,
        share_weights: bool = False,
    ) -> Session:
        """Open a bundle.

        Args:
            bundle: a bundle folder, or one already opened.
            backend: a backend's name, or one of your own.
            target: whose engines a TensorRT backend runs, as ``agx-orin-64gb``; None takes those
                of the only target there is.
            num_threads: of one graph run on the CPU; None is one for each physical core that the
                process may use.
            cuda_graphs: whether TensorRT's decode steps may be captured as CUDA graphs, which
                happens where KV caches are updated in place; ``notes`` say why not.
            cache_images: pictures whose visual tokens are kept, the most recently used ones, so
                that the vision encoder does not run for them again; 0 keeps none.
            cache_prefixes: system prompts, with what else stands before a prompt's first image,
                whose keys and values are kept, so that the decoder does not run over them again;
                the most recently used ones, 0 keeps none. ``notes`` say where it cannot be done.
            lazy: return while graphs still open; a request waits for those that it runs, and
                raises their errors.
            share_weights: on ONNX Runtime, leave weights in the bundle's mapped files, which all
                sessions and processes share; a prefill then takes about a tenth longer.

        Raises:
            RequestError: if ``cache_images`` or ``cache_prefixes`` is less than 0.
            BundleError: if the folder is no valid bundle.
            BackendError: if the backend is missing or cannot load a graph.
        """
        start_s = time.perf_counter()
        for name, count in (("cache_images", cache_images), ("cache_prefixes", cache_prefixes)):
            if count < 0:
                raise RequestError(f"{name} is {count}; it must be 0 or more")
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        if isinstance(backend, str):
            backend = create_backend(
                backend,
                opened,
                target=target,
                num_threads=num_threads,
                cuda_graphs=cuda_graphs,
                share_weights=share_weights,
            )
        elif target is not None or num_threads is not None or not cuda_graphs or share_weights:
            given = [f"target {target}"] if target is not None else []
            given += [f"num_threads {num_threads}"] if num_threads is not None else []
            given += ["share_weights"] if share_weights else ["cuda_graphs"]
            raise BackendError(f"{given[0]} goes with a backend's name, not with your own")
        session = cls(
            opened, backend, cache_images=cache_images, cache_prefixes=cache_prefixes, lazy=lazy
        )
        session.load_ms = (time.perf_counter() - start_s) * 1e3
        return session

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
    def backend(self) -> Backend:
        """What runs the graphs."""
        self._require_open()
        return self._backend

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to know of how requests run, such as what is left out."""
        return (*self._backend.notes, *self._prefixes.notes) if self._is_open else ()

    def close(self) -> None:
        """Let go of graphs, weights and device; a closed session can only be closed again.

        Waits for the step that another thread is at; its stream then ends with an error.
        """
        with self._lock:
            if self._is_open:
                self._is_open = False
                self._graphs.close()
                del self._graphs, self._vision, self._embeddings, self._backend, self._prefixes

    def generate(
        self,
        images: ImageSource | Sequence[ImageSource],
        prompt: str | Sequence[Message],
        *,
        pruning: Pruning | None = None,
        regions: Sequence[Region] = (),
        sampling: Sampling | None = None,
        max_new_tokens: int | None = None,
        deadline_ms: float | None = None,
    ) -> Result:
        """Answer a prompt about images; see ``stream`` for the arguments and errors."""
        tokens = self.stream(
            images,
            prompt,
            pruning=pruning,
            regions=regions,
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            deadline_ms=deadline_ms,
        )
        try:
            while True:
                next(tokens)
        except StopIteration as end:
            return cast("Result", end.value)

    def stream(
        self,
        images: ImageSource | Sequence[ImageSource],
        prompt: str | Sequence[Message],
        *,
        pruning: Pruning | None = None,
        regions: Sequence[Region] = (),
        sampling: Sampling | None = None,
        max_new_tokens: int | None = None,
        deadline_ms: float | None = None,
    ) -> Generator[Token, None, Result]:
        """Answer a prompt about images, token by token; ``last_result`` has the record after.

        Args:
            images: one image or several: path, bytes, PIL image or uint8 array [H, W, 3].
            prompt: text, put into the model's chat template, or a list of chat messages.
            pruning: what to keep; None takes the bundle's recipe.
            regions: boxes in the images whose tokens every stage keeps, or none of them does.
            sampling: how to choose tokens; None is greedy.
            max_new_tokens: None takes the checkpoint's own limit, or 128.
            deadline_ms: time to the first token, for which ``feather-edge tune`` has measured what
                to keep on this device; in place of ``pruning``. The result says what it led to.

        Raises:
            RequestError: if an image, the prompt or an option cannot be used, or there is a
                deadline and no table of times that holds here.
            BackendError: if a graph fails.
        """
        self._require_open()
        watch = Stopwatch()
        sampler = Sampler(Sampling() if sampling is None else sampling)
        # 1. The vision encoder's inputs, and prompt ids [S] with an id per visual token.
        with watch.stage("preprocess"):
            pictures = load_images(images)
            prepared = self.bundle.manifest.image.prepare(pictures)
            encoded = self._prompt.encode(prompt, images=prepared.prompt_pieces)
            layout = self._layout(encoded, prepared, pictures, regions)
            limit = answer_limit(self.bundle.manifest, layout, max_new_tokens)
            deadline = self._deadlines.choose(deadline_ms, layout, pruning=pruning)
            asked = deadline.rung.pruning if deadline else pruning or self.pruning
        # 2. Visual tokens [V, D], and further planes of them where the decoder adds such.
        with self._turn(), watch.stage("vision"):
            features, *deep = self._vision(self._graphs.vision(), prepared)
        # 3. Splice them into the prompt's embeddings; 4. run the segments, pruning in between.
        with self._turn(), watch.stage("prefill"):
            embeds = self._embeddings[encoded.prompt_ids]  # [S, D]
            require_rows(features, int(encoded.is_image.sum()))
            embeds[encoded.is_image] = features
            planes = np.zeros((len(deep), *embeds.shape), embeds.dtype)
            for plane, values in zip(planes, deep, strict=True):
                plane[encoded.is_image] = values
            run = self._begin(encoded, layout, asked, watch, limit)
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
            token = answer.add(token_id)
            with watch.pause():
                yield token
            if answer.is_full:
                break
            with self._turn():
                logits = run.chain.decode_step(self._embeddings[token_id])
        result = self._result(watch, prepared, run, answer, deadline)
        self.last_result = result
        return result

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait until no other request is at the graphs.

        The lock is never held while a consumer has a token: a stream that nobody reads on would
        block all others.
        """
        with self._lock:
            self._require_open()
            yield

    def _require_open(self) -> None:
        if not self._is_open:
            raise RequestError("the session is closed; open another with Session.open")

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

    def _begin(
        self,
        encoded: EncodedPrompt,
        layout: Layout,
        pruning: Pruning,
        watch: Stopwatch,
        max_new_tokens: int,
    ) -> Run:
        schedule = self.bundle.schedule
        if pruning.criterion != "none":
            criterion(pruning.criterion)  # unknown is wrong also where nothing can be pruned
        require_pre_criterion(pruning.pre_criterion)
        reason = unpruned_reason(pruning, layout, len(schedule.stages))
        if reason and (layout.is_protected | layout.is_forbidden).any():
            raise RequestError(f"regions have no effect, since {reason}; prune, or leave them out")
        chain = DecoderChain(
            self._graphs.decoders(),
            self.bundle.manifest,
            schedule,
            self._backend,
            max_new_tokens=max_new_tokens,
            watch=watch,
        )
        effective = None if reason else pruning
        prefix = self._prefixes.of(encoded.prompt_ids, layout, effective)
        return Run(chain=chain, layout=layout, pruning=effective, reason=reason, prefix=prefix)

    def _result(
        self,
        watch: Stopwatch,
        prepared: PreparedImages,
        run: Run,
        answer: Answer,
        deadline: DeadlineChoice | None,
    ) -> Result:
        return Result(
            text=answer.text,
            token_ids=tuple(answer.token_ids),
            finish_reason=answer.finish_reason,
            num_prompt_tokens=run.layout.num_rows,
            num_cached_tokens=run.num_cached_tokens,
            num_visual_tokens=run.layout.num_visual_tokens,
            rasters=prepared.rasters,
            stages=run.stage_results(),
            reason=run.reason_unpruned(),
            deadline=deadline,
            preprocess_ms=watch.stage_ms["preprocess"],
            vision_ms=watch.stage_ms["vision"],
            prefill_ms=watch.stage_ms["prefill"],
            segment_ms=tuple(watch.stage_ms[graph.name] for graph in self.bundle.decoders),
            prune_ms=watch.stage_ms.get("prune", 0.0),
            ttft_ms=watch.ttft_ms,
            tpot_ms=watch.tpot_ms,
            itl_ms=watch.itl_ms,
            load_ms=self.load_ms,
            peak_rss_mib=peak_rss_mib(),
            backend=self._backend.name,
            device=self._backend.device,
            precision=self.bundle.manifest.recipe.precision,
            notes=self.notes,
            verification=self.verification,
        )


def default_pruning(bundle: Bundle) -> Pruning:
    """Return what the bundle's recipe asks of a request that asks for nothing else."""
    return Pruning.from_recipe(bundle.manifest.recipe)
