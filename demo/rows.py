"""Calibration rows from real images that ship inside Python packages: image, question, honest answer.

Boards of handwritten digits (scikit-learn; ``benchmarks.digits.boards``), whose answers can be checked against the
picture, and photographs (scikit-image), cropped where the caption still holds.

    python -m demo.rows --rows 64 --output rows.jsonl
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import skimage
from PIL import Image

from benchmarks.digits.boards import Question, draw_question

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


def make_rows(count: int, *, seed: int = 0) -> Iterator[dict[str, Any]]:
    """``count`` rows in the chat convention; every fourth shows a photograph, the others a board of digits."""
    random = np.random.default_rng(seed)
    names = list(PHOTOGRAPHS)
    for index in range(count):
        if index % 4 == 3:
            yield _photograph(names[index // 4 % len(names)], random).row()
        else:
            yield draw_question("train", random).row()


def write_jsonl(path: Path, count: int, *, seed: int = 0) -> None:
    with path.open("w", encoding="utf-8") as out:
        for row in make_rows(count, seed=seed):
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def _photograph(name: str, random: np.random.Generator) -> Question:
    photograph = Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")
    width, height = photograph.size
    share = random.uniform(0.75, 1.0)
    left = int(random.uniform(0, (1 - share) * width))
    top = int(random.uniform(0, (1 - share) * height))
    crop = photograph.crop((left, top, left + int(share * width), top + int(share * height)))
    crop.thumbnail((168, 168))
    return Question("photograph", crop, "What is in the picture?", f"The picture shows {PHOTOGRAPHS[name]}.")


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
