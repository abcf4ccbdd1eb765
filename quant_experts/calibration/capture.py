"""Run everything before the first stack's blocks once per calibration row: processor, embeddings, and the vision tower
where that is not walked itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from quant_experts.calibration.captured_inputs import Calls, CallWriter, tokens_of
from quant_experts.calibration.collate import Collate, Sample, TooLong
from quant_experts.calibration.image_variants import MOST_ROWS, Variant, image_variants
from quant_experts.calibration.rows import BadRow, Row
from quant_experts.calibration.samples import FEWEST_HELD_OUT, Choice, RowFile, refuse_too_many_bad
from quant_experts.errors import InvalidCalibration, NumericalFailure, Stopped
from quant_experts.model.block_runner import Arguments, NotCalled, capture_call
from quant_experts.model.blueprint import Blueprint, around_blocks, empty, fill
from quant_experts.model.families.stack import Stack
from quant_experts.model.manifest import Vision
from quant_experts.progress import Advanced, OnEvent, ShouldStop

RESERVE_AT_A_TIME = 8


def gather_calls(
    blueprint: Blueprint,
    rows: RowFile,
    choice: Choice,
    collate: Collate,
    *,
    work: Path,
    fingerprint: str,
    on_event: OnEvent,
    should_stop: ShouldStop,
    vision: Vision = "keep",
) -> Calls:
    """The calls of the first stack of all rows of ``choice``, in ``work``. Held-out rows come first; a row that is too
    long, or one of a few that cannot be used, is replaced from the reserve.

    Raises InvalidCalibration naming the first row when more than a tenth cannot be used, or when too few are left;
    NumericalFailure when the vision tower overflows; Stopped between rows.
    """
    stacks = blueprint.manifest.stacks(vision)
    writer = CallWriter(work, keep_inputs=len(stacks) > 1)
    skipped: Counter[str] = Counter()
    bad: list[str] = []
    resized = 0
    to_vary: list[tuple[int, Row]] = []
    tokens: dict[int, Tensor] = {}
    try:
        with _before_the_blocks(blueprint, stacks):
            for row in _in_order(rows, choice):
                if len(writer.rows) == choice.wanted:
                    break
                if should_stop():
                    raise Stopped("stopped while calibrating; a later run begins anew")
                try:
                    if isinstance(row, BadRow):
                        raise InvalidCalibration(row.reason)
                    sample = collate(row)
                except TooLong:
                    skipped["too long"] += 1
                    continue
                except InvalidCalibration as error:
                    bad.append(str(error))
                    refuse_too_many_bad(bad, choice.wanted)
                    continue
                resized += sample.resized
                held_out = len(writer.rows) < len(choice.held_out)
                if held_out and row.images and len(to_vary) < MOST_ROWS:
                    to_vary.append((len(writer.rows), row))
                    tokens[len(writer.rows)] = sample.input_ids
                writer.add(sample, _call(blueprint, stacks, sample), held_out=held_out)
                on_event(Advanced("calibrating", len(writer.rows), choice.wanted, tokens=tokens_of(writer.rows)))
            for variant in image_variants(to_vary):
                if should_stop():
                    raise Stopped("stopped while calibrating; a later run begins anew")
                _add_variant(blueprint, stacks, collate, writer, variant, tokens[variant.original])
        if len(writer.rows) <= max(FEWEST_HELD_OUT, len(choice.held_out)):
            raise InvalidCalibration(
                f"only {len(writer.rows)} calibration rows can be used ({skipped.total()} are too long, {len(bad)} are "
                f"unusable), and {len(choice.held_out)} of them are held out; give more or shorter rows"
            )
        skipped.update(bad)
        return writer.finish(fingerprint=fingerprint, skipped=skipped, resized=resized)
    finally:
        writer.discard()


def _in_order(rows: RowFile, choice: Choice) -> Iterator[Row | BadRow]:
    yield from rows.read(choice.held_out)
    yield from rows.read(choice.fit)
    for start in range(0, len(choice.reserve), RESERVE_AT_A_TIME):
        yield from rows.read(sorted(choice.reserve[start : start + RESERVE_AT_A_TIME]))


def _call(blueprint: Blueprint, stacks: Sequence[Stack], sample: Sample) -> tuple[Arguments, Tensor] | None:
    """None for a row that does not call the stack."""
    inputs = {name: tensor.to(blueprint.device) for name, tensor in sample.inputs.items()}
    stack, *others = stacks
    behind = blueprint.module(others[0]) if others else None
    try:
        arguments, embeddings = capture_call(
            blueprint.model, blueprint.module(stack), inputs, stack, next_module=behind
        )
    except NotCalled:
        return None
    if not bool(torch.isfinite(embeddings).all()):
        raise NumericalFailure(
            f"calibration row {sample.row}: {'the vision tower' if stack.media is None else 'the embedding'}'s output "
            f"is not finite in {str(blueprint.dtype).removeprefix('torch.')}; the model overflows on this image"
        )
    return arguments, embeddings


def _add_variant(
    blueprint: Blueprint,
    stacks: Sequence[Stack],
    collate: Collate,
    writer: CallWriter,
    variant: Variant,
    tokens: Tensor,
) -> None:
    """One that the model cannot take, or lays out differently, is left out: it is our row, not the user's.

    tokens: (1, tokens) int64, of the row that it was made from.
    """
    try:
        sample = collate(variant.row)
        if torch.equal(sample.input_ids, tokens):
            writer.add_variant(sample, _call(blueprint, stacks, sample), variant)
    except (TooLong, InvalidCalibration, NumericalFailure):
        return


@contextmanager
def _before_the_blocks(blueprint: Blueprint, stacks: Sequence[Stack]) -> Iterator[None]:
    """What runs before the first stack's blocks in memory; the blocks and the head are not needed."""
    needed = blueprint.manifest.before_blocks
    if len(stacks) > 1:
        # Models embed their tokens before they look at images.
        needed = (*around_blocks(blueprint, stacks[0]), blueprint.manifest.embeddings)
    for name in needed:
        fill(blueprint, name)
    try:
        yield
    finally:
        for name in needed:
            empty(blueprint, name)
