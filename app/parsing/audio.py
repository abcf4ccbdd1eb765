"""Format of an audio file from its first bytes: PCM in a WAV container. Nothing is decoded here, as with images."""

from __future__ import annotations

from dataclasses import dataclass

PCM = 1
OTHER_FORMATS = {
    b"ID3": "MP3",
    b"\xff\xfb": "MP3",
    b"fLaC": "FLAC",
    b"OggS": "OGG",
    b"\x1aE\xdf\xa3": "Matroska or WebM",
}
ADVICE = "convert it to WAV with 16-bit PCM samples"


@dataclass(frozen=True)
class AudioHeader:
    channels: int
    rate: int
    """Samples per second."""
    seconds: float | None
    """None where the file has no samples or no frame size."""


class BadAudio(Exception):
    """The message describes the bytes."""


def read_header(data: bytes) -> AudioHeader:
    """Raises BadAudio for another format or a broken header (RIFF WAVE: chunks of a name, a length and as many bytes,
    each beginning at an even place)."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise BadAudio(f"not a WAV file but {_guess(data)}: {ADVICE}")
    at = 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name == b"fmt ":
            return _format(data[at + 8 : at + 8 + size], _samples(data, at))
        at += 8 + size + size % 2
    raise BadAudio("a WAV file without its header: corrupt or cut off")


def _samples(data: bytes, at: int) -> int:
    """Bytes of the samples, whose chunk comes after the one at ``at``. In a truncated recording the size field may be
    too large or 0."""
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name == b"data":
            return min(size, len(data) - at - 8)
        at += 8 + size + size % 2
    return 0


def _format(chunk: bytes, samples: int) -> AudioHeader:
    if len(chunk) < 16:
        raise BadAudio("a WAV file without its header: corrupt or cut off")
    fields = ((0, 2), (2, 2), (4, 4), (12, 2))
    kind, channels, rate, frame = (int.from_bytes(chunk[at : at + size], "little") for at, size in fields)
    if kind != PCM:
        raise BadAudio(f"a WAV file whose samples are not PCM integers (format {kind}): {ADVICE}")
    if channels == 0 or rate == 0:
        raise BadAudio(f"a WAV file of {channels} channels and {rate} samples per second")
    return AudioHeader(channels, rate, samples / frame / rate if samples and frame else None)


def _guess(data: bytes) -> str:
    for magic, name in OTHER_FORMATS.items():
        if data.startswith(magic):
            return name
    if data[4:8] == b"ftyp":
        return "MP4 or M4A"
    return f"{len(data)} bytes that begin with {data[:8]!r}"
