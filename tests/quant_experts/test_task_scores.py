"""Scores of replies: what counts as the same, which choice is meant, and how sure a mean is."""

from __future__ import annotations

import random

import pytest

from quant_experts.evaluation.multiple_choice import Choices, NotAChoice, choices_of, picked
from quant_experts.evaluation.scores import (
    difference_of,
    edit_distance,
    edit_similarity,
    mean_of,
    normalised,
    share_of,
)

ANIMALS = ("cat", "black cat", "dog", "an apple")


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("Yes.", "yes", True),
        ("  The  Answer\n", "the answer", True),
        ("**42**", "42", True),
        ("ＡＢＣ", "abc", True),
        ("Straße", "STRASSE", True),
        ("«oui»", "oui", True),
        ("猫。", "猫", True),
        ("1.5", "15", False),
        ("-5", "5", False),
        (".5", "5", False),
        ("5%", "5", False),
        ("don't", "dont", False),
        ("?!", "?", False),  # punctuation alone is what was asked for
        ("a cat", "cat", False),
        ("", "x", False),
    ],
)
def test_what_is_the_same_answer(first: str, second: str, same: bool) -> None:
    assert (normalised(first) == normalised(second)) is same


def test_the_edit_distance_is_levenshteins() -> None:
    def table(first: str, second: str) -> int:
        row = list(range(len(second) + 1))
        for i, a in enumerate(first, start=1):
            row, before = [i], row
            for j, b in enumerate(second, start=1):
                row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b)))
        return row[-1]

    draw = random.Random(0)
    for _ in range(300):
        first, second = ("".join(draw.choices("abæ😀", k=draw.randrange(80))) for _ in range(2))
        assert edit_distance(first, second) == table(first, second)
    assert edit_similarity("kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert edit_similarity("Invoice  No. 7", "invoice no. 7") == 1
    assert edit_similarity("", "abc") == 0
    assert edit_similarity("a" * 200_000, "b") < 1e-5  # a reference of megabytes takes no minutes


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("C", 2),
        ("(c)", 2),
        ("**C**", 2),
        ("C. dog", 2),
        ("C\nbecause it barks", 2),
        ("The answer is (B).", 1),
        ("I think that the correct option is B", 1),
        ("dog", 2),
        ("It is a dog.", 2),
        ("It is a black cat", 1),  # and not the cat in it
        ("An apple", 3),
        ("A dog sits there", 2),  # an article is no choice
        ("A", 0),
        ("a cat or a dog", None),
        ("B or C", None),
        ("E", None),
        ("hotdogs", None),
        ("", None),
    ],
)
def test_the_choice_that_a_reply_names(reply: str, choice: int | None) -> None:
    assert picked(reply, Choices(ANIMALS, right=0)) == choice


def test_the_choices_of_a_row_are_listed_or_lettered_or_letters_alone() -> None:
    question = "Which one?\nA. cat\nB) dog\n(C) none of them"
    assert choices_of(["cat", 7], "", "7") == Choices(("cat", "7"), 1)
    assert choices_of(["B", "A"], "", "A") == Choices(("B", "A"), 1)  # the text, not the letter
    assert choices_of(["cat", "dog"], "", "B") == Choices(("cat", "dog"), 1)
    assert choices_of(None, question, "(B)") == Choices(("cat", "dog", "none of them"), 1)
    assert choices_of(None, question, "B. dog") == Choices(("cat", "dog", "none of them"), 1)
    assert choices_of(None, question, "a long story") is None
    letters = choices_of(None, "Which letter?", "D")
    assert letters == Choices((), 3)
    assert letters is not None
    assert picked("The answer is D.", letters) == 3
    assert picked("I do not know", letters) is None
    assert choices_of(None, "1. a\n2. b", "yes") is None
    for wrong in ("cat", ["cat"], [["cat"], "dog"], list(map(str, range(27)))):
        with pytest.raises(NotAChoice):
            choices_of(wrong, "", "cat")
    with pytest.raises(NotAChoice, match="neither one of its choices nor the letter"):
        choices_of(["cat", "dog"], "", "cow")


def test_intervals_hold_the_mean_and_know_what_few_rows_are_worth() -> None:
    all_right = share_of([1.0] * 32)
    assert (all_right.value, all_right.high) == (1.0, 1.0)
    assert all_right.low == pytest.approx(0.893, abs=1e-3)  # Wilson: 32 / (32 + 1.96²)
    half = share_of([0.0, 1.0] * 16)
    assert half.low == pytest.approx(1 - half.high)
    values = [0.2, 0.4, 0.9, 1.0, 0.7, 0.1, 0.8, 0.6]
    some = mean_of(values)
    assert some.low < some.value < some.high
    assert some == mean_of(values)  # seeded
    # Paired: a change that is the same in every row is certain, however much the rows differ.
    change = difference_of(values, [value - 0.1 for value in values])
    assert (change.low, change.value, change.high) == pytest.approx((-0.1, -0.1, -0.1))
