"""Format and size of an image from its first bytes: PNG, JPEG or WEBP. Nothing is decoded here.

The runner, a process without credentials, decodes images. The API reads a few header fields, so that it can refuse
invalid images at upload.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# Start-of-frame markers; C4, C8 and CC lie between them and mean something else (ITU T.81, table B.1).
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
APP1, EXIF = 0xE1, b"Exif\0\0"
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)
JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD8)})
OTHER_FORMATS = {
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"%PDF": "PDF",
    b"<svg": "SVG",
    b"<?xml": "XML",
    b"PK\3\4": "a ZIP archive",
}


@dataclass(frozen=True)
class ImageHeader:
    format: str
    width: int
    height: int


class BadImage(Exception):
    """The message describes the bytes."""


def read_header(data: bytes) -> ImageHeader:
    """Raises BadImage for another format, a broken header, or an image without pixels."""
    if data.startswith(PNG_MAGIC):
        header = _png(data)
    elif data.startswith(b"\xff\xd8\xff"):
        header = _jpeg(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        header = _webp(data)
    else:
        raise BadImage(f"not a PNG, JPEG or WEBP image but {_guess(data)}")
    if header.width == 0 or header.height == 0:
        raise BadImage(f"a {header.format} of {header.width}x{header.height} pixels")
    return header


def _png(data: bytes) -> ImageHeader:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise BadImage("a PNG without its header: corrupt or cut off")
    return ImageHeader("PNG", int.from_bytes(data[16:20]), int.from_bytes(data[20:24]))


def _jpeg(data: bytes) -> ImageHeader:
    """Walk the marker segments to the start of the frame (ITU T.81, annex B). Width and height are those of the
    displayed image, after the EXIF orientation."""
    at, sideways = 2, False
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
        elif marker in JPEG_BARE:
            at += 2
        elif marker in JPEG_FRAMES and at + 9 <= len(data):
            height, width = int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
            return ImageHeader("JPEG", height, width) if sideways else ImageHeader("JPEG", width, height)
        else:
            if marker == APP1 and data[at + 4 : at + 10] == EXIF:
                sideways = _is_sideways(data[at + 10 : at + 2 + int.from_bytes(data[at + 2 : at + 4])])
            at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4]))
    raise BadImage("a JPEG without a frame header: corrupt or cut off")


def _is_sideways(tiff: bytes) -> bool:
    """Whether the orientation in a TIFF directory swaps width and height (EXIF 2.32, section 4.6)."""
    order: Literal["little", "big"] = "little" if tiff[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], order)

    first = number(4, 4)
    entries = range(first + 2, min(first + 2 + 12 * number(first, 2), len(tiff)), 12)
    return any(number(at, 2) == ORIENTATION and number(at + 8, 2) in SIDEWAYS for at in entries)


def _webp(data: bytes) -> ImageHeader:
    """The three kinds of first chunk of the WebP container specification."""
    chunk, body = data[12:16], data[20:]
    if chunk == b"VP8X" and len(body) >= 10:
        return ImageHeader("WEBP", 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little"))
    if chunk == b"VP8L" and len(body) >= 5 and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return ImageHeader("WEBP", 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    if chunk == b"VP8 " and len(body) >= 10 and body[3:6] == b"\x9d\x01\x2a":
        width, height = int.from_bytes(body[6:8], "little"), int.from_bytes(body[8:10], "little")
        return ImageHeader("WEBP", width & 0x3FFF, height & 0x3FFF)
    raise BadImage("a WEBP without its header: corrupt or cut off")


def _guess(data: bytes) -> str:
    for magic, name in OTHER_FORMATS.items():
        if data.startswith(magic):
            return name
    return f"{len(data)} bytes that begin with {data[:8]!r}"
