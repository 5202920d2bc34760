from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import transformers
from PIL import Image
from support.checkpoints import CHATML_TEMPLATE, VICUNA_TEMPLATE, tiny_llava

from feather_edge.errors import CheckpointError, RequestError
from feather_edge.runtime.prompt import PROMPT_FILES, PromptFormatter

KINDS = {
    "clip-llama": {"vision": "clip", "text": "llama"},
    "siglip-mistral": {"vision": "siglip", "text": "mistral"},
    "clip-qwen2": {"vision": "clip", "text": "qwen2"},
}
TEXTS = [
    "Where is the réd circle?",
    " leading space",
    "日本語\n\n x  ",
    "",
    "<s> a </s> <|im_end|>",
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return {kind: tiny_llava(root / kind, **options) for kind, options in KINDS.items()}


@pytest.fixture
def copy(checkpoints, tmp_path):
    """A checkpoint folder whose files a test may change."""
    return shutil.copytree(checkpoints["clip-llama"], tmp_path / "copy")


def image_token_id(folder):
    return json.loads((folder / "config.json").read_text())["image_token_index"]


def open_formatter(folder):
    return PromptFormatter.open(folder, image_token_id=image_token_id(folder))


def conversation(text, *, num_images):
    images = [{"type": "image", "image": Image.new("RGB", (30, 20))} for _ in range(num_images)]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


def reference_ids(folder, messages):
    processor = transformers.AutoProcessor.from_pretrained(folder)
    encoded = processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True
    )
    return np.array(encoded["input_ids"]).reshape(-1)


def edit(path, **changes):
    document = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**document, **changes}))


def assert_as_transformers(folder, text="Where is it?"):
    expected = reference_ids(folder, conversation(text, num_images=1))
    encoded = open_formatter(folder).encode(text, images=[(16,)])
    np.testing.assert_array_equal(encoded.prompt_ids, expected)
    return encoded


@pytest.mark.parametrize("num_images", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_transformers(checkpoints, kind, num_images):
    folder = checkpoints[kind]
    formatter = open_formatter(folder)
    for text in TEXTS:
        messages = conversation(text, num_images=num_images)
        expected = reference_ids(folder, messages)
        for prompt in (text, messages, tuple(messages)):
            encoded = formatter.encode(prompt, images=[(16,)] * num_images)
            assert encoded.prompt_ids.dtype == np.int64
            np.testing.assert_array_equal(encoded.prompt_ids, expected)


def test_the_placeholders_of_each_image_are_marked(checkpoints):
    folder = checkpoints["clip-qwen2"]
    encoded = open_formatter(folder).encode("hm", images=[(3,), (5,)])
    is_placeholder = encoded.prompt_ids == image_token_id(folder)
    np.testing.assert_array_equal(encoded.is_image, is_placeholder)
    assert is_placeholder.sum() == 8
    assert encoded.text.count("<image>") == 2
    assert encoded.text.endswith("hm<|im_end|>\n<|im_start|>assistant\n")


def test_a_conversation_of_several_turns(checkpoints):
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "I see"}], "name": None},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
    ]
    encoded = open_formatter(checkpoints["clip-llama"]).encode(messages, images=[(2,), (2,)])
    assert encoded.text == ("<s>USER: <image>\nlook ASSISTANT: I see USER: <image>\nASSISTANT:")


def test_without_a_chat_template(copy):
    (copy / "chat_template.jinja").unlink()
    formatter = open_formatter(copy)
    encoded = formatter.encode("Where is it?", images=[(2,), (1,)])
    assert encoded.text == "<image>\n<image>\nWhere is it?"
    assert encoded.prompt_ids[0] == 1  # <s>, which the tokenizer puts in front
    assert np.flatnonzero(encoded.is_image).tolist() == [1, 2, 4]
    with pytest.raises(RequestError) as error:
        formatter.encode(conversation("x", num_images=0), images=[])
    assert str(error.value) == (
        "the model has no chat template, so messages cannot be rendered; give the prompt as one "
        "text"
    )


class TestTemplateFiles:
    """A chat template may be in any of four places."""

    def test_legacy_json_wins_over_jinja(self, copy):
        edit(copy / "chat_template.json", chat_template="legacy " + VICUNA_TEMPLATE)
        assert assert_as_transformers(copy).text.startswith("legacy ")

    def test_processor_config_wins_over_all(self, copy):
        edit(copy / "chat_template.json", chat_template="legacy " + VICUNA_TEMPLATE)
        edit(copy / "processor_config.json", chat_template="own " + VICUNA_TEMPLATE)
        assert assert_as_transformers(copy).text.startswith("own ")

    @pytest.mark.parametrize(
        "template",
        [
            "tokenizer " + VICUNA_TEMPLATE,
            [
                {"name": "tool_use", "template": "tools"},
                {"name": "default", "template": "tokenizer " + VICUNA_TEMPLATE},
            ],
        ],
    )
    def test_tokenizer_config(self, copy, template):
        (copy / "chat_template.jinja").unlink()
        edit(copy / "tokenizer_config.json", chat_template=template)
        encoded = open_formatter(copy).encode("x", images=[(1,)])
        assert encoded.text.startswith("tokenizer <s>USER")

    def test_damaged(self, copy):
        (copy / "chat_template.jinja").write_text("{% for %}")
        with pytest.raises(
            CheckpointError, match=r"chat_template\.jinja: the chat template is no"
        ):
            open_formatter(copy)


class TestTokenizerSettings:
    """tokenizer_config.json may change what tokenizer.json says."""

    @pytest.mark.parametrize("adds", [True, False])
    def test_bos_and_eos_are_up_to_the_tokenizer_file(self, copy, adds):
        edit(copy / "tokenizer_config.json", add_bos_token=adds, add_eos_token=adds)
        (copy / "chat_template.jinja").write_text(VICUNA_TEMPLATE.replace("{{ bos_token }}", ""))
        ids = assert_as_transformers(copy).prompt_ids
        assert (ids == 1).sum() == 1
        assert (ids == 2).sum() == 0

    def test_a_template_with_bos_gets_no_second_one(self, copy):
        ids = assert_as_transformers(copy).prompt_ids
        assert (ids == 1).sum() == 1

    def test_tokens_that_only_the_settings_know(self, copy):
        template = VICUNA_TEMPLATE.replace("ASSISTANT:", "<bot>")
        (copy / "chat_template.jinja").write_text(template)
        number = len(transformers.AutoTokenizer.from_pretrained(copy))
        token = {"content": "<bot>", "lstrip": True, "special": True, "normalized": False}
        edit(copy / "tokenizer_config.json", added_tokens_decoder={str(number): token})
        assert assert_as_transformers(copy).prompt_ids[-1] == number

    @pytest.mark.parametrize(
        "settings",
        [
            {"extra_special_tokens": ["<bot>"]},
            {"extra_special_tokens": {"bot_token": "<bot>"}},
            {"bot_token": "<bot>"},
            {"sep_token": "<bot>"},
        ],
    )
    def test_extra_special_tokens(self, copy, settings):
        template = VICUNA_TEMPLATE.replace("ASSISTANT:", "<bot>")
        (copy / "chat_template.jinja").write_text(template)
        edit(copy / "tokenizer_config.json", **settings)
        assert assert_as_transformers(copy).prompt_ids[-1] >= 360

    def test_special_tokens_map_of_older_checkpoints(self, copy):
        (copy / "chat_template.jinja").write_text("{{ sep_token }}" + VICUNA_TEMPLATE)
        edit(copy / "special_tokens_map.json", sep_token={"content": "<sep>", "lstrip": False})
        assert assert_as_transformers(copy).text.startswith("<sep><s>USER")

    def test_truncation_and_padding_of_the_file_are_not_applied(self, copy):
        document = json.loads((copy / "tokenizer.json").read_text())
        document["truncation"] = {
            "direction": "Right",
            "max_length": 4,
            "strategy": "LongestFirst",
            "stride": 0,
        }
        (copy / "tokenizer.json").write_text(json.dumps(document))
        encoded = open_formatter(copy).encode("a long enough text", images=[(1,)])
        assert len(encoded.prompt_ids) > 10

    def test_clean_up_is_ignored_for_bpe(self, copy):
        edit(copy / "tokenizer_config.json", clean_up_tokenization_spaces=True)
        formatter = open_formatter(copy)
        tokenizer = transformers.AutoTokenizer.from_pretrained(copy)
        ids = tokenizer.encode("we do n't . no", add_special_tokens=False)
        assert formatter.decode(ids) == "we do n't . no"


def test_decoding(checkpoints):
    formatter = open_formatter(checkpoints["clip-llama"])
    ids = formatter.encode("the red circle", images=[]).prompt_ids
    assert formatter.decode(ids) == "USER: the red circle ASSISTANT:"
    decoder = formatter.stream_decoder()
    streamed = "".join(decoder.step(token_id) for token_id in ids) + decoder.flush()
    assert streamed == "USER: the red circle ASSISTANT:"


class TestEndOfAnswer:
    def test_generation_config_comes_first(self, copy):
        edit(copy / "generation_config.json", eos_token_id=[7, 8])
        assert open_formatter(copy).eos_token_ids == (7, 8)

    def test_then_config_then_its_text_config(self, copy):
        (copy / "generation_config.json").unlink()
        assert open_formatter(copy).eos_token_ids == (2,)
        edit(copy / "config.json", eos_token_id=9)
        assert open_formatter(copy).eos_token_ids == (9,)

    def test_then_the_tokenizer(self, copy):
        (copy / "generation_config.json").unlink()
        token_id = image_token_id(copy)
        (copy / "config.json").unlink()
        assert PromptFormatter.open(copy, image_token_id=token_id).eos_token_ids == (2,)
        edit(copy / "tokenizer_config.json", eos_token=None)
        assert PromptFormatter.open(copy, image_token_id=token_id).eos_token_ids == ()


def test_the_prompt_files_are_all_that_is_read(checkpoints, tmp_path):
    folder = checkpoints["clip-qwen2"]
    for name in PROMPT_FILES:
        if (folder / name).is_file():
            shutil.copy(folder / name, tmp_path / name)
    original = open_formatter(folder).encode("Where?", images=[(4,)])
    copied = open_formatter(tmp_path).encode("Where?", images=[(4,)])
    np.testing.assert_array_equal(copied.prompt_ids, original.prompt_ids)
    assert (tmp_path / "chat_template.jinja").read_text() == CHATML_TEMPLATE


class TestRefusals:
    def test_placeholders_in_the_users_text(self, checkpoints):
        with pytest.raises(RequestError) as error:
            open_formatter(checkpoints["clip-llama"]).encode("what is <image>?", images=[(4,)])
        assert str(error.value) == (
            "prompt has 2 image placeholders (<image>) for 1 images; the two must be equal: the "
            "chat template writes one per image, so leave them out of your own text"
        )

    def test_image_entries(self, checkpoints):
        with pytest.raises(RequestError) as error:
            open_formatter(checkpoints["clip-llama"]).encode(
                conversation("x", num_images=2), images=[(4,)]
            )
        assert str(error.value) == (
            'messages have 2 image entries for 1 images; add {"type": "image"} to the content '
            "where each image belongs"
        )

    @pytest.mark.parametrize(
        ("prompt", "expected"),
        [
            (None, "prompt is NoneType None; it must be a text, or a list of messages with role"),
            ([], "prompt is list []; it must be a text, or a list of messages"),
            (["x"], "message 'x' must be a dict with role and content"),
            ([{"role": "user"}], "message {'role': 'user'} must be a dict with role and content"),
            (
                [{"role": "user", "content": ["x"]}],
                "content entry 'x' must be a dict with a type: image, or text with its text",
            ),
        ],
    )
    def test_prompts_of_another_form(self, checkpoints, prompt, expected):
        with pytest.raises(RequestError) as error:
            open_formatter(checkpoints["clip-llama"]).encode(prompt, images=[])
        assert expected in str(error.value)

    def test_missing_tokenizer(self, tmp_path):
        with pytest.raises(
            CheckpointError, match=r"tokenizer\.json does not exist; a tokenizer i"
        ):
            PromptFormatter.open(tmp_path, image_token_id=0)

    def test_damaged_tokenizer(self, copy):
        (copy / "tokenizer.json").write_text("{}")
        with pytest.raises(CheckpointError, match=r"tokenizer\.json is no valid tokenizer: "):
            open_formatter(copy)

    def test_unknown_image_token(self, copy):
        with pytest.raises(CheckpointError, match="has no token 9999, which the model takes for"):
            PromptFormatter.open(copy, image_token_id=9999)
