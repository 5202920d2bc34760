from __future__ import annotations

from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from feather_edge.errors import CheckpointError, RequestError
from feather_edge.runtime.chat_template import ChatTemplate

ORIGIN = Path("model/chat_template.jinja")
MESSAGES = [
    {"role": "system", "content": "Bé <b>brief</b>."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "where & 'why'?"}]},
]


def render(source, messages=MESSAGES, **special_tokens):
    return ChatTemplate(source, origin=ORIGIN).render(messages, special_tokens=special_tokens)


@pytest.mark.parametrize(
    "source",
    [
        "{{ bos_token }}{% for m in messages %}\n {% if m.role %}\n U\n{% endif %}\n{% endfor %}",
        "{{ messages | tojson }} {{ messages[1].content | tojson(indent=2) }}",
        "{{ messages[0] | tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':')) }}",
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}x{% endfor %}",
        "{% generation %}{{ messages[0].role }}{% set y = 1 %}{% endgeneration %}{{ y }}",
        "{% if add_generation_prompt %}go{% endif %}{% if tools %}tools{% endif %}{{ documents }}",
        "{{ strftime_now('%Y') }}{% set ns = namespace(n=0) %}{% set ns.n = 2 %}{{ ns.n }}",
        "{{ messages[0].content }}{{ messages[1].content[1]['text'] }}",
        "{{ image_token }}{{ nothing }}",
    ],
)
def test_renders_as_transformers_does(source):
    special_tokens = {"bos_token": "<s>", "image_token": "<image>"}
    expected, _ = render_jinja_template(
        [MESSAGES], chat_template=source, add_generation_prompt=True, **special_tokens
    )
    assert [render(source, **special_tokens)] == expected


def test_templates_see_plain_data_only():
    class Camera:
        def __str__(self):
            raise AssertionError

    messages = [{"role": "user", "content": ({"image": Camera(), "n": 1.5},), "name": None}]
    assert render("{{ messages }}", messages) == (
        "[{'role': 'user', 'content': [{'image': '<Camera>', 'n': 1.5}]}]"
    )


def test_a_template_that_does_not_compile():
    with pytest.raises(CheckpointError) as error:
        render("{% if %}")
    assert str(error.value).startswith(f"{ORIGIN}: the chat template is no valid Jinja: ")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('no system turns') }}", "no system turns"),
        ("{{ messages[0].content + 1 }}", 'can only concatenate str (not "int") to str'),
        ("{{ messages.append(1) }}", "access to attribute 'append' of 'list' object is unsafe."),
        ("{{ raise_exception('') }}", "TemplateError"),
        ("{{ raise_exception('two\nlines') }}", "two lines"),
    ],
)
def test_a_template_that_refuses_a_prompt(source, reason):
    with pytest.raises(RequestError) as error:
        render(source)
    assert str(error.value) == (
        f"the chat template of {ORIGIN} does not take this prompt: {reason}"
    )
