"""A loaded model and what was said so far; each reply is streamed as it is generated."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer

from quant_experts.calibration.images import decode
from quant_experts.calibration.processor import has_processor, load_processor, load_tokenizer
from quant_experts.errors import InvalidModel, InvalidSpec

SPEECH = "input_features"
OnText = Callable[[str], None]


@dataclass(frozen=True)
class Reply:
    """``tokens``: generated. ``seconds``: with the time that reading the question took. ``complete``: the model ended
    it; False when it was stopped or had as many tokens as it may."""

    text: str
    tokens: int
    seconds: float
    complete: bool


@dataclass
class Conversation:
    """``reader``: the model's processor, or the tokenizer of a model of text. ``messages``: in the chat convention."""

    model: Any
    reader: Any
    takes_images: bool
    messages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def has_template(self) -> bool:
        return bool(getattr(self.reader, "chat_template", None))

    def read_image(self, path: Path) -> Image.Image:
        """Raises InvalidSpec when the model takes no images, InvalidCalibration for a file that is none."""
        if not (self.takes_images and self.has_template):
            why = "has no chat template" if self.takes_images else "takes text alone"
            raise InvalidSpec(f"{type(self.model).__name__} {why}: leave the images out")
        return decode(path.read_bytes(), str(path))

    def clear(self) -> None:
        self.messages = []

    def ask(
        self,
        text: str,
        *,
        images: Sequence[Path] = (),
        most_tokens: int = 512,
        greedy: bool = False,
        on_text: OnText = lambda piece: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Reply:
        """The reply, given to ``on_text`` in pieces as it comes. A model without a chat template goes on with ``text``.

        ``greedy``: the likeliest token each time, whatever the model's generation_config.json says.
        Raises InvalidSpec for text that was not UTF-8, and as ``read_image``.
        """
        if not text.isascii() and any("\ud800" <= each <= "\udfff" for each in text):
            raise InvalidSpec("the question is not UTF-8")
        pictures = [self.read_image(path) for path in images]
        began = time.monotonic()
        messages = [*self.messages, {"role": "user", "content": self._content(text, pictures)}]
        inputs = self._inputs(messages) if self.has_template else self._text_inputs(text)
        length = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            tokens = self.model.generate(
                **inputs,
                max_new_tokens=most_tokens,
                streamer=_Pieces(getattr(self.reader, "tokenizer", self.reader), on_text),
                stopping_criteria=StoppingCriteriaList([_Asked(should_stop)]),
                **({"do_sample": False, "num_beams": 1} if greedy else {}),
            )[0, length:]
        reply = self.reader.decode(tokens, skip_special_tokens=True)
        if self.has_template:
            self.messages = [*messages, {"role": "assistant", "content": self._content(reply, [])}]
        complete = bool(len(tokens)) and int(tokens[-1]) in _ends(self.model.generation_config)
        return Reply(reply, len(tokens), time.monotonic() - began, complete)

    def _inputs(self, messages: list[dict[str, Any]]) -> Any:
        inputs = self.reader.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        return inputs.to(self.model.device, self.model.dtype) if self.takes_images else inputs.to(self.model.device)

    def _text_inputs(self, text: str) -> Any:
        inputs = self.reader(text=text, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        return inputs.to(self.model.device)

    def _content(self, text: str, images: list[Image.Image]) -> Any:
        if not self.takes_images:
            return text
        return [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]


def open_conversation(directory: Path, *, device: str = "cpu") -> Conversation:
    """With the model of ``directory``, a checkpoint or the model that it was made of, on ``device``.

    Raises InvalidModel when it cannot be loaded or does not speak.
    """
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        name = next(iter(config.get("auto_map") or config["architectures"]))
        model = getattr(transformers, name).from_pretrained(directory, dtype="auto", local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError) as error:
        raise InvalidModel(f"{directory}: it cannot be loaded: {error}") from error
    if model.main_input_name == SPEECH or not model.can_generate():
        raise InvalidModel(f"{directory}: {type(model).__name__} does not answer text")
    takes_images = "vision_config" in config and has_processor(directory)
    reader = load_processor(directory, model.config) if takes_images else load_tokenizer(directory)
    return Conversation(model.to(device).eval(), reader, takes_images)


class _Pieces(TextStreamer):  # type: ignore[misc]  # transformers has no types
    """Whole words as they are generated, without the question."""

    def __init__(self, tokenizer: Any, on_text: OnText) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._on_text(text)


class _Asked(StoppingCriteria):  # type: ignore[misc]
    """Ends a reply when the user asks for it."""

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._should_stop(), device=input_ids.device)


def _ends(config: Any) -> set[int]:
    """Tokens that end a reply."""
    ends = config.eos_token_id
    return set(ends if isinstance(ends, list) else [ends])
