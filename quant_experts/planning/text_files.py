"""The few files of a repository that say how rows become tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from quant_experts.planning.counting import TOKENIZER
from quant_experts.planning.errors import Unreadable
from quant_experts.planning.headers import (
    CONFIG,
    IMAGE_PROCESSOR,
    PROCESSOR,
    VIDEO_PROCESSOR,
    json_object,
    processor_of,
)

SETTINGS, GENERATION = "tokenizer_config.json", "generation_config.json"
TEMPLATE, WRAPPED_TEMPLATE = "chat_template.jinja", "chat_template.json"
READ = frozenset(
    {
        CONFIG,
        PROCESSOR,
        IMAGE_PROCESSOR,
        VIDEO_PROCESSOR,
        TOKENIZER,
        SETTINGS,
        GENERATION,
        TEMPLATE,
        WRAPPED_TEMPLATE,
    }
)
"""All that ``gather`` reads."""
LARGEST_TOKENIZER = 64 << 20
"""Bytes. The largest that is known, of Gemma 3, has 33 MB."""


@dataclass(frozen=True)
class TextFiles:
    """``tokenizer``: tokenizer.json, None where the repository has none. ``template``: of its chats. ``bos``: the
    token that begins a text, if there is one. ``multilingual``: a speech model says which language it hears."""

    config: Mapping[str, Any]
    processor: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: bytes | None = None
    template: str | None = None
    bos: str | None = None
    multilingual: bool = True
    commit: str | None = None

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type"))

    @property
    def vision(self) -> bool:
        return "vision_config" in self.config


def gather(
    names: Collection[str],
    *,
    read_whole: Callable[[str], bytes],
    read_tokenizer: Callable[[str], bytes],
    commit: str | None = None,
) -> TextFiles:
    """``read_whole``, ``read_tokenizer``: the bytes of a file, at most ``LARGEST_JSON`` and ``LARGEST_TOKENIZER``.

    Raises Unreadable naming the file and what is wrong with it.
    """
    if CONFIG not in names:
        raise Unreadable("invalid_model", "the model has no config.json; give a model as a hub repository has it")

    def read(name: str) -> dict[str, Any]:
        return json_object(name, read_whole(name)) if name in names else {}

    settings = read(SETTINGS)
    return TextFiles(
        config=read(CONFIG),
        processor=processor_of(names, read_whole),
        tokenizer=read_tokenizer(TOKENIZER) if TOKENIZER in names else None,
        template=_template(names, read, read_whole, settings),
        bos=_token(settings.get("bos_token")),
        multilingual=read(GENERATION).get("is_multilingual", True) is not False,
        commit=commit,
    )


def _template(
    names: Collection[str],
    read_json: Callable[[str], dict[str, Any]],
    read_whole: Callable[[str], bytes],
    settings: Mapping[str, Any],
) -> str | None:
    """From where the three generations of repositories keep it."""
    if TEMPLATE in names:
        return read_whole(TEMPLATE).decode("utf-8", errors="replace")
    templates = read_json(WRAPPED_TEMPLATE).get("chat_template", settings.get("chat_template"))
    if isinstance(templates, list):  # several, each with a name
        entries = [each for each in templates if isinstance(each, dict)]
        templates = next((each.get("template") for each in entries if each.get("name") == "default"), None)
    return templates if isinstance(templates, str) else None


def _token(token: Any) -> str | None:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) and token else None
