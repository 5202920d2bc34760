"""The models that are compared: their sizes, and their tensors by published names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """Sizes of a Qwen2 decoder with tied embeddings."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A checkpoint to make.

    Attributes:
        model_type: ``qwen2_5_vl`` or ``llava``.
        decoder: its sizes.
        vision: fields of the vision config.
        image_side: of the square pictures it is asked about, pixels.
    """

    model_type: str
    decoder: Decoder
    vision: dict[str, Any] = field(hash=False)
    image_side: int


QWEN2_HALF_B = Decoder(
    num_layers=24,
    hidden_size=896,
    intermediate_size=4864,
    num_heads=14,
    num_kv_heads=2,
    vocab_size=151936,
)
MODELS = {
    "qwen-0.1b": Model(
        model_type="qwen2_5_vl",
        decoder=Decoder(
            num_layers=12,
            hidden_size=768,
            intermediate_size=2048,
            num_heads=12,
            num_kv_heads=4,
            vocab_size=4096,
        ),
        vision={"depth": 8, "hidden_size": 512, "intermediate_size": 1536, "num_heads": 8},
        image_side=560,
    ),
    "qwen-0.5b": Model(
        model_type="qwen2_5_vl",
        decoder=QWEN2_HALF_B,
        vision={"depth": 12, "hidden_size": 640, "intermediate_size": 1728, "num_heads": 10},
        image_side=560,
    ),
    "llava-0.5b": Model(
        model_type="llava",
        decoder=QWEN2_HALF_B,
        vision={
            "num_hidden_layers": 12,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "image_size": 384,
            "patch_size": 16,
        },
        image_side=384,
    ),
}


def qwen_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Return the tensors of Qwen2.5-VL by their published names."""
    vision, wide = model.vision["hidden_size"], model.vision["intermediate_size"]
    merged = vision * 4
    shapes: dict[str, tuple[int, ...]] = {"visual.patch_embed.proj.weight": (vision, 3, 2, 14, 14)}
    for layer in range(model.vision["depth"]):
        block = {
            "norm1.weight": (vision,),
            "norm2.weight": (vision,),
            **_dense("attn.qkv", 3 * vision, vision),
            **_dense("attn.proj", vision, vision),
            **_dense("mlp.gate_proj", wide, vision),
            **_dense("mlp.up_proj", wide, vision),
            **_dense("mlp.down_proj", vision, wide),
        }
        shapes |= {f"visual.blocks.{layer}.{name}": shape for name, shape in block.items()}
    shapes |= {
        "visual.merger.ln_q.weight": (vision,),
        **_dense("visual.merger.mlp.0", merged, merged),
        **_dense("visual.merger.mlp.2", model.decoder.hidden_size, merged),
    }
    return shapes | _decoder_shapes(model.decoder, "model")


def llava_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Return the tensors of LLaVA with SigLIP by their published names."""
    vision, wide = model.vision["hidden_size"], model.vision["intermediate_size"]
    patch, side = model.vision["patch_size"], model.vision["image_size"]
    tower = "vision_tower.vision_model"
    shapes: dict[str, tuple[int, ...]] = {
        f"{tower}.embeddings.patch_embedding.weight": (vision, 3, patch, patch),
        f"{tower}.embeddings.patch_embedding.bias": (vision,),
        f"{tower}.embeddings.position_embedding.weight": ((side // patch) ** 2, vision),
    }
    for layer in range(model.vision["num_hidden_layers"]):
        block = {
            **_norm("layer_norm1", vision),
            **_norm("layer_norm2", vision),
            **_dense("mlp.fc1", wide, vision),
            **_dense("mlp.fc2", vision, wide),
        }
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            block |= _dense(f"self_attn.{name}", vision, vision)
        shapes |= {f"{tower}.encoder.layers.{layer}.{name}": each for name, each in block.items()}
    width = model.decoder.hidden_size
    shapes |= {
        **_norm(f"{tower}.post_layernorm", vision),
        **_dense("multi_modal_projector.linear_1", width, vision),
        **_dense("multi_modal_projector.linear_2", width, width),
    }
    return shapes | _decoder_shapes(model.decoder, "language_model.model")


def _decoder_shapes(sizes: Decoder, prefix: str) -> dict[str, tuple[int, ...]]:
    width, wide = sizes.hidden_size, sizes.intermediate_size
    keys = width // sizes.num_heads * sizes.num_kv_heads
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}.embed_tokens.weight": (sizes.vocab_size, width),
        f"{prefix}.norm.weight": (width,),
    }
    for layer in range(sizes.num_layers):
        block = {
            "input_layernorm.weight": (width,),
            "post_attention_layernorm.weight": (width,),
            **_dense("self_attn.q_proj", width, width),
            **_dense("self_attn.k_proj", keys, width),
            **_dense("self_attn.v_proj", keys, width),
            "self_attn.o_proj.weight": (width, width),
            "mlp.gate_proj.weight": (wide, width),
            "mlp.up_proj.weight": (wide, width),
            "mlp.down_proj.weight": (width, wide),
        }
        shapes |= {f"{prefix}.layers.{layer}.{name}": shape for name, shape in block.items()}
    return shapes


def _dense(name: str, out_size: int, in_size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out_size, in_size), f"{name}.bias": (out_size,)}


def _norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}
