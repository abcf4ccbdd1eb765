"""Images are decoded to what a person sees: upright, greys in range, on white where they are transparent."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import load_image

from app.parsing.images import read_header
from quant_experts.calibration.images import as_rgb, decode
from quant_experts.planning.rows import sampled_rows
from quant_experts.planning.text_files import TextFiles
from tests.rows import data_uri, image_row

ORIENTATION = 0x0112
CANNOT_BE_SEEN = ("LAB",)
"""Modes that Pillow itself converts to nothing that can be shown; none of the three formats holds one."""


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format=kind, **options)
    return out.getvalue()


def half_and_half(*, width: int = 48, height: int = 32) -> Image.Image:
    """Red above blue."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("blue", (0, height // 2, width, height))
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_photo_is_upright_as_transformers_loads_it(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(half_and_half(), kind, exif=exif)
    expected = load_image(base64.b64encode(data).decode())
    assert np.array_equal(np.asarray(decode(data, "row")), np.asarray(expected))
    assert expected.size == ((48, 32) if orientation < 5 else (32, 48))
    if kind == "JPEG":
        header = read_header(data)
        assert (header.width, header.height) == expected.size


def test_a_plan_counts_the_tokens_of_a_photo_as_it_is_shown() -> None:
    tall, turned = half_and_half(width=30, height=600), half_and_half(width=600, height=30)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    config = {"model_type": "internvl", "vision_config": {}}
    files = TextFiles(config, {"size": {"height": 56, "width": 56}, "max_patches": 12})
    rows = [image_row(1, data_uri(data)) for data in (encoded(tall), encoded(turned, "JPEG", exif=exif))]
    counted = [sampled_rows([row], rows=1, files=files).image_tokens for row in rows]
    assert counted[0] == counted[1]


def test_sixteen_bit_greys_keep_their_shades() -> None:
    levels = np.linspace(0, 65535, 256).reshape(16, 16).round().astype(np.uint16)
    shades = np.asarray(decode(encoded(Image.fromarray(levels)), "row"))
    assert shades.shape == (16, 16, 3)
    assert np.array_equal(shades[..., 0].reshape(-1), np.arange(256))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [*((mode, "PNG") for mode in ("LA", "RGBA", "P", "L", "RGB", "1", "I;16")), ("LA", "WEBP"), ("RGBA", "WEBP")],
)
def test_black_ink_on_a_transparent_ground_is_black_on_white(mode: str, kind: str) -> None:
    alpha = np.zeros((32, 32), dtype=np.uint8)
    alpha[8:24, 8:24] = 255
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    if mode in ("LA", "RGBA"):
        image = Image.new(mode, (32, 32))
        image.putalpha(Image.fromarray(alpha))
    elif mode == "I;16":
        image = Image.fromarray((255 - alpha).astype(np.uint16) * 257)
        options["transparency"] = 65535
    else:  # one colour, or index, stands for transparent
        image = Image.fromarray(255 - alpha).convert(mode)
        options["transparency"] = {"RGB": (255, 255, 255), "1": 255}.get(mode, 255)
        if mode == "P":
            image.putpalette([0, 0, 0] * 256)
    seen = np.asarray(decode(encoded(image, kind, **options), "row")).mean(-1)
    assert seen[16, 16] == 0
    assert seen[0, 0] == 255


@pytest.mark.parametrize("mode", [mode for mode in Image.MODES if mode not in CANNOT_BE_SEEN])
def test_every_mode_that_pillow_knows_becomes_rgb(mode: str) -> None:
    made = as_rgb(Image.new(mode, (5, 3)))
    assert (made.mode, made.size) == ("RGB", (5, 3))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "RGBX", "YCbCr", "P", "1"])
def test_an_image_without_transparency_is_what_transformers_loads(mode: str) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert("RGB").convert(mode)
    assert np.array_equal(np.asarray(as_rgb(image)), np.asarray(load_image(image)))
