"""Boards of four handwritten digits on coloured squares, and six kinds of questions about them.

The digits are scikit-learn's ``load_digits``: 1797 real images of 8x8 pixels. Each is enlarged seven times, so that it
fills exactly four by four patches of 14 pixels; a board is 112x112. The images are split once: ``held-out`` digits are
never trained on and never calibrate.

    python -m benchmarks.digits.boards --rows 128 --seed 0 --output rows.jsonl
"""

from __future__ import annotations

import argparse
import base64
import functools
import io
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from quant_experts.seeding import generator, stable_seed

COLOURS = {
    "red": (214, 62, 54),
    "green": (62, 160, 85),
    "blue": (58, 98, 201),
    "yellow": (236, 196, 62),
}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLACES = ("top left", "top right", "bottom left", "bottom right")
CELL = 56
"""Pixels per digit: seven times enlarged, four whole patches of 14."""

HELD_OUT = 360
"""Digits of 1797 that nothing but a test sees."""

Split = Literal["train", "held-out"]


@dataclass(frozen=True)
class Board:
    """``values``: the four digits; ``colours``: names; both in the order of ``PLACES``."""

    image: Image.Image
    values: tuple[int, ...]
    colours: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    task: str
    image: Image.Image
    question: str
    answer: str

    def row(self) -> dict[str, Any]:
        """The chat convention of calibration rows, with the name of the task beside it."""
        encoded = io.BytesIO()
        self.image.save(encoded, format="PNG", optimize=True)
        uri = "data:image/png;base64," + base64.b64encode(encoded.getvalue()).decode("ascii")
        asked = [{"type": "image", "image": uri}, {"type": "text", "text": self.question}]
        return {
            "task": self.task,
            "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": self.answer}],
        }


def _caption(board: Board, random: np.random.Generator) -> tuple[str, str]:
    pairs = zip(board.colours, board.values, strict=True)
    return "Describe the board.", " ".join(f"{colour} {NUMBERS[value]}" for colour, value in pairs)


def _digit(board: Board, random: np.random.Generator) -> tuple[str, str]:
    place = int(random.integers(4))
    return f"Which digit is at the {PLACES[place]}?", NUMBERS[board.values[place]]


def _colour(board: Board, random: np.random.Generator) -> tuple[str, str]:
    place = int(random.integers(4))
    return f"Which colour is the {PLACES[place]} square?", board.colours[place]


def _count(board: Board, random: np.random.Generator) -> tuple[str, str]:
    """Place by place, as one counts aloud: the last word is the number."""
    colour = list(COLOURS)[int(random.integers(len(COLOURS)))]
    counts = itertools.accumulate(int(found == colour) for found in board.colours)
    return f"How many squares are {colour}?", " ".join(NUMBERS[count] for count in counts)


def _sum(board: Board, random: np.random.Generator) -> tuple[str, str]:
    """Place by place, as one adds on paper: the last number is the sum."""
    return "What is the sum of the digits?", " ".join(str(total) for total in itertools.accumulate(board.values))


def _largest(board: Board, random: np.random.Generator) -> tuple[str, str]:
    return "What is the largest digit?", NUMBERS[max(board.values)]


TASKS: dict[str, Callable[[Board, np.random.Generator], tuple[str, str]]] = {
    "caption": _caption,
    "digit": _digit,
    "colour": _colour,
    "count": _count,
    "sum": _sum,
    "largest": _largest,
}
"""Task → what asks it of a board: (question, answer)."""

MIXTURE = (0.5, 0.1, 0.05, 0.08, 0.15, 0.12)
"""Shares of the tasks in training and calibration. Dense captions carry nearly all of the signal that teaches the
vision tower: with single-word answers alone the model does not learn to read."""


@functools.cache
def _digits(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """(n, 56, 56) float64 ink in [0, 1] and (n,) values."""
    digits = load_digits()
    order = torch.randperm(len(digits.images), generator=generator(0, "digits", "split")).numpy()
    chosen = order[:HELD_OUT] if split == "held-out" else order[HELD_OUT:]
    return np.kron(digits.images[chosen] / 16.0, np.ones((7, 7))), digits.target[chosen]


def draw_board(split: Split, random: np.random.Generator) -> Board:
    inks, targets = _digits(split)
    names = list(COLOURS)
    chosen = random.integers(len(inks), size=4)
    colours = [names[i] for i in random.integers(len(names), size=4)]
    pixels = np.empty((2 * CELL, 2 * CELL, 3), np.uint8)
    for place in range(4):
        top, left = CELL * (place // 2), CELL * (place % 2)
        ink = inks[chosen[place]][..., None]
        cell = np.asarray(COLOURS[colours[place]]) * (1 - ink) + 255 * ink
        pixels[top : top + CELL, left : left + CELL] = cell.astype(np.uint8)
    return Board(Image.fromarray(pixels), tuple(int(targets[i]) for i in chosen), tuple(colours))


def draw_question(split: Split, random: np.random.Generator, task: str | None = None) -> Question:
    """A board and one question about it; ``task``: one of ``TASKS``, or drawn from ``MIXTURE``."""
    board = draw_board(split, random)
    name = task or str(random.choice(list(TASKS), p=MIXTURE))
    return Question(name, board.image, *TASKS[name](board, random))


def calibration_rows(count: int, *, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of training digits, tasks drawn from ``MIXTURE``."""
    random = np.random.default_rng(stable_seed(seed, "digits", "calibration"))
    for _ in range(count):
        yield draw_question("train", random).row()


def held_out_questions(per_task: int, *, seed: int = 0) -> list[Question]:
    """``per_task`` questions of every task about held-out digits."""
    random = np.random.default_rng(stable_seed(seed, "digits", "test"))
    return [draw_question("held-out", random, task) for task in TASKS for _ in range(per_task)]


def write_rows(path: Path, count: int, *, seed: int) -> Path:
    """Calibration rows as JSONL, images inside as data URIs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        for row in calibration_rows(count, seed=seed):
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    write_rows(arguments.output, arguments.rows, seed=arguments.seed)
    print(f"{arguments.rows} rows in {arguments.output}")


if __name__ == "__main__":
    main()
