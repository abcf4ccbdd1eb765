"""Decode images: PNG, JPEG and WEBP become eight-bit RGB, as a viewer shows them. No other file decodes images."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from quant_experts.errors import InvalidCalibration, one_line
from quant_experts.spec.limits import MOST_PIXELS

FORMATS = ("PNG", "JPEG", "WEBP")
CORRUPT = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, struct.error, zlib.error)
"""Exceptions that Pillow raises for bytes that are no image, as observed."""


def decode(data: bytes, where: str) -> Image.Image:
    """RGB pixels of a PNG, JPEG or WEBP image, as ``as_rgb`` makes them. ``where``: row and image, for the message.

    Raises InvalidCalibration for another format, too many pixels, or a file that cannot be decoded.
    """
    try:
        with warnings.catch_warnings():
            # The bound below is stricter than Pillow's own, and only the header has been read by then.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise InvalidCalibration(_too_large(where, f"{width}x{height} = {width * height / 1e6:.0f} million"))
            return as_rgb(image)
    except UnidentifiedImageError:
        raise InvalidCalibration(f"{where}: not a PNG, JPEG or WEBP image ({_guess(data)})") from None
    except Image.DecompressionBombError:
        raise InvalidCalibration(_too_large(where, "far too many")) from None
    except CORRUPT as error:
        raise InvalidCalibration(f"{where}: the image is corrupt ({one_line(error, 120)})") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """The image as a viewer shows it: rotated by its EXIF orientation, 16-bit greys scaled to eight bits, and white
    where it is transparent.

    ``transformers.image_utils.load_image`` rotates too. But it clips 16-bit greys to white, and it shows the hidden
    colour of transparent pixels, which is mostly black.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if image.mode == "La":  # premultiplied; Pillow converts it to LA alone
        image = image.convert("LA")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """A 16-bit grey as L, or as LA when one of its levels means transparent."""
    levels = np.asarray(image).astype(np.uint32)
    grey = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8))))


def _too_large(where: str, size: str) -> str:
    return f"{where}: {size} pixels, at most {MOST_PIXELS // 1_000_000} million are accepted; make it smaller"


def _guess(data: bytes) -> str:
    signatures = {b"GIF8": "GIF", b"BM": "BMP", b"II*\x00": "TIFF", b"MM\x00*": "TIFF", b"%PDF": "PDF", b"<svg": "SVG"}
    for magic, name in signatures.items():
        if data.startswith(magic):
            return f"it looks like {name}"
    return f"{len(data)} bytes beginning with {data[:8]!r}"
