"""Turn a calibration row into model inputs with the chat template and the processor; never cut through an image.

Every row is a batch of one. There is no padding, so that no padding token can reach a statistic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from quant_experts.calibration.images import decode
from quant_experts.calibration.processor import (
    PROCESSORS,
    has_processor,
    load_processor,
    load_tokenizer,
    why_no_videos,
)
from quant_experts.calibration.rows import Row, Video, texts_of
from quant_experts.calibration.sample import Sample, TooLong
from quant_experts.calibration.speech import open_speech_collator
from quant_experts.errors import InvalidCalibration, InvalidModel, InvalidSpec, one_line

MOST_TOKENS = 2048
"""Most tokens of one sample. A photograph at Qwen2-VL's default bound has 16384 tokens; beyond two thousand,
calibration takes more time and learns nothing new."""

REPLACED_BEFORE_EMBEDDING = ("gemma3",)
"""Model types that replace image tokens before they look up embeddings."""

TAKES_PIXELS_AS_THEY_ARE = ("kimi_k25",)
"""Model types whose tower does not bring pixels into its own dtype; callers of the model have to."""

LONGEST_QUESTION = 200
"""Characters of a question in the report."""

SMALLEST_SIDE = 56
"""Pixels. Images are not shrunk below this side to make a row fit."""


__all__ = ["MOST_TOKENS", "Collate", "Sample", "TooLong", "open_collator"]

Collate = Callable[[Row], Sample]


def open_collator(directory: Path, config: Any, *, dtype: torch.dtype | None = None) -> Collate:
    """The function that turns rows into samples for the model in ``directory``.

    ``dtype``: of audio features; by default the configuration's. Raises InvalidModel.
    """
    if config.model_type == "whisper":
        collate = open_speech_collator(directory, config, dtype=dtype or config.dtype or torch.float32)
    else:
        collate = _open_text_collator(directory, config)
    vocabulary = config.get_text_config().vocab_size
    return lambda row: _within(collate(row), vocabulary, config)


def open_prompts(directory: Path, config: Any, *, room: int) -> Collate:
    """The function that turns rows into the tokens before their last message, where the model goes on. ``room``: tokens
    that it is to generate, which are left free of the model's positions.

    Raises InvalidModel, and InvalidSpec for a model that does not reply with text or has no such room.
    """
    text_config = config.get_text_config()
    if config.model_type == "whisper":
        raise InvalidSpec("evaluation: a speech model's transcripts are not generated yet; leave evaluation out")
    if getattr(text_config, "max_position_embeddings", MOST_TOKENS) <= room:
        raise InvalidSpec(
            f"evaluation: max_new_tokens is {room}, and the model has {text_config.max_position_embeddings} positions "
            "for prompt and reply; give fewer"
        )
    collate = _open_text_collator(directory, config, room=room)
    vocabulary = text_config.vocab_size

    def prompt_of(row: Row) -> Sample:
        sample = _within(collate(replace(row, messages=row.messages[:-1])), vocabulary, config)
        return replace(sample, question=shortened(" ".join(" ".join(texts_of(row.messages[-2])).split())))

    return prompt_of


def _within(sample: Sample, vocabulary: int, config: Any) -> Sample:
    """Returns the sample. Raises InvalidCalibration for a token without a row in the model's embedding."""
    ids = sample.input_ids[0]
    if config.model_type in REPLACED_BEFORE_EMBEDDING:
        ids = ids[~sample.vision]
    beyond = ids[ids >= vocabulary]
    if len(beyond):
        raise InvalidCalibration(
            f"calibration row {sample.row}: token {int(beyond[0])} is beyond the model's {vocabulary} embeddings; "
            "tokens were added to the tokenizer and the model was not resized (resize_token_embeddings), or the "
            "tokenizer is another model's"
        )
    return sample


def _open_text_collator(directory: Path, config: Any, *, room: int | None = None) -> Collate:
    """``room``: of prompts, the tokens that are generated; None: the rows are whole conversations."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", MOST_TOKENS)
    most, is_prompt = min(MOST_TOKENS, positions - (room or 0)), room is not None
    takes_images = hasattr(config, "vision_config")
    if takes_images and has_processor(directory):
        processor = load_processor(directory, config)
        if not processor.chat_template:
            raise InvalidModel(f"{directory.name} has no chat template; give the instruction-tuned model")
        placeholders = _placeholders(config, processor)

        def collate(row: Row) -> Sample:
            sample = _with_images(row, processor, placeholders, most, is_prompt=is_prompt)
            return _in_dtype(sample, config.dtype) if config.model_type in TAKES_PIXELS_AS_THEY_ARE else sample

        return collate
    tokenizer = load_tokenizer(directory)
    reason = f"the model's directory has no {PROCESSORS[0]}" if takes_images else f"{config.model_type} takes text only"
    return lambda row: _text_only(row, tokenizer, reason, most, is_prompt=is_prompt)


def _in_dtype(sample: Sample, dtype: torch.dtype | None) -> Sample:
    """With its pixels in ``dtype``."""
    pixels = {name: each.to(dtype) for name, each in sample.inputs.items() if name.startswith("pixel_values")}
    return replace(sample, inputs={**sample.inputs, **pixels})


def _with_images(row: Row, processor: Any, placeholders: Tensor, most: int, *, is_prompt: bool) -> Sample:
    """``placeholders``: token ids, that of images first. Raises TooLong, or InvalidCalibration naming the row."""
    if row.audio:
        raise InvalidCalibration(f"calibration row {row.number}: it has audio, but this model takes images and text")
    if row.videos and (reason := why_no_videos(processor)) is not None:
        raise InvalidCalibration(f"calibration row {row.number}: it has a video, but {reason}")
    text = _render(row, processor, list(row.messages), answer_follows=is_prompt)
    _check_placeholders(row, text, processor, int(placeholders[0]))
    images = [decode(data, f"calibration row {row.number}, image {i}") for i, data in enumerate(row.images, start=1)]
    videos = [_frames(video, f"calibration row {row.number}, video {i}") for i, video in enumerate(row.videos, start=1)]
    options: dict[str, Any] = {}
    is_smaller = False
    while True:
        inputs = _process(row, processor, text, images, videos, options)
        vision = torch.isin(inputs["input_ids"][0], placeholders)
        tokens, vision_tokens = vision.shape[0], int(vision.sum())
        if tokens <= most:
            sample = Sample(row.number, inputs, vision, is_smaller)
            return sample if is_prompt else _with_reply(sample, row, text, processor, list(row.messages))
        if not vision_tokens or tokens - vision_tokens >= most:
            raise TooLong(f"{tokens} tokens, at most {most}")
        if hasattr(processor.image_processor, "max_patches"):
            if videos:
                raise TooLong(f"{tokens} tokens, at most {most}; its frames take as many however small they are")
            options["max_patches"] = _tiles(processor, images, most - (tokens - vision_tokens), options)
        else:
            # Tokens grow with the area; aim a little below the limit, because sides are rounded to whole patches.
            share = 0.95 * math.sqrt((most - tokens + vision_tokens) / vision_tokens)
            images, videos = _shrunk(images, share), [_shrunk(frames, share) for frames in videos]
        is_smaller = True


def _frames(video: Video, where: str) -> list[Image.Image]:
    """Raises InvalidCalibration for a frame that cannot be decoded, or is of another size than the first."""
    frames = [decode(data, f"{where}, frame {i}") for i, data in enumerate(video.frames, start=1)]
    other = next((i for i, frame in enumerate(frames, start=1) if frame.size != frames[0].size), None)
    if other is not None:
        sizes = " and ".join(f"{frame.width}x{frame.height}" for frame in (frames[0], frames[other - 1]))
        raise InvalidCalibration(f"{where}: frames 1 and {other} are {sizes}; all frames of a video have one size")
    return frames


def _placeholders(config: Any, processor: Any) -> Tensor:
    """Token ids that stand for pieces of images and videos, that of images first. InternVL's videos have the same."""
    image = getattr(config, "image_token_id", None)
    if image is None:  # Chameleon's is in its vocabulary alone
        image = processor.image_token_id
    names = ("video_token_id", "video_token_index")
    videos = (getattr(config, name, None) for name in names)
    return torch.tensor([image, *(token for token in videos if isinstance(token, int))])


def _tiles(processor: Any, images: list[Image.Image], room: int, options: dict[str, Any]) -> int:
    """Tiles per image that fit into ``room`` tokens. Every tile costs the same, however small the image is."""
    most: int = room // (processor.image_seq_length * len(images))
    if most < 1 or "max_patches" in options:
        raise TooLong(f"its images take {processor.image_seq_length} tokens each, {room} are left")
    return max(1, most - 1)  # more than one tile adds a thumbnail of the whole image


def _shrunk(images: list[Image.Image], share: float) -> list[Image.Image]:
    smaller = []
    for image in images:
        width, height = int(image.width * share), int(image.height * share)
        if min(width, height) < SMALLEST_SIDE:
            raise TooLong(f"its images would have to be smaller than {SMALLEST_SIDE} pixels")
        smaller.append(image.resize((width, height), Image.Resampling.BICUBIC))
    return smaller


def _process(
    row: Row,
    processor: Any,
    text: str,
    images: list[Image.Image],
    videos: list[list[Image.Image]],
    options: dict[str, Any],
) -> dict[str, Tensor]:
    if videos:
        # The frames that were given are those that are shown. Left to itself, a processor of transformers may take some
        # of them, for a rate that it assumes.
        options = {**options, "do_sample_frames": False, "video_metadata": [_metadata(video) for video in row.videos]}
        options["videos"] = [np.stack([np.asarray(frame) for frame in frames]) for frames in videos]
    bos = processor.tokenizer.bos_token
    if bos and text.startswith(bos):
        options = {**options, "add_special_tokens": False}  # the template has written it
    try:
        # A list per row: some families distinguish several images of one row from one image of several rows.
        return dict(processor(text=[text], images=[images] if images else None, return_tensors="pt", **options))
    except (ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        raise InvalidCalibration(
            f"calibration row {row.number}: the model's processor refuses it: {one_line(error)}"
        ) from error


def _metadata(video: Video) -> dict[str, Any]:
    """``total_num_frames``, of the frames that are there, so that their rate is that of the video."""
    count = len(video.frames)
    return {"total_num_frames": count, "fps": video.fps, "frames_indices": list(range(count))}


def _check_placeholders(row: Row, text: str, processor: Any, image_token: int) -> None:
    """Raises InvalidCalibration unless the text holds one placeholder per image and video, which the processor expands
    to tokens."""
    placeholder = processor.image_token
    media = [("image", placeholder, len(row.images))]
    if (mark := getattr(processor, "video_token", None)) is not None:
        media.append(("video", mark, len(row.videos)))
    for kind, mark, expected in media:
        if (count := text.count(mark)) != expected:
            raise InvalidCalibration(
                f"calibration row {row.number}: {count} {kind} tokens for {expected} of its {kind}s; "
                f"its text must not contain {mark!r}"
            )
    token = processor.tokenizer.convert_ids_to_tokens(image_token)
    if token != placeholder and token in text:
        raise InvalidCalibration(f"calibration row {row.number}: its text must not contain {token!r}")


def _text_only(row: Row, tokenizer: Any, reason: str, most: int, *, is_prompt: bool) -> Sample:
    """``reason``: why a row with an image or audio is refused."""
    if row.images or row.videos or row.audio:
        what = "an image" if row.images else "a video" if row.videos else "audio"
        raise InvalidCalibration(f"calibration row {row.number}: it has {what}, but {reason}")
    messages = [
        {**message, "content": None if message["content"] is None else "".join(texts_of(message))}
        for message in row.messages
    ]
    # A base model has no chat template; its rows are running text.
    is_chat = bool(tokenizer.chat_template)
    if is_chat:
        text = _render(row, tokenizer, messages, answer_follows=is_prompt)
    else:
        text = "\n".join(message["content"] or "" for message in messages) + ("\n" if is_prompt else "")
    # The template has written the special tokens; added again, the model would see two beginnings.
    encoding = tokenizer([text], return_tensors="pt", return_token_type_ids=False, add_special_tokens=not is_chat)
    inputs = dict(encoding)
    tokens = inputs["input_ids"].shape[1]
    if tokens > most:
        raise TooLong(f"{tokens} tokens, at most {most}")
    sample = Sample(row.number, inputs, torch.zeros(tokens, dtype=torch.bool), False)
    return _with_reply(sample, row, text, tokenizer, messages) if is_chat and not is_prompt else sample


def _with_reply(sample: Sample, row: Row, text: str, holder: Any, messages: list[dict[str, Any]]) -> Sample:
    """The sample with question and reply length, if its tokens before the last answer are those of the conversation
    without it. ``holder``: the processor or tokenizer that has the template."""
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        return sample
    try:
        before = _render(row, holder, messages[:-1], answer_follows=True)
    except InvalidCalibration:  # a template may refuse a conversation without its end
        return sample
    tokenizer = getattr(holder, "tokenizer", holder)
    answer = text.removeprefix(before)
    # Some templates write a prefix before an answer even without a generation prompt: skip it.
    answer = answer[max(0, answer.find("".join(texts_of(messages[-1])).strip())) :]
    reply = tokenizer(answer, add_special_tokens=False)["input_ids"]
    if not reply or not text.startswith(before) or sample.input_ids[0, -len(reply) :].tolist() != reply:
        return sample
    question = " ".join(" ".join(texts_of(messages[-2])).split())
    return replace(sample, question=shortened(question), reply=len(reply))


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST_QUESTION else f"{text[: LONGEST_QUESTION - 1]}…"


def _render(row: Row, template_holder: Any, messages: list[dict[str, Any]], *, answer_follows: bool = False) -> str:
    try:
        return str(
            template_holder.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=answer_follows, **row.template
            )
        )
    except (jinja2.TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidCalibration(
            f"calibration row {row.number}: the model's chat template refuses it: {one_line(error)}"
        ) from error
