"""How many tokens each row of a dataset becomes, text and images apart: by the model's own files, or by the rule of
thumb where there is no model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from quant_experts.planning.counting import Counting, TextTokens
from quant_experts.planning.families import text_config
from quant_experts.planning.image_tokens import Size, image_tokens
from quant_experts.planning.text_files import TextFiles
from quant_experts.planning.turns import CHATML, SHOWN, Turns, turns_of
from quant_experts.planning.video_tokens import Clip, shown

MOST_TOKENS = 2048
"""Of one row; the library makes images smaller, or skips the row, beyond that."""
CHARACTERS_PER_TOKEN = 3.6
TOKENS_PER_MESSAGE = 5
"""Role, turn marks."""
MOST_CHARACTERS = 20_000_000
"""That are counted; some ten seconds of work. Rows after that are left out."""
SPEECH_TOKENS = {True: 5, False: 3}
"""Around a transcript: start, language and task of a multilingual model, no timestamps, end."""
SPEECH_LIMIT = 448

TurnsBy = Literal["template", "assumed", "none"]


@dataclass(frozen=True)
class RowTokens:
    """``largest``: of the ids of its text's tokens; -1 where they are not known."""

    text: int
    image: int
    largest: int = -1

    @property
    def total(self) -> int:
        return self.text + self.image


@dataclass(frozen=True)
class TokenCounts:
    """``rows``: in the order in which they came, without those that were left out. ``counted``: their text, by the
    model's tokenizer; else it is estimated. ``exact_images``: by the model's processor. ``turns_by``: what is known of
    the chat template: its style; nothing, so that a few tokens are assumed for every message; or that there is none.
    ``limit``: tokens that the library takes of a row."""

    rows: list[RowTokens]
    counted: bool
    exact_images: bool
    turns_by: TurnsBy
    limit: int

    @property
    def over(self) -> int:
        """Rows that are longer than the limit."""
        return sum(row.total > self.limit for row in self.rows)


class Counts(Protocol):
    """As ``planning.counting.Counting``."""

    def add(self, text: str, *, special: bool) -> None: ...

    def finish(self) -> list[TextTokens]: ...

    def __enter__(self) -> Counts: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...


class RowCounting:
    """Rows go in one by one; ``finish`` says what they make.

    >>> with RowCounting(files) as counting:
    ...     counting.add([{"role": "user", "content": "Which colour?"}], [])
    ...     counted = counting.finish()
    """

    def __init__(
        self, files: TextFiles | None, *, seconds: int = 30, counting: Callable[..., Counts] = Counting
    ) -> None:
        """``files``: of the model, None where there is none; ``seconds``: of the CPU; ``counting``: what counts."""
        self._files = files
        self._turns = _turns(files) if files is not None else None
        self._images: list[int] = []
        self._texts: list[int] = []
        self._more: list[int] = []
        self._characters = 0
        self._stack = ExitStack()
        self._counts: Counts | None = None
        if files is not None and files.tokenizer is not None:
            self._counts = self._stack.enter_context(counting(files.tokenizer, seconds=seconds))

    def add(self, messages: Sequence[Any], sizes: Sequence[Size], clips: Sequence[Clip] = ()) -> None:
        """``sizes``: of the row's images, in pixels; ``clips``: its videos."""
        videos = [shown(clip, *self._processor) for clip in clips]
        texts = iter(video.text for video in videos)
        messages = [_with_shown(message, texts) for message in messages if isinstance(message, dict)]
        text = self._turns.render(messages) if self._turns is not None else ""
        self._characters += len(text)
        if self._characters > MOST_CHARACTERS:
            return
        self._images.append(sum(image_tokens(sizes, *self._processor)) + sum(video.tokens for video in videos))
        if self._counts is not None and self._turns is not None:
            # What was rendered has one token for each image and each run of a video's already.
            marks = sum(map(_images_in, messages)) if self._turns.image else 0
            marks += sum(video.runs for video in videos)
            self._more.append((TOKENS_PER_MESSAGE * len(messages) if self._turns_by == "assumed" else 0) - marks)
            self._add_text(text, messages)
        else:
            self._texts.append(estimated_text(messages))

    def finish(self) -> TokenCounts:
        """Raises Unreadable naming the file of the model that cannot be used."""
        texts = [TextTokens(text, -1) for text in self._texts]
        if self._counts is not None:
            both = zip(self._counts.finish(), self._more, strict=True)
            texts = [TextTokens(max(0, text.tokens + more), text.largest) for text, more in both]
        images = zip(texts, self._images, strict=True)
        return TokenCounts(
            rows=[RowTokens(text.tokens, image, text.largest) for text, image in images],
            counted=self._counts is not None,
            exact_images=self._files is not None,
            turns_by=self._turns_by,
            limit=limit_of(self._files),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, at)

    @property
    def _turns_by(self) -> TurnsBy:
        if self._files is None or self._turns is None:
            return "assumed"
        if self._is_speech or self._turns.known:
            return "template"
        return "none" if self._files.template is None else "assumed"

    @property
    def _is_speech(self) -> bool:
        return self._files is not None and self._files.model_type == "whisper"

    @property
    def _processor(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """config.json and the processor's settings."""
        if self._files is None:
            return {"model_type": "qwen2_vl", "vision_config": {}}, {}
        return self._files.config, self._files.processor

    def _add_text(self, text: str, messages: Sequence[Mapping[str, Any]]) -> None:
        assert self._counts is not None
        assert self._files is not None
        assert self._turns is not None
        if self._is_speech:
            transcript = " ".join(_text(message).strip() for message in messages if message.get("role") == "assistant")
            self._counts.add(f" {transcript}", special=False)
            self._more[-1] = SPEECH_TOKENS[self._files.multilingual]
        else:
            self._counts.add(text, special=self._turns.special)


def limit_of(files: TextFiles | None) -> int:
    """Tokens of a row at most, as the library takes them."""
    if files is None:
        return MOST_TOKENS
    if files.model_type == "whisper":
        return _natural(files.config, "max_target_positions", SPEECH_LIMIT)
    return min(MOST_TOKENS, _natural(text_config(files.config), "max_position_embeddings", MOST_TOKENS))


def estimated_text(messages: Sequence[Any]) -> int:
    return round(sum(TOKENS_PER_MESSAGE + len(_text(message)) / CHARACTERS_PER_TOKEN for message in messages))


def _turns(files: TextFiles) -> Turns:
    template = files.template
    if files.model_type == "internvl_chat":  # the library gives these a template of its own
        turn = CHATML if files.config.get("template") == "internvl2_5" else CHATML.removesuffix("\n")
        template = f"<IMG_CONTEXT>\n {turn}"
    return turns_of(template, bos=files.bos, model_type=files.model_type, vision=files.vision)


def _with_shown(message: dict[str, Any], texts: Iterator[str]) -> dict[str, Any]:
    """The message with what is shown in the place of its videos."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    is_video = [isinstance(part, dict) and part.get("type") == "video" for part in content]
    if not any(is_video):
        return message
    parts = zip(content, is_video, strict=True)
    return {
        **message,
        "content": [{"type": SHOWN, "text": next(texts, "")} if video else part for part, video in parts],
    }


def _text(message: Any) -> str:
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return " ".join(str(part.get("text") or "") for part in parts if isinstance(part, dict))


def _images_in(message: Mapping[str, Any]) -> int:
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    return sum(isinstance(part, dict) and part.get("type") in ("image", "image_url") for part in parts)


def _natural(part: Mapping[str, Any], name: str, otherwise: int) -> int:
    value = part.get(name)
    return value if type(value) is int and value > 0 else otherwise
