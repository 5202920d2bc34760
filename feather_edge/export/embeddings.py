"""The embeddings of the vocabulary, and a language head that may be the same matrix.

The runtime looks rows up on the host, in a memory-mapped safetensors file. When head and
embeddings are tied and the head is not quantised, the last segment's head weight points into that
very file, so the largest tensor of a small model is stored once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from feather_edge.checkpoint.reader import read_tensors
from feather_edge.errors import RecipeError
from feather_edge.export.builder import DTYPES as IR_DTYPES
from feather_edge.export.dense import dense
from feather_edge.export.precision import DTYPES
from feather_edge.export.quantise import row_quantised
from feather_edge.graphs import EMBED_TOKENS_FILE, EMBED_TOKENS_SCALES, EMBED_TOKENS_TENSOR

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from feather_edge.export.builder import GraphBuilder
    from feather_edge.export.families import FamilyModel
    from feather_edge.export.precision import GraphPrecision

EMBEDDINGS = "text.embed_tokens.weight"
HEAD = "lm_head.weight"


def write_embeddings(folder: Path, model: FamilyModel, precision: GraphPrecision) -> None:
    """Write the embeddings [V, D] into the bundle, in the type ``embeddings_dtype``.

    Raises:
        RecipeError: if a tied head of another type shares them.
        OSError: if the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    shape = (model.text.vocab_size, model.text.hidden_size)
    view = model.weights.tensor(EMBEDDINGS, shape=shape)
    dtype = embeddings_dtype(model, precision)
    tensors: dict[str, NDArray[Any]]
    if dtype == np.int8:
        codes, scales = row_quantised(view)
        tensors = {EMBED_TOKENS_TENSOR: codes, EMBED_TOKENS_SCALES: scales}
    else:
        tensors = {
            EMBED_TOKENS_TENSOR: np.ascontiguousarray(view.read().astype(dtype, copy=False))
        }
    path = folder / EMBED_TOKENS_FILE
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # how it tells of a disk that is full
        raise OSError(str(error)) from error
    path.chmod(0o644)  # safetensors writes for the owner alone; a bundle is copied and shared


def _check_sharing(model: FamilyModel, precision: GraphPrecision) -> None:
    chosen = precision.embeddings
    if not is_shared(model, precision) or chosen is None:
        return
    if chosen == "int8" or DTYPES.get(chosen, precision.dtype) != precision.dtype:
        raise RecipeError(
            f"embedding_precision is {chosen}, but the language head of this checkpoint is the "
            f"same matrix and stays {precision.dtype}; choose head_precision int8 too, or leave "
            f"embedding_precision out"
        )


def project_to_vocabulary(
    g: GraphBuilder, normed: ir.Value, folder: Path | None, model: FamilyModel
) -> ir.Value:
    """Write the head's product of ``normed`` [B, D] with all words: [B, V].

    Args:
        g: the last segment's graph.
        normed: of the last position.
        folder: the bundle that is being written; a tied head refers to its embeddings. None in
            a plan, of which nothing is written.
        model: the checkpoint.
    """
    form = g.precision.head
    if form == "float":
        weight = _head_weight(g, folder, model)
        return g.op("Gemm", normed, weight, name="lm_head", transB=1)
    source = EMBEDDINGS if model.text.tie_word_embeddings else HEAD
    return dense(
        g,
        normed,
        source.removesuffix(".weight"),
        in_size=model.text.hidden_size,
        out_sizes=(model.text.vocab_size,),
        form=form,
        name="lm_head",
    )


def is_shared(model: FamilyModel, precision: GraphPrecision) -> bool:
    """Return whether the language head reads the file of the embeddings."""
    return model.text.tie_word_embeddings and precision.head == "float"


def embeddings_dtype(model: FamilyModel, precision: GraphPrecision) -> np.dtype[Any]:
    """Return the type of the embeddings in a bundle; int8 has a scale for each row beside it.

    Unless ``precision`` says otherwise it is that of the decoder's activations, or the
    checkpoint's own where that is narrower and no head shares them: rows are widened as they are
    looked up.

    Raises:
        RecipeError: if a tied head of another type shares them.
    """
    _check_sharing(model, precision)
    if precision.embeddings == "int8":
        return np.dtype(np.int8)
    if precision.embeddings in ("fp16", "bf16"):
        return np.dtype(DTYPES[precision.embeddings])
    wide = np.dtype(precision.dtype)
    shape = (model.text.vocab_size, model.text.hidden_size)
    source = model.weights.tensor(EMBEDDINGS, shape=shape).dtype
    is_open = precision.embeddings is None and not is_shared(model, precision)
    return source if is_open and source.itemsize < wide.itemsize else wide


def _head_weight(g: GraphBuilder, folder: Path | None, model: FamilyModel) -> ir.Value:
    """Return the head's weight [V, D]: its own tensor, or the embeddings file's when tied."""
    shape = (model.text.vocab_size, model.text.hidden_size)
    if not model.text.tie_word_embeddings:
        return g.weight(HEAD, shape=shape)
    path = (folder or Path()) / EMBED_TOKENS_FILE
    view = None if folder is None else read_tensors(path)[EMBED_TOKENS_TENSOR]
    tensor = ir.ExternalTensor(
        path.name,
        None if view is None else view.offset,
        None if view is None else view.nbytes,
        IR_DTYPES[g.dtype],
        shape=ir.Shape(shape),
        name=HEAD,
        base_dir=path.parent,
    )
    return g.external(HEAD, tensor)
