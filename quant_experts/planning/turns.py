"""What a chat template writes around the texts of a row, told from the words in it; the template is never run.

A template is a program from a repository that anybody may have written, and this code runs where credentials are. The
styles below are those of nearly all instruction-tuned models; of another template nothing is known but its existence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LONGEST_TEMPLATE = 200_000
DEFAULT_SYSTEM = re.compile(r"<\|im_start\|>system\\n([^'\"{}<]{1,2000})<\|im_end\|>")
"""What ChatML templates put first where a row has no system message."""
IMAGE_MARKS = {
    "qwen": ("<|image_pad|>", "<|vision_start|><|image_pad|><|vision_end|>"),
    "internvl": ("<IMG_CONTEXT>", "<img><IMG_CONTEXT></img>"),
    "gemma3": ("<start_of_image>", "\n\n<start_of_image><image_soft_token><end_of_image>\n\n"),
    "llava": ("<image>", "<image>"),
}
"""By the beginning of the model type: the placeholder in the template, and what the processor makes of it, with one of
the image's tokens in place of all."""
VIDEO_MARKS = {
    "qwen": ("<|video_pad|>", "<|vision_start|>{}<|vision_end|>"),
    "internvl": ("<video>", "{}"),
    "llava": ("<video>", "{}"),
}
"""The same for videos; what the processor makes of their placeholder differs from video to video."""
SHOWN = "shown"
"""Type of a part whose ``text`` stands in the place of a video's placeholder."""


@dataclass(frozen=True)
class Style:
    """``sign``: text that only templates of this style hold. ``turn``: a message with ``{role}`` and ``{text}``;
    ``turns``: of roles that differ. ``trims``: texts lose the white space around them. ``folds``: a system message
    begins the first user's turn."""

    sign: str
    turn: str
    turns: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    trims: bool = False
    folds: bool = False


CHATML = "<|im_start|>{role}\n{text}<|im_end|>\n"
STYLES = (
    Style("<|im_start|>", CHATML),
    Style(
        "<start_of_turn>",
        "<start_of_turn>{role}\n{text}<end_of_turn>\n",
        names={"assistant": "model"},
        trims=True,
        folds=True,
    ),
    Style("<|start_header_id|>", "<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>", trims=True),
    Style("<|end|>", "<|{role}|>\n{text}<|end|>\n"),
    Style("[INST]", "[INST] {text} [/INST]", turns={"assistant": " {text}</s>"}, folds=True),
    Style(
        "ASSISTANT:", "{role}: {text} ", turns={"system": "{text} "}, names={"user": "USER", "assistant": "ASSISTANT"}
    ),
)


@dataclass(frozen=True)
class Turns:
    """How a row's messages become one text. ``known``: the template has a style that is known; else only the texts are
    there. ``begins``: with what every text starts; ``special``: the tokenizer adds its special tokens."""

    style: Style | None
    begins: str
    system: str
    image: str
    special: bool
    video: str = "{}"
    """What the template writes for a video, around what the processor puts in the place of its placeholder."""

    @property
    def known(self) -> bool:
        return self.style is not None

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Every image as one token between those that its processor writes around it."""
        if self.style is None:
            return "\n".join(self._content(message, lambda text: text) for message in messages)
        has_system = bool(messages) and messages[0].get("role") == "system"
        start = self.system if self.system and not has_system else ""
        system_text = ""
        if has_system and self.style.folds and len(messages) > 1:
            system_text, messages = self._content(messages[0], lambda text: text) + "\n\n", messages[1:]
        turns = (self._turn(self.style, each, "" if place else system_text) for place, each in enumerate(messages))
        return self.begins + start + "".join(turns)

    def _turn(self, style: Style, message: Mapping[str, Any], before: str) -> str:
        role = str(message.get("role"))
        text = before + self._content(message, str.strip if style.trims else lambda text: text)
        shape = style.turns.get(role, style.turn)
        return shape.replace("{role}", style.names.get(role, role), 1).replace("{text}", text, 1)

    def _content(self, message: Mapping[str, Any], clean: Callable[[str], str]) -> str:
        content = message.get("content")
        if isinstance(content, str):
            return clean(content)
        return "".join(self._parts(content if isinstance(content, list) else [], clean))

    def _parts(self, parts: Sequence[Any], clean: Callable[[str], str]) -> Iterator[str]:
        for part in parts:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text":
                yield clean(str(part.get("text") or ""))
            elif kind in ("image", "image_url"):
                yield self.image
            elif kind == SHOWN:
                yield self.video.replace("{}", part["text"])


def turns_of(template: str | None, *, bos: str | None, model_type: str, vision: bool) -> Turns:
    """``bos``: the tokenizer's token for the beginning of a text, if it has one."""
    text = (template or "")[:LONGEST_TEMPLATE]
    style = next((style for style in STYLES if style.sign in text), None)
    if style is not None and style.turn == CHATML and not re.search(r"<\|im_end\|>['\"]?(\\n|\n| \+ '\\n')", text):
        style = Style(style.sign, CHATML.removesuffix("\n"))
    system = DEFAULT_SYSTEM.search(text) if style is not None else None
    writes_it = bool(bos) and style is not None and ("bos_token" in text or str(bos) in text)
    begins = str(bos) if writes_it else ""
    return Turns(
        style=style,
        begins=begins,
        system=system[0].replace("\\n", "\n") + "\n" if system else "",
        image=_mark(text, model_type, IMAGE_MARKS),
        video=_mark(text, model_type, VIDEO_MARKS) or "{}",
        # What the library does: text models by their template or by their tokenizer, the others by both but once.
        special=not begins if vision else template is None,
    )


def _mark(template: str, model_type: str, marks: Mapping[str, tuple[str, str]]) -> str:
    for kind, (placeholder, mark) in marks.items():
        if model_type.startswith(kind):
            match = re.search(re.escape(placeholder) + r"(<\|vision_end\|>)?(\\n|\n)", template)
            return mark + ("\n" if match else "")
    return ""
