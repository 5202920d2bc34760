"""``manifest.json``: what a bundle says of itself.

Everything a runtime needs beside the graphs' weights stands here, so opening a bundle reads no
config.json and guesses nothing. The format is strict: unknown keys are errors.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal

import msgspec

from feather_edge.checkpoint.packed import PackedFormat
from feather_edge.graphs import DecoderShape, GraphSpec
from feather_edge.images import ImageSpec
from feather_edge.recipes import ExportRecipe
from feather_edge.recipes.precision import is_dynamic

if TYPE_CHECKING:
    from collections.abc import Sequence

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
RECEIPT_FILE = "verify.json"
MAX_HEAD_DIM = 4096


class Rotary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rotary embedding of the decoder; tables are computed on the host.

    Attributes:
        head_dim: Dh, all of it rotated.
        theta: base of the frequencies.
        scaling: ``linear`` divides every frequency by ``factor``; ``llama3`` does so smoothly
            for long wavelengths only.
        sections: of M-RoPE, where a visual token has a time, a row and a column instead of one
            position: how many of the Dh/2 frequencies turn by each. None for one position.
        is_interleaved: the sections take turns, time first, until rows and columns have theirs;
            otherwise they follow each other.
    """

    head_dim: int
    theta: float
    scaling: Literal["linear", "llama3"] | None = None
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_positions: int = 0
    sections: tuple[int, int, int] | None = None
    is_interleaved: bool = False

    def __post_init__(self) -> None:
        half = self.head_dim // 2
        if not 2 <= self.head_dim <= MAX_HEAD_DIM or self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; it must be even, 2 to {MAX_HEAD_DIM}")
        if self.sections is not None and (min(self.sections) < 0 or sum(self.sections) != half):
            raise ValueError(f"sections are {self.sections}; they must sum to {half}")


PromptAttention = Literal["causal", "prefix", "images"]
"""Which rows of a prompt see which; see ``feather_edge.runtime.masks``."""


class PromptForm(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a chat template does not say of a prompt.

    Attributes:
        image_mark: what the template writes for a picture; None for the image placeholder.
        without_template: how a text becomes a prompt in a model without a template. ``lines``: a
            line for each picture, then the text. ``prefix``: all pictures, the start token, the
            text, a newline, and no other special token.
    """

    image_mark: str | None = None
    without_template: Literal["lines", "prefix"] = "lines"


class LocalAttention(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The decoder's local layers, which ``DecoderShape`` lists.

    Attributes:
        window: positions that a row sees, its own and those before it.
        rotary: their rotary embedding; None for the decoder's.
    """

    window: int
    rotary: Rotary | None = None


class FileRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Size and hash of one file of a bundle."""

    num_bytes: int
    sha256: str


class BundleManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole manifest.

    Attributes:
        format_version: of this file; ``FORMAT_VERSION``.
        feather_edge_version: what wrote the bundle.
        source: name of the checkpoint folder or hub id.
        model_type: Hugging Face's name of the family.
        recipe: the effective recipe, nothing left out that the export decided.
        decoder: sizes of the decoder.
        rotary: its rotary embedding.
        local_attention: of its local layers, if it has any.
        prompt_attention: which rows of a prompt see which.
        embedding_scale: what embeddings of text are multiplied by.
        prompt: what the chat template does not say.
        max_positions: longest sequence the model was made for.
        eos_token_ids: any of these ends an answer.
        max_new_tokens: the checkpoint's own limit on an answer, if it names one.
        image: how pictures become visual tokens.
        graphs: contract of each graph, vision encoder first, then the segments.
        files: every other file of the bundle, by its path.
        sha256: of everything else in this struct; see ``manifest_sha256``.
        taken_over: how the checkpoint's own int4 weights were packed, if it had such.
        kept_higher: dense layers that ``int8-dynamic`` would have hurt, and by how much: the
            relative error of what they give. Their weights are ``int8`` blocks instead.
    """

    format_version: int
    feather_edge_version: str
    source: str
    model_type: str
    recipe: ExportRecipe
    decoder: DecoderShape
    rotary: Rotary
    max_positions: int
    eos_token_ids: tuple[int, ...]
    max_new_tokens: int | None
    image: ImageSpec
    graphs: tuple[GraphSpec, ...]
    files: dict[str, FileRecord]
    sha256: str
    local_attention: LocalAttention | None = None
    prompt_attention: PromptAttention = "causal"
    embedding_scale: float = 1.0
    prompt: PromptForm = PromptForm()
    taken_over: PackedFormat | None = None
    kept_higher: dict[str, float] = msgspec.field(default_factory=dict)


def listed_graphs(graphs: Sequence[GraphSpec], recipe: ExportRecipe) -> tuple[GraphSpec, ...]:
    """Return graphs as a manifest lists them: no TensorRT reads a form of int8-dynamic."""
    if not is_dynamic(recipe):
        return tuple(graphs)
    return tuple(
        msgspec.structs.replace(
            graph,
            forms=tuple(msgspec.structs.replace(form, tensorrt="none") for form in graph.forms),
        )
        for graph in graphs
    )


def manifest_sha256(manifest: BundleManifest) -> str:
    """Return what ``BundleManifest.sha256`` must be: it tells damage and edits, not attackers."""
    rest = msgspec.structs.replace(manifest, sha256="")
    return hashlib.sha256(msgspec.json.encode(rest)).hexdigest()
