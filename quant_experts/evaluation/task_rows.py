"""The rows that the user's own task is evaluated on: the expected reply of each, and the prompt before it.

The last message of a row is the expected reply, if it is the assistant's and has text; what comes before it is the
prompt, several turns of it if there are. Rows that the run is fitted on are passed over. Rows are read again when they
are generated for, so that their images are never all in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

import torch

from quant_experts.calibration.captured_inputs import CapturedInputs
from quant_experts.calibration.collate import Collate, Sample, TooLong
from quant_experts.calibration.rows import BadRow, Row, texts_of
from quant_experts.calibration.samples import Choice, RowFile, refuse_too_many_bad
from quant_experts.errors import InvalidCalibration
from quant_experts.evaluation.multiple_choice import Choices, NotAChoice, choices_of
from quant_experts.seeding import generator

AT_A_TIME = 8
LOOKED_AT = 20
"""Rows that are looked at for each one that is wanted."""
NO_REPLY, NO_PROMPT = "its last message is no reply of the assistant", "nothing stands before its reply"
FITTED_ON, TOO_LONG = "it is fitted on", "its prompt is too long"


@dataclass(frozen=True)
class TaskRow:
    """``position``: in its file. ``digest``: of its content. ``choices``: of a row of multiple choice."""

    position: int
    number: int
    digest: str
    question: str
    reference: str
    choices: Choices | None


@dataclass(frozen=True)
class TaskRows:
    """``skipped``: reason → rows that were passed over before there were enough."""

    file: RowFile
    prompt_of: Collate
    rows: tuple[TaskRow, ...]
    skipped: dict[str, int]

    def prompt(self, row: TaskRow) -> Sample:
        """Its model inputs, where the reply begins."""
        [read] = self.file.read([row.position])
        assert isinstance(read, Row), "it was read before"
        return self.prompt_of(read)


def unseen_positions(choice: Choice) -> list[int]:
    """Of the calibration's rows those that are held out, then those that no run of these samples needs, last first."""
    return [*choice.held_out, *reversed(choice.reserve)]


def drawn_positions(rows: RowFile, seed: int) -> list[int]:
    """All positions of another file, in a seeded order."""
    order: list[int] = torch.randperm(len(rows), generator=generator(seed, "evaluation", "choice")).tolist()
    return order


def fitted_rows(rows: RowFile, choice: Choice, inputs: CapturedInputs) -> dict[int, str]:
    """Number → content digest of the calibration's rows that the run is fitted on."""
    numbers = {row.number for row in inputs.fit}
    replaced = choice.reserve[: sum(inputs.skipped.values())]
    read = rows.read(sorted((*choice.held_out, *choice.fit, *replaced)))
    return {row.number: row.content_digest for row in read if isinstance(row, Row) and row.number in numbers}


def choose_task_rows(
    file: RowFile, positions: Sequence[int], prompt_of: Collate, *, most: int, fitted: Set[str]
) -> TaskRows:
    """The first ``most`` rows of ``positions`` that can be used. ``fitted``: content digests of rows to pass over.

    Raises InvalidCalibration when there is none, or more than a tenth of those that were looked at cannot be read.
    """
    found, skipped, bad, looked = list[TaskRow](), Counter[str](), list[str](), 0
    for position, row in _in_order(file, positions[: LOOKED_AT * most]):
        if len(found) == most:
            break
        looked += 1
        try:
            found.append(_task_row(position, row, prompt_of, fitted))
        except _PassedOver as reason:
            skipped[str(reason)] += 1
        except (InvalidCalibration, NotAChoice) as error:
            where = f"evaluation row {row.number}: " if isinstance(error, NotAChoice) else ""
            bad.append(f"{where}{error}".replace("calibration row", "evaluation row"))
    refuse_too_many_bad(bad, looked)
    if not found:
        reasons = "; ".join(f"{count}: {reason}" for reason, count in skipped.most_common())
        raise InvalidCalibration(
            f"evaluation: none of {looked} rows can be used ({reasons or 'there is none'}); give rows of messages "
            "whose last one is the assistant's expected reply"
        )
    skipped.update(bad)
    return TaskRows(file, prompt_of, tuple(sorted(found, key=lambda row: row.position)), dict(skipped))


class _PassedOver(Exception):
    """A row that is none of the task's; the message says why."""


def _task_row(position: int, row: Row | BadRow, prompt_of: Collate, fitted: Set[str]) -> TaskRow:
    if isinstance(row, BadRow):
        raise InvalidCalibration(row.reason)
    last = row.messages[-1]
    reference = "".join(texts_of(last)).strip() if last["role"] == "assistant" else ""
    if not reference:
        raise _PassedOver(NO_REPLY)
    if len(row.messages) < 2:
        raise _PassedOver(NO_PROMPT)
    if row.content_digest in fitted:
        raise _PassedOver(FITTED_ON)
    choices = choices_of(row.choices, "\n".join(texts_of(row.messages[-2])), reference)
    try:
        question = prompt_of(row).question
    except TooLong:
        raise _PassedOver(TOO_LONG) from None
    return TaskRow(position, row.number, row.content_digest, question, reference, choices)


def _in_order(file: RowFile, positions: Sequence[int]) -> Iterator[tuple[int, Row | BadRow]]:
    for start in range(0, len(positions), AT_A_TIME):
        ordered = sorted(positions[start : start + AT_A_TIME])
        yield from zip(ordered, file.read(ordered), strict=True)
