"""The recipe around a pretrained decoder, on decoders of a few thousand weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import feather_edge
from feather_edge.evaluate.answers import BoxReader
from feather_edge.evaluate.scenes import make_scene, scene_rng
from feather_edge.images import ViewGeometry

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("_scene_vlm_on_path")

ROOT = Path(__file__).parents[3]
TOWER = Path(feather_edge.__file__).parent / "assets" / "scene_vlm"
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<empty_output>")


def vocabulary() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return [*CONTROL, *sorted(ByteLevel.alphabet()), "re", "red"]


def tiny_tokenizer() -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = {token: index for index, token in enumerate(vocabulary())}
    core = Tokenizer(models.BPE(vocab=tokens, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, normalized=False) for token in CONTROL])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=CONTROL[2])


def tiny_decoder() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        initializer_range=0.3,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )
    return LlamaForCausalLM(config).eval()


def tiny_model(decoder: Any, tokenizer: Any) -> Any:
    from smol_model import SmolSceneModel
    from transformers import LlavaForConditionalGeneration

    torch.manual_seed(4)
    tower = LlavaForConditionalGeneration.from_pretrained(TOWER, dtype=torch.float32)
    model = SmolSceneModel(
        tower=tower.model.vision_tower, decoder=decoder, tokenizer=tokenizer, rank=2, scale=1.0
    )
    for adapter in model.adapters.values():
        torch.nn.init.normal_(adapter.up, std=0.3)
    return model


def write_gguf(decoder: Any, path: Path) -> None:
    """Write a decoder the way llama.cpp does: rotary pairs side by side, four-bit products."""
    gguf = pytest.importorskip("gguf")
    config = decoder.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(1024)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(100000.0)
    writer.add_token_list(vocabulary())
    writer.add_token_merges(["r e", "re d"])
    writer.add_token_types([3] * len(CONTROL) + [1] * (len(vocabulary()) - len(CONTROL)))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    writer.add_tensor("token_embd.weight", decoder.model.embed_tokens.weight.detach().numpy())
    writer.add_tensor("output_norm.weight", decoder.model.norm.weight.detach().numpy())
    for index, layer in enumerate(decoder.model.layers):
        for module, name in names.items():
            weight = layer.get_submodule(module).weight.detach().numpy()
            if name in heads:
                halves = weight.reshape(heads[name], 2, -1, weight.shape[-1])
                weight = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)
            writer.add_tensor(f"blk.{index}.{name}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def scenes(count: int) -> tuple[list[Any], Any]:
    """Return objects and normalised pixels of a few development scenes."""
    made = [make_scene(scene_rng("development", index), num_objects=5) for index in range(count)]
    images = np.stack([scene.image for scene in made])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255.0
    return [scene.objects for scene in made], (pixels - 0.5) / 0.25


def hidden_when_asked(model: Any, visual: Any, batch: Any, patches: Any) -> Any:
    """Return the packed hidden states that `answer_loss` computes, text positions only."""
    from smol_objectives import answer_loss

    seen = []
    hook = model.decoder.model.register_forward_hook(
        lambda *call: seen.append(call[2].last_hidden_state)
    )
    loss, _ = answer_loss(model, visual, batch, patches=patches)
    hook.remove()
    assert torch.isfinite(loss)
    return seen[0][:, len(batch.prefix) + visual.shape[1] :]


def test_box_is_written_in_numbers_that_eval_reads():
    from smol_questions import box_numbers, numbers_text

    geometry = ViewGeometry(scale=(1, 1), offset=(0, 0), view_size=(112, 112))
    box = (3.2, 17.9, 40.0, 110.4)
    text = numbers_text(box_numbers(box))
    assert text == "03 16 36 99"
    said = BoxReader(box_format="0-100").read(text, geometry)
    assert said is not None
    assert max(abs(a - b) for a, b in zip(box, said, strict=True)) <= 0.57


def test_digits_have_soft_targets_that_hold_the_answer():
    from smol_questions import WORD_ROLE, QuestionMaker

    maker = QuestionMaker(tiny_tokenizer(), num_places=4, num_words=3)
    objects, _ = scenes(3)
    batch = maker.batch(objects, np.random.default_rng(0))
    assert torch.allclose(batch.shares.sum(1), torch.ones(len(batch.shares)), atol=1e-5)
    digits = batch.roles < WORD_ROLE
    next_ids = batch.token_ids[batch.rows[digits], batch.columns[digits] + 1]
    said = (batch.candidates[digits] == next_ids[:, None]).float()
    assert (said.sum(1) == 1).all()
    assert ((said * batch.shares[digits]).sum(1) > 0).all()
    decode = maker.tokenizer.decode
    first = batch.token_ids[0, : batch.groups[0][1]]
    assert decode(first).startswith("where is the ")
    assert "<|im_end|>\n<|im_start|>assistant\n" in decode(first)


@pytest.mark.parametrize("num_patches", [196, 48])
def test_packed_questions_are_what_each_is_alone(num_patches: int) -> None:
    from smol_objectives import choose_patches
    from smol_questions import QuestionMaker

    model = tiny_model(tiny_decoder(), tiny_tokenizer())
    maker = QuestionMaker(model.tokenizer, num_places=2, num_words=2)
    objects, pixels = scenes(2)
    rng = np.random.default_rng(1)
    batch = maker.batch(objects, rng)
    centres = torch.zeros(2, 196)
    centres[:, 77] = 1.0
    patches = choose_patches(centres, num_patches, rng)
    assert (patches == 77).any(dim=1).all()
    with torch.no_grad():
        visual = model.projector(model.features(pixels))
        visual = visual.gather(1, patches[..., None].expand(-1, -1, visual.shape[-1]))
        packed = hidden_when_asked(model, visual, batch, patches)
        embed = model.decoder.get_input_embeddings()
        start, first = embed(batch.prefix)[None], len(batch.prefix)
        for row in range(2):
            begin = 0
            for length in (batch.groups[0][1],) * 2 + (batch.groups[1][1],) * 2:
                text = embed(batch.token_ids[row : row + 1, begin : begin + length])
                places = torch.cat(
                    [torch.arange(first), first + patches[row], first + 196 + torch.arange(length)]
                )
                alone = model.decoder.model(
                    inputs_embeds=torch.cat([start, visual[row : row + 1], text], 1),
                    position_ids=places[None],
                ).last_hidden_state[0, -length:]
                assert torch.allclose(packed[row, begin : begin + length], alone, atol=1e-4)
                begin += length


def test_adapter_computes_and_learns_what_its_formula_says():
    from lora import AdaptedLinear

    torch.manual_seed(0)
    layer = AdaptedLinear(torch.nn.Linear(6, 5, bias=False), rank=2, scale=0.5)
    torch.nn.init.normal_(layer.up)
    layer.frozen.requires_grad_(requires_grad=False)
    values = torch.randn(2, 3, 6, requires_grad=True)
    weights = torch.randn(2, 3, 5)
    plain = layer.frozen.weight + 0.5 * layer.up @ layer.down
    wanted = torch.autograd.grad(
        ((values @ plain.T) * weights).sum(), (values, layer.down, layer.up)
    )
    product = layer(values)
    assert torch.allclose(product, values @ layer.merged().T, atol=1e-5)
    found = torch.autograd.grad((product * weights).sum(), (values, layer.down, layer.up))
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_decoder_comes_out_of_gguf_as_it_went_in(tmp_path: Path) -> None:
    from decoder import load_decoder, load_tokenizer

    decoder = tiny_decoder()
    write_gguf(decoder, tmp_path / "tiny.gguf")
    token_ids = torch.tensor([[1, 9, 40, 77, 12]])
    with torch.no_grad():
        wanted = decoder(input_ids=token_ids).logits
        found = load_decoder(tmp_path / "tiny.gguf")(input_ids=token_ids).logits
    assert torch.allclose(found, wanted, atol=1e-4)
    tokenizer = load_tokenizer(tmp_path / "tiny.gguf", renamed={"<empty_output>": "<image>"})
    assert tokenizer("<image>a").input_ids[0] == 3
    assert (
        tokenizer.decode(tokenizer("naïve 12 — <|im_end|>").input_ids) == "naïve 12 — <|im_end|>"
    )


def test_assembled_checkpoint_is_the_model_that_was_trained(tmp_path: Path) -> None:
    from assemble import assemble
    from PIL import Image
    from smol_questions import QuestionMaker
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    write_gguf(tiny_decoder(), tmp_path / "tiny.gguf")
    from decoder import load_decoder, load_tokenizer

    path = tmp_path / "tiny.gguf"
    model = tiny_model(load_decoder(path), load_tokenizer(path))
    model.save_adapter(tmp_path / "adapter.safetensors", model.trained_state())
    assemble(tmp_path / "adapter.safetensors", path, tmp_path / "folder")

    objects, pixels = scenes(1)
    batch = QuestionMaker(model.tokenizer, num_places=1, num_words=1).batch(
        objects, np.random.default_rng(2)
    )
    with torch.no_grad():
        visual = model.projector(model.features(pixels))
        packed = hidden_when_asked(model, visual, batch, torch.arange(196)[None])
        wanted = model.decoder.lm_head(packed)[0, : batch.groups[0][1]]

    processor = AutoProcessor.from_pretrained(tmp_path / "folder")
    loaded = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "folder", dtype=torch.float32
    )
    text = model.tokenizer.decode(batch.token_ids[0, : batch.groups[0][1]])
    question, _, answer = text.partition("<|im_end|>\n<|im_start|>assistant\n")
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    image = make_scene(scene_rng("development", 0), num_objects=5).image
    inputs = processor(text=prompt + answer, images=Image.fromarray(image), return_tensors="pt")
    with torch.no_grad():
        found = loaded(**inputs).logits[0, -batch.groups[0][1] :]
    # float16 weights lie between them.
    assert torch.allclose(found, wanted, atol=0.02 * float(wanted.abs().max()))
    settings = json.loads((tmp_path / "folder" / "config.json").read_text(encoding="utf-8"))
    assert settings["image_token_index"] == 3
