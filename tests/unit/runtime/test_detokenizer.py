from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.checkpoints import tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from feather_edge.runtime.detokenizer import Detokenizer, StreamDecoder

WORDS = ["x", ".", "?", "!", ",", "'", "n't", "'m", "'s", "'ve", "'re", "do", "we", "<s>"]


def word_level():
    """A tokenizer whose words are joined by spaces, which the clean-up then removes."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="x"))  # noqa: S106 - no secret
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_tokens([AddedToken("<s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=True)


TOKENIZERS = {
    "llama": (tiny_tokenizer("llama"), False),
    "qwen2": (tiny_tokenizer("qwen2"), False),
    "words": (word_level(), True),
}
any_ids = st.lists(st.integers(0, 10**6), max_size=24)


def detokenizer_of(kind):
    reference, has_clean_up = TOKENIZERS[kind]
    return reference, Detokenizer(reference.backend_tokenizer, has_clean_up=has_clean_up)


def stream(detokenizer, ids):
    decoder = StreamDecoder(detokenizer)
    return [*(decoder.step(token_id) for token_id in ids), decoder.flush()]


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.differing_executors])
@given(numbers=any_ids)
def test_any_ids(kind, numbers):
    """Whatever the ids, at once and in pieces they give the text that transformers gives."""
    reference, detokenizer = detokenizer_of(kind)
    ids = [number % len(reference) for number in numbers]
    expected = reference.decode(ids, skip_special_tokens=True)
    assert detokenizer.decode(ids) == expected
    assert "".join(stream(detokenizer, ids)) == expected


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize(
    "text",
    ["Where is the réd circle?", "日本語 🎉🎉x 🎉", "  a  b ", "x\n\ny", "€ é", "", "\ufffd"],
)
def test_text(kind, text):
    reference, detokenizer = detokenizer_of(kind)
    ids = reference.encode(text, add_special_tokens=False)
    assert "".join(stream(detokenizer, ids)) == reference.decode(ids, skip_special_tokens=True)


def test_text_comes_as_soon_as_it_is_certain():
    reference, detokenizer = detokenizer_of("qwen2")
    ids = reference.encode("red é circle", add_special_tokens=False)
    pieces = stream(detokenizer, ids)
    assert "\ufffd" not in "".join(pieces)
    assert pieces[0] != ""
    assert pieces[-1] == ""


def test_special_tokens_are_left_out():
    reference, detokenizer = detokenizer_of("llama")
    ids = [1, *reference.encode("red", add_special_tokens=False), 2]
    assert detokenizer.decode(ids) == "red"
    assert "".join(stream(detokenizer, ids)) == "red"


def test_flush_twice_gives_nothing_more():
    _, detokenizer = detokenizer_of("words")
    decoder = StreamDecoder(detokenizer)
    text = "".join(decoder.step(WORDS.index(word)) for word in ("we", "do", "n't", "."))
    assert text + decoder.flush() == "we don't."
    assert decoder.flush() == ""
