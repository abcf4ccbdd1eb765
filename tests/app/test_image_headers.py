"""Sizes from headers agree with Pillow for everything that Pillow writes, and garbage raises nothing but BadImage."""

from __future__ import annotations

import contextlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from app.parsing.images import BadImage, read_header

VARIANTS = {
    "png": ("PNG", "RGB", {}),
    "png with alpha": ("PNG", "RGBA", {}),
    "jpeg": ("JPEG", "RGB", {}),
    "jpeg progressive": ("JPEG", "RGB", {"progressive": True}),
    "jpeg grey": ("JPEG", "L", {}),
    "jpeg with exif and profile": ("JPEG", "RGB", {"exif": b"Exif\0\0" + bytes(500), "icc_profile": bytes(70_000)}),
    "webp lossy": ("WEBP", "RGB", {}),
    "webp lossless": ("WEBP", "RGB", {"lossless": True}),
    "webp with alpha": ("WEBP", "RGBA", {}),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [(1, 1), (17, 300), (1023, 513)])
def test_format_and_size_are_those_of_the_image(variant: str, size: tuple[int, int]) -> None:
    kind, mode, options = VARIANTS[variant]
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind, **options)
    header = read_header(buffer.getvalue())
    assert (header.format, (header.width, header.height)) == (kind, size)


MAGICS = [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBPVP8 ", b"RIFF\0\0\0\0WEBPVP8X", b""]


@given(magic=st.sampled_from(MAGICS), rest=st.binary(max_size=300))
def test_garbage_is_refused_by_name_and_never_crashes(magic: bytes, rest: bytes) -> None:
    with contextlib.suppress(BadImage):
        header = read_header(magic + rest)
        assert header.width > 0
        assert header.height > 0
