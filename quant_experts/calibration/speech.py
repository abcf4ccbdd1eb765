"""Turn a row of audio and its transcript into the inputs of a Whisper model.

The encoder always receives a window of the same length. Silence fills the rest of it, as when the model is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from quant_experts.calibration.audio import decode, resample
from quant_experts.calibration.processor import LOADING_ERRORS, load_tokenizer
from quant_experts.calibration.rows import Row, texts_of
from quant_experts.calibration.sample import Sample, TooLong
from quant_experts.errors import InvalidCalibration, InvalidModel, one_line

ASSUMED_LANGUAGE = "en"


def open_speech_collator(directory: Path, config: Any, *, dtype: torch.dtype) -> Callable[[Row], Sample]:
    """``dtype``: the model's; its features come in it. Raises InvalidModel when feature extractor or tokenizer are
    missing or do not fit the model."""
    tokenizer = load_tokenizer(directory)
    try:
        extractor = WhisperFeatureExtractor.from_pretrained(directory, local_files_only=True)
    except LOADING_ERRORS as error:
        raise InvalidModel(f"{directory.name}: its feature extractor cannot be loaded ({one_line(error)})") from error
    frames = 2 * config.max_source_positions  # the second convolution halves them
    if (extractor.nb_max_frames, extractor.feature_size) != (frames, config.num_mel_bins):
        raise InvalidModel(
            f"{directory.name}: its feature extractor makes {extractor.nb_max_frames} frames of "
            f"{extractor.feature_size} values, the model takes {frames} of {config.num_mel_bins}"
        )
    multilingual = _is_multilingual(directory)

    def collate(row: Row) -> Sample:
        """Raises TooLong, or InvalidCalibration naming the row."""
        features = _features(row, extractor).to(dtype)
        tokens = _tokens(row, tokenizer, config, multilingual=multilingual)
        inputs = {"input_features": features, "decoder_input_ids": tokens}
        return Sample(row.number, inputs, torch.zeros(tokens.shape[1], dtype=torch.bool), False)

    return collate


def _is_multilingual(directory: Path) -> bool:
    """Whether the generation configuration says so; Whisper's English-only models say that they are not."""
    try:
        settings = json.loads((directory / "generation_config.json").read_text(encoding="utf-8"))
        return bool(settings.get("is_multilingual", True))
    except (OSError, ValueError, AttributeError):
        return True


def _features(row: Row, extractor: Any) -> Tensor:
    """(1, mel bins, frames) float32."""
    if len(row.audio) != 1 or row.images:
        raise InvalidCalibration(
            f"calibration row {row.number}: {len(row.audio)} audio and {len(row.images)} image parts; a speech model "
            "takes one audio part and its transcript"
        )
    samples, rate = decode(row.audio[0], f"calibration row {row.number}, audio 1")
    seconds = len(samples) / rate
    if seconds > extractor.chunk_length:
        raise TooLong(f"{seconds:.1f} seconds of audio, at most {extractor.chunk_length}")
    samples = resample(samples, rate, extractor.sampling_rate)
    output = extractor(samples.numpy(), sampling_rate=extractor.sampling_rate, return_tensors="pt")
    features: Tensor = output["input_features"]
    return features


def _tokens(row: Row, tokenizer: Any, config: Any, *, multilingual: bool) -> Tensor:
    """(1, tokens) int64: the start tokens of a transcription, the transcript, the end token."""
    texts = [(message["role"], "".join(texts_of(message)).strip()) for message in row.messages]
    transcripts = [text for role, text in texts if role == "assistant" and text]
    if len(transcripts) != 1 or any(text for role, text in texts if role != "assistant"):
        raise InvalidCalibration(
            f"calibration row {row.number}: a speech model takes audio and its transcript, as the one text of the one "
            "assistant message; it takes no instructions"
        )
    begin = [tokenizer.convert_ids_to_tokens(config.decoder_start_token_id)]
    if multilingual:
        begin += [f"<|{_language(row)}|>", "<|transcribe|>"]
    begin.append("<|notimestamps|>")
    missing = [token for token in begin if token not in tokenizer.get_vocab()]
    if missing:
        raise InvalidCalibration(
            f"calibration row {row.number}: the model's tokenizer has no {missing[0]}; is this language one of its own?"
        )
    text = tokenizer(f" {transcripts[0]}", add_special_tokens=False)["input_ids"]
    if set(text) & set(tokenizer.all_special_ids):
        raise InvalidCalibration(
            f"calibration row {row.number}: its transcript must not contain the model's own tokens"
        )
    ids = [*tokenizer.convert_tokens_to_ids(begin), *text, config.eos_token_id]
    if len(ids) > config.max_target_positions:
        raise TooLong(f"{len(ids)} tokens, at most {config.max_target_positions}")
    return torch.tensor([ids])


def _language(row: Row) -> str:
    """The code of the language that the audio part names, by code or in English."""
    parts = [part for message in row.messages if isinstance(message["content"], list) for part in message["content"]]
    name = next((part["language"] for part in parts if "language" in part), ASSUMED_LANGUAGE).lower()
    return str(TO_LANGUAGE_CODE.get(name, name))
