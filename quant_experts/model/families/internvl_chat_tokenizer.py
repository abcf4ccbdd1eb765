"""The tokenizer of an original InternVL repository, from its data alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from quant_experts.errors import InvalidModel
from quant_experts.model.families.sentencepiece_file import build_tokenizer

CONTEXT = "<IMG_CONTEXT>"
IMAGE_TOKENS = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": CONTEXT}
VIDEO_TOKEN = {"video_token": "<video>"}
"""The native processor wants a placeholder for videos. It is replaced before the model could meet it."""


def native_tokenizer(directory: Path) -> Any:
    """From ``tokenizer.json``, ``vocab.json`` and ``merges.txt``, or ``tokenizer.model``, whichever is there first.

    Raises InvalidModel when there is none, or it lacks the tokens that stand for images.
    """
    settings = _json(directory / "tokenizer_config.json")
    special = {
        name: token
        for name in ("bos_token", "eos_token", "unk_token", "pad_token")
        if isinstance(token := _text(settings.get(name)), str)
    }
    tokens = _added(settings, _json(directory / "added_tokens.json"))
    try:
        if (directory / "tokenizer.json").is_file():
            backend = Tokenizer.from_file(str(directory / "tokenizer.json"))
        elif (directory / "vocab.json").is_file():
            backend = Qwen2Tokenizer.from_pretrained(directory, local_files_only=True).backend_tokenizer
        elif (directory / "tokenizer.model").is_file():
            first = special.get("bos_token") if settings.get("add_bos_token", True) else None
            backend = build_tokenizer(directory / "tokenizer.model", tokens, bos=first)
        else:
            raise InvalidModel(f"{directory.name} has no tokenizer.json, vocab.json or tokenizer.model")
        missing = [token for token in (*IMAGE_TOKENS.values(), "<|im_end|>") if backend.token_to_id(token) is None]
        if missing:
            raise InvalidModel(f"{directory.name}: its tokenizer has no token {missing[0]!r}")
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            padding_side="left",
            model_max_length=settings.get("model_max_length", 8192),
            extra_special_tokens={**IMAGE_TOKENS, **VIDEO_TOKEN},
            **special,
        )
    except InvalidModel:
        raise
    # The tokenizers library raises bare Exception for a broken file.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InvalidModel(f"{directory.name}: its tokenizer cannot be read: {reason}") from error
    return tokenizer


def _added(settings: dict[str, Any], older: dict[str, Any]) -> dict[int, str]:
    """id → text, from both places where repositories keep them."""
    try:
        newer = settings.get("added_tokens_decoder", {})
        tokens = {int(number): str(_text(token)) for number, token in newer.items()}
        return {**{int(number): token for token, number in older.items()}, **tokens}
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidModel(f"tokenizer_config.json: its added tokens cannot be read: {error}") from error


def _text(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidModel(f"{path.name} is not JSON: {error}") from error
    return content if isinstance(content, dict) else {}
