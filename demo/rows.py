"""Calibration rows from real images that ship inside Python packages: image, question, honest answer.

Handwritten digits (scikit-learn, 8x8 pixels each) are enlarged and set on coloured 2x2 boards, so that captions can be
checked against the picture. Photographs (scikit-image) are cropped where the caption still holds.

    python -m demo.rows --rows 64 --output rows.jsonl
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import skimage
from PIL import Image
from sklearn.datasets import load_digits

COLOURS = {
    "red": (214, 62, 54),
    "green": (62, 160, 85),
    "blue": (58, 98, 201),
    "yellow": (236, 196, 62),
}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLACES = ("top left", "top right", "bottom left", "bottom right")
PHOTOGRAPHS = {
    "astronaut.png": "a portrait of an astronaut in an orange suit",
    "chelsea.png": "a close view of a ginger cat",
    "coffee.png": "a cup of coffee on a wooden table",
    "rocket.jpg": "a rocket on its launch pad",
    "hubble_deep_field.jpg": "many distant galaxies on a black sky",
    "camera.png": "a grey photograph of a man with a camera on a tripod",
    "coins.png": "rows of ancient coins",
    "brick.png": "a wall of bricks",
    "grass.png": "blades of grass",
    "gravel.png": "gravel stones",
    "moon.png": "the cratered surface of the moon",
    "page.png": "a printed page of text",
}
CELL = 56
"""Pixels per digit: seven times enlarged, four whole patches of 14."""


def make_rows(count: int, *, seed: int = 0) -> Iterator[dict[str, Any]]:
    """``count`` rows in the chat convention; every fourth shows a photograph, the others a board of digits."""
    random = np.random.default_rng(seed)
    digits = load_digits()
    names = list(PHOTOGRAPHS)
    for index in range(count):
        if index % 4 == 3:
            yield _photograph_row(names[index // 4 % len(names)], random)
        else:
            yield _board_row(digits, random)


def write_jsonl(path: Path, count: int, *, seed: int = 0) -> None:
    with path.open("w", encoding="utf-8") as out:
        for row in make_rows(count, seed=seed):
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def _board_row(digits: Any, random: np.random.Generator) -> dict[str, Any]:
    board = Image.new("RGB", (2 * CELL, 2 * CELL))
    values, colours = [], []
    for place in range(4):
        chosen = int(random.integers(len(digits.images)))
        colour = list(COLOURS)[int(random.integers(len(COLOURS)))]
        ink = np.kron(digits.images[chosen] / 16.0, np.ones((7, 7)))[..., None]
        cell = np.asarray(COLOURS[colour]) * (1 - ink) + 255 * ink
        board.paste(Image.fromarray(cell.astype(np.uint8)), ((place % 2) * CELL, (place // 2) * CELL))
        values.append(NUMBERS[int(digits.target[chosen])])
        colours.append(colour)
    asked = int(random.integers(4))
    question, answer = (
        ("Describe the board.", ", ".join(f"{c} {v}" for c, v in zip(colours, values, strict=True)) + "."),
        (f"Which digit is at the {PLACES[asked]}?", f"The digit at the {PLACES[asked]} is {values[asked]}."),
        (f"Which colour is the {PLACES[asked]} square?", f"The {PLACES[asked]} square is {colours[asked]}."),
    )[int(random.integers(3))]
    return _row(board, question, answer)


def _photograph_row(name: str, random: np.random.Generator) -> dict[str, Any]:
    photograph = Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")
    width, height = photograph.size
    share = random.uniform(0.75, 1.0)
    left = int(random.uniform(0, (1 - share) * width))
    top = int(random.uniform(0, (1 - share) * height))
    crop = photograph.crop((left, top, left + int(share * width), top + int(share * height)))
    crop.thumbnail((168, 168))
    return _row(crop, "What is in the picture?", f"The picture shows {PHOTOGRAPHS[name]}.")


def _row(image: Image.Image, question: str, answer: str) -> dict[str, Any]:
    encoded = io.BytesIO()
    image.save(encoded, format="PNG", optimize=True)
    uri = "data:image/png;base64," + base64.b64encode(encoded.getvalue()).decode("ascii")
    return {
        "messages": [
            {"role": "user", "content": [{"type": "image", "image": uri}, {"type": "text", "text": question}]},
            {"role": "assistant", "content": answer},
        ]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    write_jsonl(arguments.output, arguments.rows, seed=arguments.seed)
    print(f"{arguments.rows} rows in {arguments.output}")


if __name__ == "__main__":
    main()
