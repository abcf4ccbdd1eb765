"""The only place that decodes audio: PCM in WAV files, as one channel at the rate that a model wants."""

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
    """Samples between -1 and 1, (n,) float32, the mean of all channels; and how many there are in a second.

    ``where``: row and audio, for the message. Raises InvalidCalibration for another format or a file that is cut off.
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
    """Little-endian integers of ``width`` bytes; those of one byte are without a sign (RIFF WAVE specification)."""
    raw = torch.frombuffer(bytearray(pcm), dtype=torch.uint8)
    if width == 1:
        return (raw.float() - 128) / 128
    if width == 3:  # a byte of zeros below each, and the factor is that of four bytes
        raw = torch.cat([torch.zeros(len(raw) // 3, 1, dtype=torch.uint8), raw.reshape(-1, 3)], dim=1).reshape(-1)
    dtype = torch.int16 if width == 2 else torch.int32
    values: Tensor = raw.view(dtype).float() / 2 ** (torch.iinfo(dtype).bits - 1)
    return values


def resample(samples: Tensor, rate: int, wanted: int) -> Tensor:
    """samples: (n,) float32 at ``rate``; returns (round(n · wanted / rate),) at ``wanted``.

    Band-limited, by its Fourier transform: what lies above half of the lower rate is cut off. The signal counts as
    periodic, so that a clip that does not begin and end in silence rings for a few samples at its ends.
    """
    if rate == wanted:
        return samples
    n = max(1, round(len(samples) * wanted / rate))
    spectrum = torch.fft.rfft(samples.double())
    kept = torch.zeros(n // 2 + 1, dtype=spectrum.dtype)
    shared = min(len(kept), len(spectrum))
    kept[:shared] = spectrum[:shared]
    made: Tensor = (torch.fft.irfft(kept, n=n) * (n / len(samples))).float()
    return made
