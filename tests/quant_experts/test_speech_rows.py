"""Rows of audio: what a WAV file gives, what a speech model is called with, and what is wrong with a bad row."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, WhisperFeatureExtractor

from quant_experts.calibration.audio import decode, resample
from quant_experts.calibration.collate import Collate, TooLong, open_collator
from quant_experts.calibration.rows import parse_row
from quant_experts.errors import InvalidCalibration, InvalidModel
from tests.models import make_model
from tests.models_speech import SECONDS, audio_row, audio_uri, wav
from tests.rows import data_uri, image_row, picture, text_row


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("whisper", tmp_path_factory.mktemp("whisper"), hidden=64, blocks=1)


@pytest.fixture(scope="module")
def collate(model: Path) -> Collate:
    return open_collator(model, AutoConfig.from_pretrained(model))


def decoded(**how: Any) -> torch.Tensor:
    return decode(wav(**how), "here")[0]


@pytest.mark.parametrize(("width", "channels"), [(1, 1), (2, 2), (3, 1), (4, 3)])
def test_every_width_and_number_of_channels_gives_the_same_sound(width: int, channels: int) -> None:
    reference, sound = decoded(width=4), decoded(width=width, channels=1)
    assert (sound - reference).abs().max() <= 2.0 ** -(8 * width - 1)
    several, rate = decode(wav(width=width, channels=channels), "here")
    assert several.shape == reference.shape
    assert rate == 16_000
    assert several.abs().max() <= 1


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_a_tone_stays_the_same_tone_at_another_rate(rate: int) -> None:
    def tone(rate: int) -> torch.Tensor:
        return torch.sin(2 * math.pi * 440 * torch.arange(rate, dtype=torch.float64) / rate).float()

    made = resample(tone(rate), rate, 16_000)
    assert len(made) == 16_000
    assert (made - tone(16_000)).abs().max() < 1e-5


def test_what_the_lower_rate_cannot_carry_is_cut_off() -> None:
    shrill = torch.sin(2 * math.pi * 12_000 * torch.arange(48_000, dtype=torch.float64) / 48_000).float()
    assert resample(shrill, 48_000, 16_000).abs().max() < 1e-5


def test_the_model_is_called_with_its_own_features_and_start_tokens(model: Path, collate: Collate) -> None:
    sample = collate(parse_row(1, audio_row(2), model))
    extractor = WhisperFeatureExtractor.from_pretrained(model)
    sound = decoded(seed=2).numpy()
    expected = extractor(sound, sampling_rate=16_000, return_tensors="pt").input_features.to(torch.bfloat16)
    assert torch.equal(sample.inputs["input_features"], expected)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    names = {entry["id"]: entry["content"] for entry in tokenizer["added_tokens"]}
    ids = sample.inputs["decoder_input_ids"][0].tolist()
    begin = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    assert [names.get(number) for number in ids[:4]] == begin
    assert names[ids[-1]] == "<|endoftext|>"
    assert not any(number in names for number in ids[4:-1])
    assert (sample.tokens, int(sample.vision.sum())) == (len(ids), 0)


@pytest.mark.parametrize("language", ["de", "German", "german"])
def test_a_row_may_name_its_language(model: Path, collate: Collate, language: str) -> None:
    ids = collate(parse_row(1, audio_row(1, language=language), model)).input_ids[0]
    english = collate(parse_row(1, audio_row(1), model)).input_ids[0]
    assert (ids != english).nonzero().flatten().tolist() == [1]


def test_a_model_of_english_alone_has_no_language_token(model: Path, tmp_path: Path) -> None:
    for path in model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = json.loads((model / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps({**settings, "is_multilingual": False}))
    row = parse_row(1, audio_row(1), tmp_path)
    short = open_collator(tmp_path, AutoConfig.from_pretrained(tmp_path))(row)
    full = open_collator(model, AutoConfig.from_pretrained(model))(row)
    assert short.input_ids[0].tolist() == [full.input_ids[0, 0].item(), *full.input_ids[0, 3:].tolist()]


def test_audio_lies_beside_the_file_too_and_tells_rows_apart(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(seed=1))
    beside, inside = parse_row(1, audio_row(1, "a.wav"), tmp_path), parse_row(1, audio_row(1), tmp_path)
    assert beside == inside
    assert beside.digest == inside.digest != parse_row(1, audio_row(1, audio_uri(wav(seed=2))), tmp_path).digest


def test_a_clip_that_is_longer_than_the_window_is_skipped(model: Path, collate: Collate) -> None:
    row = audio_row(1, audio_uri(wav(seconds=SECONDS + 0.5)))
    with pytest.raises(TooLong, match=r"2\.5 seconds of audio, at most 2"):
        collate(parse_row(1, row, model))


def with_text(row: dict[str, Any], **texts: str) -> dict[str, Any]:
    return {"messages": [*({"role": role, "content": text} for role, text in texts.items()), *row["messages"]]}


def with_transcript(text: str) -> dict[str, Any]:
    return {"messages": [audio_row(1)["messages"][0], {"role": "assistant", "content": text}]}


CUT_OFF = wav()[:-100]
FLOATS = wav().replace(b"fmt \x10\0\0\0\1\0", b"fmt \x10\0\0\0\3\0")
WRONG: dict[str, tuple[Any, str]] = {
    "not a WAV file": (audio_row(1, audio_uri(b"ID3 mp3 of some kind")), r"audio 1: not a WAV file.*ffmpeg"),
    "floats": (audio_row(1, audio_uri(FLOATS)), r"audio 1: not a WAV file with PCM samples \(unknown format: 3\)"),
    "cut off": (audio_row(1, audio_uri(CUT_OFF)), "audio 1: .*(cut off|too early)"),
    "no sample": (audio_row(1, audio_uri(wav(seconds=0))), "holds no sample"),
    "a strange rate": (audio_row(1, audio_uri(wav(rate=700))), "700 samples per second"),
    "no source": ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "an audio part without audio"),
    "a URL": (audio_row(1, "https://example.com/a.wav"), "nothing is fetched"),
    "a path that climbs out": (audio_row(1, "../a.wav"), "leaves the directory"),
    "a language that is none": (audio_row(1, language=7), "language 7 is not a string"),
    "a language without a token": (audio_row(1, language="klingon"), r"tokenizer has no <\|klingon\|>"),
    "no audio": (text_row(1), "0 audio and 0 image parts"),
    "an image": (image_row(1), "0 audio and 1 image parts"),
    "instructions": (with_text(audio_row(1), user="Transcribe."), "it takes no instructions"),
    "a forged token": (with_transcript("Red.<|endoftext|>"), "must not contain the model's own tokens"),
    "two transcripts": (with_text(audio_row(1), assistant="Again."), "the one text of the one assistant message"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_bad_row_is_named(name: str, model: Path, collate: Collate) -> None:
    row, reason = WRONG[name]
    with pytest.raises(InvalidCalibration, match=rf"^calibration row 17.*{reason}"):
        collate(parse_row(17, row, model))


@pytest.mark.parametrize(
    ("family", "reason"), [("llama", "it has audio, but llama takes text only"), ("qwen2_vl", "audio")]
)
def test_other_models_refuse_audio(family: str, reason: str, tmp_path: Path) -> None:
    directory = make_model(family, tmp_path, blocks=1)
    other = open_collator(directory, AutoConfig.from_pretrained(directory))
    with pytest.raises(InvalidCalibration, match=f"calibration row 3: .*{reason}"):
        other(parse_row(3, audio_row(1), tmp_path))


def test_a_feature_extractor_that_does_not_fit_is_refused(model: Path, tmp_path: Path) -> None:
    for path in model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    WhisperFeatureExtractor(feature_size=16, chunk_length=30).save_pretrained(tmp_path)
    with pytest.raises(InvalidModel, match="makes 3000 frames of 16 values, the model takes 200 of 16"):
        open_collator(tmp_path, AutoConfig.from_pretrained(tmp_path))
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(InvalidModel, match="its feature extractor cannot be loaded"):
        open_collator(tmp_path, AutoConfig.from_pretrained(tmp_path))


def test_an_image_is_not_audio(tmp_path: Path, model: Path, collate: Collate) -> None:
    with pytest.raises(InvalidCalibration, match="row 2, audio 1: not a WAV file"):
        collate(parse_row(2, audio_row(1, data_uri(picture())), model))
