"""Which of several choices a generated reply names.

Two ways are usual. lm-evaluation-harness compares the likelihoods of the choices, which also serves models that do not
follow instructions; VLMEvalKit and MMMU let the model reply and look for the choice in its words. The second is taken
here: it scores what people will read, and the reply is there already. What names no choice, or several, is wrong; MMMU
guesses then, which would make scores random.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from quant_experts.evaluation.scores import normalised

FEWEST, MOST = 2, len(ascii_uppercase)
LINE = re.compile(r"^\s*[(\[]?([A-Z])[)\].:]\s*(\S.*?)\s*$", re.MULTILINE)
"""A choice in the text of a question: ``A. cat``, ``(B) dog``."""
LETTER = re.compile(r"[(\[*\"'\s]*([A-Za-z])[)\]*.:,\"'\s]*")
BEGINNING = re.compile(r"[(\[*\"'\s]*([A-Z])(?:[)\].:,*]|\s*\n)")
ANNOUNCED = re.compile(r"\b(?:answer|option|choice)\b(?:\s+is\b)?\s*:?\s*[(\[*\"']*([A-Z])\b(?!')", re.IGNORECASE)
WORD = re.compile(r"\b[A-Z]\b(?!')")
MOSTLY_WORDS = "AI"
"""Letters that are English words too: in a reply of more than three words they name a choice only where one is
announced."""


class NotAChoice(ValueError):
    """The choices of a row are no list of texts, or its reply is none of them."""


@dataclass(frozen=True)
class Choices:
    """``texts``: in order, the first is A; empty where only letters are known. ``right``: index of the expected one."""

    texts: tuple[str, ...]
    right: int

    @property
    def letters(self) -> str:
        return ascii_uppercase[: len(self.texts)] if self.texts else ascii_uppercase


def choices_of(offered: Any, question: str, reference: str) -> Choices | None:
    """The choices of a row, None where it has none: those that it lists under ``choices``, else lettered lines of its
    ``question``, else, where the ``reference`` is one capital letter, letters alone.

    Raises NotAChoice when the row lists choices and the reference is neither one of them nor its letter.
    """
    if offered is not None:
        texts = _texts(offered)
        right = _named_by(reference, texts)
        if right is None:
            raise NotAChoice("its reply is neither one of its choices nor the letter of one")
        return Choices(texts, right)
    texts = _lines(question)
    if texts:
        right = _named_by(reference, texts)
        return None if right is None else Choices(texts, right)
    is_letter = len(reference) == 1 and reference in ascii_uppercase
    return Choices((), ascii_uppercase.index(reference)) if is_letter else None


def picked(reply: str, choices: Choices) -> int | None:
    """Index of the choice that the reply names; None for none or several."""
    equal = _equal(reply, choices.texts)
    if equal is not None:
        return equal
    letter = _letter(reply, choices.letters)
    return _contained(reply, choices.texts) if letter is None else choices.letters.index(letter)


def _texts(offered: Any) -> tuple[str, ...]:
    if not isinstance(offered, list) or not all(type(each) in (str, int, float) for each in offered):
        raise NotAChoice("choices is not a list of texts")
    if not FEWEST <= len(offered) <= MOST:
        raise NotAChoice(f"{len(offered)} choices; {FEWEST} to {MOST} are read")
    return tuple(str(each) for each in offered)


def _lines(question: str) -> tuple[str, ...]:
    """Of lines that begin with A, B, C and so on, without a gap."""
    found = LINE.findall(question)
    in_order = all(letter == ascii_uppercase[index] for index, (letter, _) in enumerate(found[:MOST]))
    return tuple(text for _, text in found) if FEWEST <= len(found) <= MOST and in_order else ()


def _named_by(reference: str, texts: Sequence[str]) -> int | None:
    """A text has precedence over a letter: of the choices ``B`` and ``A``, A is the second."""
    equal = _equal(reference, texts)
    if equal is not None:
        return equal
    match = LETTER.fullmatch(reference) or BEGINNING.match(reference)
    index = ascii_uppercase.index(match[1].upper()) if match else MOST
    return index if index < len(texts) else None


def _equal(text: str, texts: Sequence[str]) -> int | None:
    equal = [index for index, other in enumerate(texts) if normalised(other) == normalised(text)]
    return equal[0] if len(equal) == 1 else None


def _letter(reply: str, letters: str) -> str | None:
    whole = LETTER.fullmatch(reply)
    if whole and whole[1].upper() in letters:
        return whole[1].upper()
    for match in (BEGINNING.match(reply), *reversed(list(ANNOUNCED.finditer(reply)))):
        if match and match[1] in letters:
            return match[1]
    found = {letter for letter in WORD.findall(reply) if letter in letters}
    if len(reply.split()) > 3:
        found -= set(MOSTLY_WORDS)
    return found.pop() if len(found) == 1 else None


def _contained(reply: str, texts: Sequence[str]) -> int | None:
    """The only choice whose words are in the reply; of ``cat`` and ``black cat`` the longer one."""
    words = f" {normalised(reply)} "
    found = {index: f" {normalised(text)} " for index, text in enumerate(texts) if f" {normalised(text)} " in words}
    longest = [
        index for index, text in found.items() if not any(text in other and text != other for other in found.values())
    ]
    return longest[0] if len(longest) == 1 else None
