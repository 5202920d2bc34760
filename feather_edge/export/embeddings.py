"""The embeddings of the vocabulary, and a language head that may be the same matrix.

The runtime looks rows up on the host, in a memory-mapped safetensors file. When head and
embeddings are tied and the head is not quantised, the last segment's head weight points into that
very file, so the largest tensor of a small model is stored once.
"""

from __future__ import annotations

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
    from pathlib import Path

    from numpy.typing import NDArray

    from feather_edge.checkpoint.reader import TensorView
    from feather_edge.export.builder import GraphBuilder
    from feather_edge.export.families import FamilyModel
    from feather_edge.export.precision import GraphPrecision

EMBEDDINGS = "text.embed_tokens.weight"
HEAD = "lm_head.weight"


def write_embeddings(folder: Path, model: FamilyModel, precision: GraphPrecision) -> None:
    """Write the embeddings [V, D] into the bundle.

    Unless ``precision`` says otherwise, their type is that of the decoder's activations, or the
    checkpoint's own where that is narrower and no head shares them: rows are widened as they are
    looked up.

    Raises:
        RecipeError: if a tied head of another type shares them.
    """
    from safetensors.numpy import save_file

    _check_sharing(model, precision)
    shape = (model.text.vocab_size, model.text.hidden_size)
    view = model.weights.tensor(EMBEDDINGS, shape=shape)
    tensors: dict[str, NDArray[Any]]
    if precision.embeddings == "int8":
        codes, scales = row_quantised(view)
        tensors = {EMBED_TOKENS_TENSOR: codes, EMBED_TOKENS_SCALES: scales}
    else:
        table = view.read().astype(_embedding_dtype(model, view, precision), copy=False)
        tensors = {EMBED_TOKENS_TENSOR: np.ascontiguousarray(table)}
    path = folder / EMBED_TOKENS_FILE
    save_file(tensors, path)
    path.chmod(0o644)  # safetensors writes for the owner alone; a bundle is copied and shared


def _embedding_dtype(
    model: FamilyModel, view: TensorView, precision: GraphPrecision
) -> np.dtype[Any]:
    wide = np.dtype(precision.dtype)
    if precision.embeddings in ("fp16", "bf16"):
        return np.dtype(DTYPES[precision.embeddings])
    is_narrower = view.dtype.itemsize < wide.itemsize
    is_open = precision.embeddings is None and not is_shared(model, precision)
    return view.dtype if is_open and is_narrower else wide


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
    g: GraphBuilder, normed: ir.Value, folder: Path, model: FamilyModel
) -> ir.Value:
    """Write the head's product of ``normed`` [B, D] with all words: [B, V].

    Args:
        g: the last segment's graph.
        normed: of the last position.
        folder: the bundle that is being written; a tied head refers to its embeddings.
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


def _head_weight(g: GraphBuilder, folder: Path, model: FamilyModel) -> ir.Value:
    """Return the head's weight [V, D]: its own tensor, or the embeddings file's when tied."""
    shape = (model.text.vocab_size, model.text.hidden_size)
    if not model.text.tie_word_embeddings:
        return g.weight(HEAD, shape=shape)
    path = folder / EMBED_TOKENS_FILE
    view = read_tensors(path)[EMBED_TOKENS_TENSOR]
    tensor = ir.ExternalTensor(
        path.name,
        view.offset,
        view.nbytes,
        IR_DTYPES[g.dtype],
        shape=ir.Shape(shape),
        name=HEAD,
        base_dir=path.parent,
    )
    return g.external(HEAD, tensor)
