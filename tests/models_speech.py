"""A tiny seeded Whisper, and calibration rows for it: tones as WAV files, and sentences as their transcripts."""

from __future__ import annotations

import base64
import io
import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedConfig, PreTrainedTokenizerFast, WhisperConfig, WhisperFeatureExtractor

SPEECH_FAMILIES = ("whisper",)
SECONDS, BINS = 2, 16
START = ("<|startoftranscript|>", "<|en|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>")
SENTENCES = ("The square is red.", "Which colour is the square?", "The digit at the top is seven.", "A board of nine.")


def speech_parts(
    text: dict[str, Any], tokenizer: PreTrainedTokenizerFast, directory: Path
) -> tuple[PreTrainedConfig, PreTrainedTokenizerFast]:
    """The model's configuration and tokenizer; writes the feature extractor's files into ``directory``."""
    named = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    named.add_special_tokens({"additional_special_tokens": list(START)})
    WhisperFeatureExtractor(feature_size=BINS, chunk_length=SECONDS).save_pretrained(directory)
    token = named.convert_tokens_to_ids
    width, layers = text["hidden_size"], text["num_hidden_layers"]
    config = WhisperConfig(
        vocab_size=len(named),
        num_mel_bins=BINS,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=text["intermediate_size"],
        decoder_ffn_dim=text["intermediate_size"],
        max_source_positions=SECONDS * 50,
        max_target_positions=64,
        decoder_start_token_id=token("<|startoftranscript|>"),
        bos_token_id=token("<|endoftext|>"),
        eos_token_id=token("<|endoftext|>"),
        pad_token_id=token("<|endoftext|>"),
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return config, named


def generation_settings(directory: Path) -> None:
    """What Whisper's own ``generate`` asks for: languages, tasks, and that there are several."""
    path = directory / "generation_config.json"
    settings = json.loads(path.read_text())
    vocabulary = json.loads((directory / "tokenizer.json").read_text())["added_tokens"]
    ids = {entry["content"]: entry["id"] for entry in vocabulary}
    settings.pop("_from_model_config")  # with it transformers would make the settings anew
    settings |= {
        "is_multilingual": True,
        "lang_to_id": {token: ids[token] for token in ("<|en|>", "<|de|>")},
        "task_to_id": {"transcribe": ids["<|transcribe|>"]},
        "no_timestamps_token_id": ids["<|notimestamps|>"],
    }
    path.write_text(json.dumps(settings))


def wav(*, seed: int = 0, seconds: float = 1.5, rate: int = 16_000, channels: int = 1, width: int = 2) -> bytes:
    """A chord with a little noise."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    tones = sum(np.sin(2 * np.pi * pitch * time) for pitch in random.uniform(100, 3000, 3)) / 4
    samples = np.stack([tones + 0.05 * random.standard_normal(len(time)) for _ in range(channels)], axis=1)
    whole = np.clip(samples * 2 ** (8 * width - 1), -(2 ** (8 * width - 1)), 2 ** (8 * width - 1) - 1).astype("<i8")
    pcm = (whole + 128).astype(np.uint8) if width == 1 else whole[..., None].view(np.uint8)[..., :width]
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(np.ascontiguousarray(pcm).tobytes())
    return out.getvalue()


def audio_uri(data: bytes) -> str:
    return "data:audio/wav;base64," + base64.b64encode(data).decode()


def audio_row(index: int, audio: Any = None, **part: Any) -> dict[str, Any]:
    source = audio if audio is not None else audio_uri(wav(seed=index))
    return {
        "messages": [
            {"role": "user", "content": [{"type": "audio", "audio": source, **part}]},
            {"role": "assistant", "content": SENTENCES[index % len(SENTENCES)]},
        ]
    }
