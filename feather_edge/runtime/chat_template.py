"""Render a conversation with the chat template of a checkpoint.

A template is Jinja code that came with somebody's weights: it runs in Jinja's immutable sandbox
and sees plain data only. Its environment is the one that transformers gives it, so that the text
is the same to the character.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from feather_edge.errors import CheckpointError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from jinja2.parser import Parser

Message = dict[str, Any]
"""One turn: ``role``, and ``content`` that is a text or a list of typed entries."""


class ChatTemplate:
    """A compiled chat template."""

    def __init__(self, source: str, *, origin: Path) -> None:
        """Compile `source`, which was read from `origin`."""
        self._origin = origin
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise CheckpointError(
                f"{origin}: the chat template is no valid Jinja: {error}"
            ) from error

    def render(self, messages: Sequence[Message], *, special_tokens: Mapping[str, str]) -> str:
        """Return the text of a conversation, up to where the model's answer begins.

        Args:
            messages: the turns so far.
            special_tokens: by name, such as bos_token; templates use them as variables.

        Raises:
            RequestError: the template cannot render these messages.
        """
        try:
            return self._template.render(
                messages=_plain(list(messages)),
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **special_tokens,
            )
        except Exception as error:  # a template can run into any error that Python has
            reason = str(error).strip().replace("\n", " ") or type(error).__name__
            raise RequestError(
                f"the chat template of {self._origin} does not take this prompt: {reason}"
            ) from error


class _GenerationTag(Extension):
    """``{% generation %}``, which marks answers for training: here its body is just rendered."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own interface

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    @staticmethod
    def _render(caller: Callable[[], str]) -> str:
        return caller()


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002, RUF100 - templates call it so
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002, RUF100
) -> str:
    # Jinja's own filter escapes HTML, which no model was trained on.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _plain(value: Any) -> Any:
    """Rebuild a value from plain data; images and other objects become their type's name.

    Templates only look whether an entry is there, and objects have methods that the sandbox does
    not know to be dangerous.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, dict):
        # A key without a value is dropped: templates would print "None", or fail on it.
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"
