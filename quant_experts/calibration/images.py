"""The only place that decodes images: three formats, bounded pixels."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

from PIL import Image, UnidentifiedImageError

from quant_experts.errors import InvalidCalibration

FORMATS = ("PNG", "JPEG", "WEBP")
LARGEST = 50_000_000
"""Pixels. A decoded image of this size is 150 MB."""


def decode(data: bytes, where: str) -> Image.Image:
    """RGB pixels of a PNG, JPEG or WEBP image. ``where``: row and image, for the message.

    Raises InvalidCalibration for another format, too many pixels, or a file that cannot be decoded.
    """
    try:
        with warnings.catch_warnings():
            # The header is read first and the bound below is stricter than PIL's own.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if width * height > LARGEST:
                raise InvalidCalibration(_too_large(where, f"{width}x{height} = {width * height / 1e6:.0f} million"))
            return image.convert("RGB")
    except UnidentifiedImageError:
        raise InvalidCalibration(f"{where}: not a PNG, JPEG or WEBP image ({_guess(data)})") from None
    except Image.DecompressionBombError:
        raise InvalidCalibration(_too_large(where, "far too many")) from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error, zlib.error) as error:
        raise InvalidCalibration(f"{where}: the image is corrupt ({' '.join(str(error).split())[:120]})") from error


def _too_large(where: str, size: str) -> str:
    return f"{where}: {size} pixels, at most {LARGEST // 1_000_000} million are accepted; make it smaller"


def _guess(data: bytes) -> str:
    known = {b"GIF8": "GIF", b"BM": "BMP", b"II*\x00": "TIFF", b"MM\x00*": "TIFF", b"%PDF": "PDF", b"<svg": "SVG"}
    for magic, name in known.items():
        if data.startswith(magic):
            return f"it looks like {name}"
    return f"{len(data)} bytes beginning with {data[:8]!r}"
