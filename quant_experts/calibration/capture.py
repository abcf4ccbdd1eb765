"""Capture what the first stack of blocks is called with, once per calibration row.

This runs everything in front of the stack: the processor, the embeddings, and the vision tower where it is not walked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor

from quant_experts.calibration.captured_inputs import CapturedInputs, CapturedInputsWriter, count_tokens
from quant_experts.calibration.collate import Collate, Sample, TooLong
from quant_experts.calibration.image_variants import MOST_ROWS, image_variants
from quant_experts.calibration.rows import BadRow, Row
from quant_experts.calibration.samples import FEWEST_HELD_OUT, Choice, RowFile, refuse_too_many_bad
from quant_experts.errors import InvalidCalibration, NumericalFailure
from quant_experts.model.block_runner import Arguments, StackNotCalled, capture_arguments
from quant_experts.model.blueprint import loaded, modules_around_blocks
from quant_experts.model.manifest import Vision
from quant_experts.model.run_context import RunContext
from quant_experts.progress import Advanced, stop_if

RESERVE_AT_A_TIME = 8


def capture_inputs(
    context: RunContext, rows: RowFile, choice: Choice, collate: Collate, *, vision: Vision = "keep"
) -> CapturedInputs:
    """Capture the inputs of the first stack for all rows of ``choice``, in the work directory.

    Held-out rows come first. A row from the reserve replaces a row that is too long, or one of a few that cannot be
    used.
    Raises InvalidCalibration naming the first row when more than a tenth cannot be used, or when too few are left;
    NumericalFailure when the vision tower overflows; Stopped between rows.
    """
    capture = _Capture(context, choice, collate, vision)
    try:
        with loaded(context.blueprint, *capture.modules()):
            capture.take_rows(rows)
            capture.take_variants()
        return capture.finish()
    finally:
        capture.writer.discard()


class _Capture:
    """The rows of one run while they are captured."""

    def __init__(self, context: RunContext, choice: Choice, collate: Collate, vision: Vision) -> None:
        self._context, self._choice, self._collate = context, choice, collate
        self._stacks = context.blueprint.manifest.stacks(vision)
        self.writer = CapturedInputsWriter(context.work, keep_inputs=len(self._stacks) > 1, state=self._stacks[0].state)
        self._skips: Counter[str] = Counter()
        self._bad: list[str] = []
        self._resizes = 0
        self._to_vary: list[tuple[int, Row]] = []
        """(index, row) of the held-out rows that get variants with other images."""
        self._tokens: dict[int, Tensor] = {}
        """Index of such a row → its token ids, (1, tokens) int64."""

    def modules(self) -> tuple[str, ...]:
        """The modules that run before the first stack's blocks. The blocks and the head are not needed."""
        manifest = self._context.blueprint.manifest
        if len(self._stacks) == 1:
            return manifest.before_blocks
        # Models embed their tokens before they look at images.
        around = modules_around_blocks(self._context.blueprint, self._stacks[0])
        return (*around, manifest.embeddings)

    def take_rows(self, rows: RowFile) -> None:
        """Capture rows until there are as many as the run uses."""
        for row in _in_order(rows, self._choice):
            if len(self.writer.rows) == self._choice.total:
                return
            stop_if(self._context.should_stop, "while calibrating; a later run begins anew")
            sample = self._usable(row)
            if sample is not None and isinstance(row, Row):
                self._take(row, sample)

    def _usable(self, row: Row | BadRow) -> Sample | None:
        """The model inputs of the row; None for a row that is skipped."""
        try:
            if isinstance(row, BadRow):
                raise InvalidCalibration(row.reason)
            if len(self._stacks) > 1 and row.images and row.videos:  # the model would call the tower twice
                raise InvalidCalibration(
                    f"calibration row {row.number}: it has images and a video; while the vision tower is quantized "
                    "each needs a row of its own"
                )
            return self._collate(row)
        except TooLong:
            self._skips["too long"] += 1
        except InvalidCalibration as error:
            self._bad.append(str(error))
            refuse_too_many_bad(self._bad, self._choice.total)
        return None

    def _take(self, row: Row, sample: Sample) -> None:
        index, total = len(self.writer.rows), self._choice.total
        held_out = index < len(self._choice.held_out)
        self._resizes += sample.resized
        if held_out and row.images and len(self._to_vary) < MOST_ROWS:
            self._to_vary.append((index, row))
            self._tokens[index] = sample.input_ids
        self.writer.add(sample, self._run(sample), held_out=held_out)
        rows = self.writer.rows
        self._context.on_event(Advanced("calibrating", len(rows), total, tokens=count_tokens(rows)))

    def take_variants(self) -> None:
        """Capture held-out rows with other images.

        A variant that the model cannot take, or lays out differently, is left out without a warning: the run made
        it, not the user.
        """
        for variant in image_variants(self._to_vary):
            stop_if(self._context.should_stop, "while calibrating; a later run begins anew")
            try:
                sample = self._collate(variant.row)
                if torch.equal(sample.input_ids, self._tokens[variant.original]):
                    self.writer.add_variant(sample, self._run(sample), variant)
            except (TooLong, InvalidCalibration, NumericalFailure):
                continue

    def finish(self) -> CapturedInputs:
        """Raises InvalidCalibration when too few rows are left to fit."""
        rows, held_out = len(self.writer.rows), len(self._choice.held_out)
        if rows <= max(FEWEST_HELD_OUT, held_out):
            raise InvalidCalibration(
                f"only {rows} calibration rows can be used ({self._skips.total()} are too long, {len(self._bad)} are "
                f"unusable), and {held_out} of them are held out; give more or shorter rows"
            )
        self._skips.update(self._bad)
        return self.writer.finish(fingerprint=self._context.fingerprint, skipped=self._skips, resized=self._resizes)

    def _run(self, sample: Sample) -> tuple[Arguments, Tensor] | None:
        """Arguments and embeddings of the first stack; None for a row on which the model does not call it."""
        blueprint = self._context.blueprint
        inputs = {name: tensor.to(blueprint.device) for name, tensor in sample.inputs.items()}
        stack, *others = self._stacks
        next_module = blueprint.module(others[0]) if others else None
        try:
            arguments, embeddings = capture_arguments(
                blueprint.model, blueprint.module(stack), inputs, stack, next_module=next_module
            )
        except StackNotCalled:
            return None
        if not bool(torch.isfinite(embeddings).all()):
            source = "the vision tower" if stack.media is None else "the embedding"
            raise NumericalFailure(
                f"calibration row {sample.row}: {source}'s output is not finite in "
                f"{str(blueprint.dtype).removeprefix('torch.')}; the model overflows on this image"
            )
        return arguments, embeddings


def _in_order(rows: RowFile, choice: Choice) -> Iterator[Row | BadRow]:
    yield from rows.read(choice.held_out)
    yield from rows.read(choice.fit)
    for start in range(0, len(choice.reserve), RESERVE_AT_A_TIME):
        yield from rows.read(sorted(choice.reserve[start : start + RESERVE_AT_A_TIME]))
