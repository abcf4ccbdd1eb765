"""Score a generated reply against the expected one, and say how sure a mean of scores is.

Exact match compares texts as SQuAD and VQA do: without case, white space and the punctuation around words. What stands
inside a word stays, so that 1.5 is not 15, and so does the sign of a number. Articles stay, because they are English.
Edit similarity is 1 minus the Levenshtein distance over the longer length (Biten et al., Scene Text Visual Question
Answering, 2019, call it NLS). Their ANLS counts what is below 0.5 as 0; a mean without that step tells more of long
texts.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

import torch
from torch import Tensor

from quant_experts.report.data import Interval
from quant_experts.seeding import generator

KEPT = "%#"
"""Punctuation in Unicode's eyes that tells answers apart: 5 % is not 5."""
RESAMPLES = 2000
LEVEL = 0.95
Z = 1.959964
"""Of a two-sided 95 % interval."""


def normalised(text: str) -> str:
    """Lower case, single spaces, no punctuation around words. A text of punctuation alone keeps it."""
    words = unicodedata.normalize("NFKC", text).casefold().split()
    return " ".join(bare for word in words if (bare := _bare(word))) or " ".join(words)


def _bare(word: str) -> str:
    start, end = 0, len(word)
    while start < end and _is_mark(word[start]) and not _begins_number(word[start:]):
        start += 1
    while end > start and _is_mark(word[end - 1]):
        end -= 1
    return word[start:end]


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("P") and character not in KEPT


def _begins_number(word: str) -> bool:
    return word[0] in "-." and word.lstrip("-.")[:1].isdigit()


def edit_similarity(reply: str, reference: str) -> float:
    """1 − distance / longer length, of the texts in lower case with single spaces; 1 for equal ones."""
    first, second = (" ".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in (reply, reference))
    longest = max(len(first), len(second))
    return 1.0 if longest == 0 else 1 - edit_distance(first, second) / longest


def edit_distance(first: str, second: str) -> int:
    """Insertions, deletions and substitutions (Levenshtein), a column of the table at a time as the bits of an integer
    (Hyyrö, A Bit-Vector Algorithm for Computing Levenshtein and Damerau Edit Distances, 2003)."""
    if not first:
        return len(second)
    every, last = (1 << len(first)) - 1, 1 << (len(first) - 1)
    places: dict[str, int] = {}
    for index, character in enumerate(first):
        places[character] = places.get(character, 0) | 1 << index
    up, down, distance = every, 0, len(first)
    for character in second:
        here = places.get(character, 0)
        diagonal = (((here & up) + up) ^ up) | here
        right, left = down | (~(diagonal | up) & every), up & diagonal
        distance += bool(right & last) - bool(left & last)
        right, left = (right << 1) | 1, left << 1
        vertical = here | down
        up, down = (left | ~(vertical | right)) & every, right & vertical & every
    return distance


def share_of(values: Sequence[float]) -> Interval:
    """Mean of zeros and ones with Wilson's interval, which stays honest where all are alike."""
    return _wilson(sum(values) / len(values), len(values))


def mean_of(values: Sequence[float]) -> Interval:
    """Mean of other values with the bootstrap's interval over rows."""
    return _bootstrapped(torch.tensor(values, dtype=torch.float64))


def difference_of(before: Sequence[float], after: Sequence[float]) -> Interval:
    """Mean of after − before, row by row, and the paired bootstrap's interval."""
    return _bootstrapped(torch.tensor(after, dtype=torch.float64) - torch.tensor(before, dtype=torch.float64))


def _wilson(share: float, count: int) -> Interval:
    spread = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    middle, scale = share + Z**2 / (2 * count), 1 + Z**2 / count
    low, high = max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
    return Interval(value=share, low=min(share, low), high=max(share, high))


def _bootstrapped(values: Tensor) -> Interval:
    """values: (rows,) float64."""
    drawn = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator(0, "evaluation", "bootstrap"))
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = torch.quantile(values[drawn].mean(1), tails).tolist()
    mean = float(values.mean())
    return Interval(value=mean, low=min(low, mean), high=max(high, mean))
