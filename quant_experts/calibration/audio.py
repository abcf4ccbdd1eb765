"""Decode audio: PCM in WAV files becomes one channel at the sampling rate of the model. No other file decodes audio."""

from __future__ import annotations

import io
import struct
import wave

import torch
from torch import Tensor

from quant_experts.errors import InvalidCalibration

SLOWEST, FASTEST = 4_000, 192_000
"""Samples per second."""
CONVERT = "convert it, for example with: ffmpeg -i IN -c:a pcm_s16le OUT.wav"


def decode(data: bytes, where: str) -> tuple[Tensor, int]:
    """Samples between -1 and 1, (n,) float32, the mean of all channels; and the sampling rate, per second.

    ``where``: row and audio, for the message. Raises InvalidCalibration for another format or a truncated file.
    """
    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, width, rate, frames = file.getparams()[:4]
            pcm = file.readframes(frames)
    except (wave.Error, EOFError, struct.error, ValueError) as error:
        reason = " ".join(str(error).split()) or "it ends too early"
        raise InvalidCalibration(f"{where}: not a WAV file with PCM samples ({reason}); {CONVERT}") from error
    if not SLOWEST <= rate <= FASTEST:
        raise InvalidCalibration(f"{where}: {rate} samples per second; between {SLOWEST} and {FASTEST} are accepted")
    if width not in (1, 2, 3, 4):
        raise InvalidCalibration(f"{where}: samples of {8 * width} bits; {CONVERT}")
    if frames == 0:
        raise InvalidCalibration(f"{where}: the WAV file holds no sample")
    if len(pcm) != frames * channels * width:
        raise InvalidCalibration(f"{where}: the WAV file is cut off: it announces {frames} samples and holds fewer")
    return _samples(pcm, width).reshape(frames, channels).mean(1), rate


def _samples(pcm: bytes, width: int) -> Tensor:
    """Little-endian integers of ``width`` bytes; those of one byte are unsigned (RIFF WAVE specification)."""
    raw = torch.frombuffer(bytearray(pcm), dtype=torch.uint8)
    if width == 1:
        return (raw.float() - 128) / 128
    if width == 3:  # a zero byte below each makes four bytes, with their factor
        raw = torch.cat([torch.zeros(len(raw) // 3, 1, dtype=torch.uint8), raw.reshape(-1, 3)], dim=1).reshape(-1)
    dtype = torch.int16 if width == 2 else torch.int32
    values: Tensor = raw.view(dtype).float() / 2 ** (torch.iinfo(dtype).bits - 1)
    return values


def resample(samples: Tensor, rate: int, target: int) -> Tensor:
    """samples: (n,) float32 at ``rate``; returns (round(n · target / rate),) at ``target``.

    The Fourier transform limits the band: frequencies above half of the lower rate are cut off. It treats the signal as
    periodic, so that a clip that does not begin and end in silence rings for a few samples at its ends.
    """
    if rate == target:
        return samples
    n = max(1, round(len(samples) * target / rate))
    spectrum = torch.fft.rfft(samples.double())
    band = torch.zeros(n // 2 + 1, dtype=spectrum.dtype)
    shared = min(len(band), len(spectrum))
    band[:shared] = spectrum[:shared]
    result: Tensor = (torch.fft.irfft(band, n=n) * (n / len(samples))).float()
    return result
