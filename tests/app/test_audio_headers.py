"""Uploads of audio rows: WAV files with PCM samples are accepted, everything else is refused with its place."""

from __future__ import annotations

import base64
import contextlib
import io
import wave
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.parsing.audio import BadAudio, read_header
from app.parsing.row_checks import check_row
from core.settings import Settings
from tests.app.conftest import Api, ok, problem
from tests.app.test_datasets import jsonl, kept, upload


def wav(*, seconds: float = 0.1, rate: int = 16_000, channels: int = 1) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(bytes(2 * channels * round(seconds * rate)))
    return out.getvalue()


def row(audio: object, **part: Any) -> dict[str, Any]:
    source = f"data:audio/wav;base64,{base64.b64encode(audio).decode()}" if isinstance(audio, bytes) else audio
    heard = {"type": "audio", "audio": source, **part}
    return {"messages": [{"role": "user", "content": [heard]}, {"role": "assistant", "content": "What was said."}]}


@pytest.mark.parametrize(("channels", "rate"), [(1, 8_000), (2, 44_100)])
def test_channels_and_rate_are_those_of_the_file(channels: int, rate: int) -> None:
    header = read_header(wav(channels=channels, rate=rate))
    assert (header.channels, header.rate) == (channels, rate)


@pytest.mark.parametrize(
    ("data", "seconds"),
    [
        (wav(seconds=2.5, channels=2), 2.5),
        (wav(seconds=2.5)[:-16_000], 2.0),  # cut off: what is there counts, not what is announced
        (wav(seconds=0), None),
        (wav().replace(b"\2\0\x10\0data", b"\0\0\x10\0data"), None),  # a sample of no bytes
        (wav().replace(b"data", b"LIST"), None),
    ],
)
def test_the_duration_is_that_of_the_samples_that_are_there(data: bytes, seconds: float | None) -> None:
    assert read_header(data).seconds == seconds


def test_chunks_before_the_header_are_passed_over() -> None:
    plain = wav()
    with_list = plain[:12] + b"LIST\x03\0\0\0abc\0" + plain[12:]
    assert read_header(with_list) == read_header(plain)


@given(
    magic=st.sampled_from([b"RIFF\0\0\0\0WAVE", b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0", b""]), rest=st.binary(max_size=80)
)
def test_garbage_is_refused_by_name_and_never_crashes(magic: bytes, rest: bytes) -> None:
    with contextlib.suppress(BadAudio):
        header = read_header(magic + rest)
        assert header.channels > 0
        assert header.rate > 0


async def test_rows_of_audio_are_accepted(api: Api) -> None:
    dataset = ok(await upload(api, jsonl(row(wav()), row(wav(rate=48_000), language="de"))), 201)
    assert (dataset["rows"], dataset["images"]) == (2, 0)


FLOATS = wav().replace(b"fmt \x10\0\0\0\1\0", b"fmt \x10\0\0\0\3\0")
AT = "/messages/0/content/0"
REFUSED: dict[str, tuple[Any, str, str]] = {
    "MP3": (row(b"ID3" + bytes(40)), f"{AT}/audio", "not a WAV file but MP3: convert it to WAV"),
    "M4A": (row(b"\0\0\0\x20ftypM4A "), f"{AT}/audio", "MP4 or M4A"),
    "floats": (row(FLOATS), f"{AT}/audio", "not PCM integers (format 3)"),
    "cut off": (row(wav()[:30]), f"{AT}/audio", "without its header"),
    "no channel": (row(wav().replace(b"\1\0\1\0", b"\1\0\0\0", 1)), f"{AT}/audio", "0 channels"),
    "a path": (row("a.wav"), f"{AT}/audio", "embed the audio as a data URI"),
    "a URL": (row("https://example.com/a.wav"), f"{AT}/audio", "nothing is fetched"),
    "no audio": (
        {"messages": [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "x"}]}]},
        AT,
        "an",
    ),
    "a language": (row(wav(), language=7), f"{AT}/language", "expected a string such as 'en'"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_bad_audio_is_refused_where_it_stands(api: Api, name: str) -> None:
    bad, pointer, detail = REFUSED[name]
    refused = problem(await upload(api, jsonl(row(wav()), bad)), 422, "invalid-dataset")
    assert [(error["row"], error["pointer"]) for error in refused["errors"]] == [(2, pointer)]
    assert detail in refused["errors"][0]["detail"]
    assert kept(api) == []


def test_audio_of_too_many_bytes_is_refused() -> None:
    check = check_row(row(wav()), Settings(max_audio_bytes=1000))
    assert [(problem.pointer, problem.detail) for problem in check.problems] == [
        (f"{AT}/audio", "about 3246 bytes; at most 1000 for one audio file")
    ]


async def test_a_row_of_audio_can_be_looked_at(api: Api) -> None:
    dataset = ok(await upload(api, jsonl(row(wav(), language="de"))), 201)
    rows = ok(await api.client.get(f"/v1/datasets/{dataset['id']}/rows"))
    assert rows["data"][0]["messages"][0]["content"] == [{"type": "audio", "language": "de", "index": 0}]
