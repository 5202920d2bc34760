"""Turn a prompt and its images into prompt ids with room for the visual tokens.

Text and ids are those of transformers' `ProcessorMixin.apply_chat_template(tokenize=True)`: the
same template, the same special tokens, one image placeholder per visual token.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import AddedToken, Tokenizer

from feather_edge.checkpoint.reader import read_json_object
from feather_edge.errors import CheckpointError, RequestError
from feather_edge.manifest import PromptForm
from feather_edge.runtime.chat_template import ChatTemplate, Message
from feather_edge.runtime.detokenizer import Detokenizer, StreamDecoder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["PROMPT_FILES", "EncodedPrompt", "Message", "PromptFormatter", "StreamDecoder"]

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
CHAT_TEMPLATE_JSON_FILE = "chat_template.json"
PROCESSOR_FILE = "processor_config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
CONFIG_FILE = "config.json"

PROMPT_FILES = (
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    SPECIAL_TOKENS_FILE,
    CHAT_TEMPLATE_FILE,
    CHAT_TEMPLATE_JSON_FILE,
    PROCESSOR_FILE,
    GENERATION_CONFIG_FILE,
    CONFIG_FILE,
)
"""Files that `PromptFormatter.open` reads where they exist; only the first must."""

_IMAGE_TYPES = ("image", "image_url")
_OTHER_MEDIA = ("video", "audio")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedPrompt:
    """A prompt with its image placeholders repeated, ready for visual tokens to be spliced in.

    Attributes:
        prompt_ids: [S] int64.
        is_image: [S] bool, which of them are image placeholders.
        text: the rendered prompt, with one placeholder per image.
    """

    prompt_ids: np.ndarray
    is_image: np.ndarray
    text: str


class PromptFormatter:
    """Tokenizer and chat template of one model; made with `PromptFormatter.open`."""

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        special_tokens: dict[str, str],
        template: ChatTemplate | None,
        detokenizer: Detokenizer,
        image_token_id: int,
        eos_token_ids: tuple[int, ...],
        form: PromptForm,
    ) -> None:
        self._tokenizer = tokenizer
        self._special_tokens = special_tokens
        self._template = template
        self._detokenizer = detokenizer
        self._image_token_id = image_token_id
        self._image_token = str(tokenizer.id_to_token(image_token_id))
        self._image_mark = form.image_mark or self._image_token
        self._is_prefix = template is None and form.without_template == "prefix"
        self.eos_token_ids = eos_token_ids

    @classmethod
    def open(
        cls, folder: Path, *, image_token_id: int, form: PromptForm | None = None
    ) -> PromptFormatter:
        """Read the tokenizer, its settings and the chat template of a folder.

        Args:
            folder: holds tokenizer.json and whatever it has of `PROMPT_FILES`.
            image_token_id: id of the image placeholder.
            form: what the chat template does not say; None for nothing.

        Raises:
            CheckpointError: a file is missing or damaged, or has no token of that id.
        """
        with _sensible_settings(folder):
            config = _read_optional(folder / TOKENIZER_CONFIG_FILE)
            if "added_tokens_decoder" not in config:
                config = {**config, **_read_optional(folder / SPECIAL_TOKENS_FILE)}
            special_tokens = _special_tokens(config)
            tokenizer = _open_tokenizer(folder / TOKENIZER_FILE, config, special_tokens)
            if tokenizer.id_to_token(image_token_id) is None:
                raise CheckpointError(
                    f"{folder / TOKENIZER_FILE} has no token {image_token_id}, which the model "
                    "takes for its image placeholder; tokenizer and config.json are of different "
                    "models"
                )
            # The clean-up is for word-level tokenizers; transformers ignores the setting for BPE.
            is_bpe = type(tokenizer.model).__name__ == "BPE"
            has_clean_up = bool(config.get("clean_up_tokenization_spaces")) and not is_bpe
            return cls(
                tokenizer=tokenizer,
                special_tokens=special_tokens,
                template=_chat_template(folder, config),
                detokenizer=Detokenizer(tokenizer, has_clean_up=has_clean_up),
                image_token_id=image_token_id,
                eos_token_ids=_eos_token_ids(folder, tokenizer, special_tokens),
                form=PromptForm() if form is None else form,
            )

    def encode(
        self, prompt: str | Sequence[Message], *, images: Sequence[Sequence[str | int]]
    ) -> EncodedPrompt:
        """Return the ids of a prompt.

        Args:
            prompt: what the user says, which becomes one user turn with the images first; or the
                whole conversation as messages, with one image entry per image.
            images: what stands for each image, see ``PreparedImages.prompt_pieces``.

        Raises:
            RequestError: the number of image placeholders is not the number of images, or the
                chat template does not take the prompt.
        """
        text = self._render(prompt, num_images=len(images))
        bos = self._special_tokens.get("bos_token")
        has_bos = self._template is not None and bos is not None and text.startswith(bos)
        has_bos |= self._is_prefix
        expanded = self._expand(text, images)
        ids = self._tokenizer.encode(expanded, add_special_tokens=not has_bos).ids
        prompt_ids = np.array(ids, dtype=np.int64)
        return EncodedPrompt(
            prompt_ids=prompt_ids, is_image=prompt_ids == self._image_token_id, text=text
        )

    def token(self, token_id: int) -> str | None:
        """Return the text of one token, special or not; None if there is none of that id."""
        token: str | None = self._tokenizer.id_to_token(token_id)
        return token

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens left out."""
        return self._detokenizer.decode(ids)

    def stream_decoder(self) -> StreamDecoder:
        """Return a decoder for one answer: `step` per token, then `flush`."""
        return StreamDecoder(self._detokenizer)

    def _render(self, prompt: str | Sequence[Message], *, num_images: int) -> str:
        if isinstance(prompt, str):
            if self._is_prefix:
                bos = self._special_tokens.get("bos_token", "")
                return f"{self._image_mark * num_images}{bos}{prompt}\n"
            if self._template is None:
                return f"{self._image_mark}\n" * num_images + prompt
            images: list[dict[str, Any]] = [{"type": "image"} for _ in range(num_images)]
            content = [*images, {"type": "text", "text": prompt}]
            messages: list[Message] = [{"role": "user", "content": content}]
        else:
            messages = _checked_messages(prompt, num_images=num_images)
        if self._template is None:
            raise RequestError(
                "the model has no chat template, so messages cannot be rendered; give the prompt "
                "as one text"
            )
        return self._template.render(messages, special_tokens=self._special_tokens)

    def _expand(self, text: str, images: Sequence[Sequence[str | int]]) -> str:
        """Put what stands for each image in the place of its placeholder."""
        before, *after = text.split(self._image_mark)
        if len(after) != len(images):
            raise RequestError(
                f"prompt has {len(after)} image placeholders ({self._image_mark}) for "
                f"{len(images)} images; the two must be equal: the chat template writes one per "
                "image, so leave them out of your own text"
            )
        if self._image_mark != self._image_token and self._image_token in text:
            raise RequestError(
                f"prompt has {self._image_token} in its text, which stands for a visual token; "
                f"pictures are marked by {self._image_mark}, so leave it out"
            )
        expanded = [before]
        for pieces, rest in zip(images, after, strict=True):
            expanded += [p if isinstance(p, str) else self._image_token * p for p in pieces]
            expanded.append(rest)
        return "".join(expanded)


def _checked_messages(prompt: object, *, num_images: int) -> list[Message]:
    """Check a conversation's form and bring image entries to the one form templates know."""
    if not isinstance(prompt, list | tuple) or not prompt:
        raise RequestError(
            f"prompt is {type(prompt).__name__} {prompt!r}; it must be a text, or a list of "
            "messages with role and content"
        )
    messages = []
    num_entries = 0
    for message in prompt:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise RequestError(f"message {message!r} must be a dict with role and content")
        content = message["content"]
        if isinstance(content, list):
            content = [_checked_entry(entry) for entry in content]
            num_entries += sum(entry["type"] == "image" for entry in content)
        messages.append({**message, "content": content})
    if num_entries != num_images:
        raise RequestError(
            f"messages have {num_entries} image entries for {num_images} images; add "
            '{"type": "image"} to the content where each image belongs'
        )
    return messages


def _checked_entry(entry: object) -> dict[str, Any]:
    if not isinstance(entry, dict) or "type" not in entry:
        raise RequestError(
            f"content entry {entry!r} must be a dict with a type: image, or text with its text"
        )
    if entry["type"] in _OTHER_MEDIA:
        raise RequestError(
            f"content entry {entry!r} is a {entry['type']}, which is not supported; allowed are "
            f"image and text: give single frames of a video as images"
        )
    return {"type": "image"} if entry["type"] in _IMAGE_TYPES else entry


@contextmanager
def _sensible_settings(folder: Path) -> Iterator[None]:
    """Turn what a setting of a wrong kind runs into, wherever that is, into one error."""
    try:
        yield
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"tokenizer settings of {folder} make no sense ({type(error).__name__}: {error}); "
            f"copy {TOKENIZER_CONFIG_FILE} and its neighbours again"
        ) from error


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _open_tokenizer(
    path: Path, config: dict[str, Any], special_tokens: dict[str, str]
) -> Tokenizer:
    """Open tokenizer.json and apply what tokenizer_config.json changes about it.

    Whether BOS and EOS go around a text is up to tokenizer.json alone: transformers 5 does not
    look at add_bos_token and add_eos_token where that file exists.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist; a tokenizer in another form must be saved again with "
            "transformers' AutoTokenizer, whose save_pretrained writes it"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises plain Exception
        raise CheckpointError(f"{path} is no valid tokenizer: {error}") from error
    # A prompt is never cut or padded here, whatever the tokenizer was saved with.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = bool(config.get("split_special_tokens", False))
    _add_tokens(tokenizer, config, special_tokens)
    return tokenizer


def _add_tokens(
    tokenizer: Tokenizer, config: dict[str, Any], special_tokens: dict[str, str]
) -> None:
    """Add the tokens that only tokenizer_config.json knows, or knows better."""
    fields = ("single_word", "lstrip", "rstrip", "normalized", "special")
    listed = config.get("added_tokens_decoder") or {}
    tokens = [
        AddedToken(token["content"], **{key: token[key] for key in fields if key in token})
        for _, token in sorted(listed.items(), key=lambda item: int(item[0]))
    ]
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    named = [*special_tokens.values(), *(_content(token) for token in extra)]
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    known |= {token.content for token in tokens}
    missing = [name for name in dict.fromkeys(named) if name is not None and name not in known]
    tokenizer.add_tokens([*tokens, *(AddedToken(name, special=True) for name in missing)])


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Return the named special tokens, such as bos_token, as templates see them."""
    values = {**config}
    if isinstance(config.get("extra_special_tokens"), dict):
        values.update(values.pop("extra_special_tokens"))
    named = {key: _content(value) for key, value in values.items() if key.endswith("_token")}
    return {key: token for key, token in named.items() if token is not None}


def _content(token: Any) -> str | None:
    """Return the text of a token that is written as a text or as an object."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _chat_template(folder: Path, tokenizer_config: dict[str, Any]) -> ChatTemplate | None:
    """Find the chat template in the order in which transformers looks for it."""
    candidates = (
        (PROCESSOR_FILE, _read_optional(folder / PROCESSOR_FILE)),
        (CHAT_TEMPLATE_JSON_FILE, _read_optional(folder / CHAT_TEMPLATE_JSON_FILE)),
        (CHAT_TEMPLATE_FILE, _read_template_file(folder / CHAT_TEMPLATE_FILE)),
        (TOKENIZER_CONFIG_FILE, tokenizer_config),
    )
    for name, holder in candidates:
        source = holder.get("chat_template")
        if isinstance(source, list):  # several, each with a name
            source = {entry["name"]: entry["template"] for entry in source}
        if isinstance(source, dict):
            source = source.get("default")
        if isinstance(source, str):
            return ChatTemplate(source, origin=folder / name)
    return None


def _read_template_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return {"chat_template": path.read_text(encoding="utf-8")}
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; copy it again") from error


def _eos_token_ids(
    folder: Path, tokenizer: Tokenizer, special_tokens: dict[str, str]
) -> tuple[int, ...]:
    """Return the ids that end an answer: of the generation config, the config, the tokenizer."""
    config = _read_optional(folder / CONFIG_FILE)
    for holder in (
        _read_optional(folder / GENERATION_CONFIG_FILE),
        config,
        config.get("text_config") or {},
    ):
        ids = holder.get("eos_token_id")
        if ids is not None:
            return tuple(ids) if isinstance(ids, list) else (ids,)
    eos = tokenizer.token_to_id(special_tokens.get("eos_token", ""))
    return () if eos is None else (eos,)
