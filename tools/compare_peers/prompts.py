"""Prompts as all contenders get them: one template a model, with each one's mark for a picture."""

from __future__ import annotations

from dataclasses import dataclass

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """How a model wants its prompt.

    Attributes:
        before: stands before a picture's tokens.
        mark: the token that stands for a picture, or for each of its visual tokens.
        after: stands behind them.
    """

    before: str
    mark: str
    after: str

    def render(self, question: str, picture: str) -> str:
        """Return the prompt of one question about one picture, which is written ``picture``."""
        return (
            f"{SYSTEM}<|im_start|>user\n{self.before}{picture}{self.after}{question}<|im_end|>\n"
            f"<|im_start|>assistant\n"
        )

    @property
    def jinja(self) -> str:
        """The chat template that renders the same."""
        return (
            "{{ '" + SYSTEM.replace("\n", "\\n") + "' }}{% for message in messages %}"
            "{{ '<|im_start|>' + message['role'] + '\\n' }}"
            "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
            "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
            "{{ '" + f"{self.before}{self.mark}{self.after}".replace("\n", "\\n") + "' }}"
            "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
            "{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
        )


TEMPLATES = {
    "qwen2_5_vl": Template(
        before="<|vision_start|>", mark="<|image_pad|>", after="<|vision_end|>"
    ),
    "llava": Template(before="", mark="<image>", after="\n"),
}
