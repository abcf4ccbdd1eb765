"""How strongly the loss reacts to an output error on image tokens and on text tokens, for each input group.

Source: MBQ (Li et al., CVPR 2025): the mean absolute gradient of the loss with respect to a layer's output, for each
modality. The loss is the next-token cross entropy over all text: the start of the assistant's part is not stored.

Memory holds one block. First the rows run forwards, and every block's input is stored. Then autograd runs backwards
from the head, block by block. The recorded forward includes what the model does between two blocks. So the gradient
with respect to a block's input is the gradient with respect to the output of the block before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from quant_experts.calibration.captured_inputs import CapturedInputs, CapturedRow
from quant_experts.errors import NumericalFailure
from quant_experts.evaluation.next_token import text_positions
from quant_experts.fit.problem import EQUAL_WEIGHTS, ModalityWeights
from quant_experts.model.block_runner import Arguments, BlockRunner, hooked, open_block_runner
from quant_experts.model.blueprint import Blueprint, loaded
from quant_experts.model.groups import GroupPlan, block_prefix
from quant_experts.model.run_context import RunContext
from quant_experts.progress import Advanced, stop_if
from quant_experts.walk.baseline import group_layers
from quant_experts.walk.state_file import StateFile, temporary_states

CHUNK = 256
"""Positions whose logits are in memory at a time, with their gradient."""

SMALLEST = 1e-3
"""The smallest weight of a modality; the larger one is 1. Image tokens have no gradient behind the last attention, and
a weight of zero would leave their errors unbounded."""

STATES = ".gradients.states"


@dataclass
class _Magnitudes:
    """Sums of |dL/dy| and numbers of values by modality, double precision. ``factor`` undoes the row's scaling."""

    vision: Tensor
    factor: float = 1.0
    sums: tuple[float, float] = (0.0, 0.0)
    counts: tuple[int, int] = (0, 0)

    def add(self, gradient: Tensor) -> None:
        """gradient: (1, tokens, out) or (tokens, out), of one layer."""
        of_token = gradient.detach().reshape(-1, gradient.shape[-1]).abs().sum(-1, dtype=torch.float64)
        image, text = float(of_token[self.vision].sum()), float(of_token[~self.vision].sum())
        images, width = int(self.vision.sum()), gradient.shape[-1]
        self.sums = (self.sums[0] + image * self.factor, self.sums[1] + text * self.factor)
        self.counts = (self.counts[0] + images * width, self.counts[1] + (len(of_token) - images) * width)


def measure_gradients(context: RunContext, inputs: CapturedInputs) -> dict[str, ModalityWeights]:
    """Group name → the weights of both modalities, the larger one 1.

    ``context.plans``, ``inputs``: of the last stack, with the rows to measure on. The blueprint holds no more weights
    afterwards than before.
    Raises NumericalFailure naming a group whose gradient is not finite, Stopped when ``should_stop`` says so.
    """
    plans = context.plans
    streams = [str(number) for number in range(len(plans) + 1)]
    steps = 2 * len(plans) + 1
    with temporary_states(context.work / STATES, streams, inputs, inputs.rows) as states:
        passes = _Passes(context, inputs, states)
        for number in range(len(plans)):
            passes.store_output(number)
            context.on_event(Advanced("calibrating", number + 1, steps))
        passes.start_at_loss()
        context.on_event(Advanced("calibrating", len(plans) + 1, steps))
        weights: dict[str, ModalityWeights] = {}
        for number in reversed(range(len(plans))):
            weights |= passes.backwards(plans[number])
            context.on_event(Advanced("calibrating", steps - number, steps))
    return {plan.name: weights[plan.name] for block in plans for plan in block}


class _Passes:
    """The rows on their way forwards and backwards. Stream ``n`` of ``states`` holds the output of the first n blocks.

    ``gradients``: row index → gradient with respect to the output of the block before the current one, float32, CPU.
    """

    def __init__(self, context: RunContext, inputs: CapturedInputs, states: StateFile) -> None:
        self._context, self._inputs, self._states = context, inputs, states
        self._blueprint, self._device = context.blueprint, context.blueprint.device
        self._gradients: dict[int, Tensor] = {}

    def store_output(self, number: int) -> None:
        """Run the rows through block ``number``."""
        with self._block(number) as runner:
            for row in self._rows():
                if number == 0:
                    self._states.write("0", row, self._inputs.embeddings(row))
                hidden = self._states.read(str(number), row).to(self._device)
                self._states.write(str(number + 1), row, runner.run(self._arguments(row), hidden))

    def start_at_loss(self) -> None:
        """Set the gradients of the summed cross entropy with respect to the last block's output."""
        blueprint = self._blueprint
        with (
            loaded(blueprint, *blueprint.manifest.after),
            open_block_runner(blueprint.language_model, blueprint.blocks, blueprint.manifest.decoder) as runner,
        ):
            for row in self._rows():
                with torch.enable_grad():
                    hidden = self._states.read(str(blueprint.blocks), row).to(self._device).requires_grad_()
                    last = runner.run_with_gradients(self._arguments(row), hidden)
                    last_state = last.detach().requires_grad_()
                    targets, positions = text_positions(self._inputs, row, self._device)
                    for chunk in torch.split(positions, CHUNK):
                        logits = blueprint.logits(last_state[0, chunk]).float()
                        loss = nn.functional.cross_entropy(logits, targets[chunk], reduction="sum")
                        loss.backward()  # type: ignore[no-untyped-call]
                    assert last_state.grad is not None
                    self._gradients[row.index] = _through(last, last_state.grad.float(), hidden, 1.0)

    def backwards(self, block: Sequence[GroupPlan]) -> dict[str, ModalityWeights]:
        """Replace the gradients with respect to the block's output by those with respect to its input."""
        number = block[0].index
        assert number is not None, "the last stack has nothing behind its blocks"
        magnitudes = {plan.name: _Magnitudes(torch.zeros(0, dtype=torch.bool)) for plan in block}
        with self._block(number) as runner, hooked(_output_hooks(self._blueprint, block, magnitudes)):
            for row in self._rows():
                gradient = self._gradients[row.index].to(self._device)
                # float16 ends at 6e-8: the largest value is made 1 on the way through, and the sums are scaled back.
                factor = float(gradient.abs().amax()) or 1.0
                for magnitude in magnitudes.values():
                    magnitude.vision, magnitude.factor = self._inputs.vision(row).to(self._device), factor
                with torch.enable_grad():
                    hidden = self._states.read(str(number), row).to(self._device).requires_grad_()
                    output = runner.run_with_gradients(self._arguments(row), hidden)
                    self._gradients[row.index] = _through(output, gradient, hidden, factor)
        return {name: _weights(name, magnitude) for name, magnitude in magnitudes.items()}

    @contextmanager
    def _block(self, number: int) -> Iterator[BlockRunner]:
        blueprint = self._blueprint
        with (
            loaded(blueprint, block_prefix(blueprint.manifest, number)),
            open_block_runner(blueprint.language_model, number, blueprint.manifest.decoder) as runner,
        ):
            yield runner

    def _rows(self) -> Iterator[CapturedRow]:
        for row in self._inputs.rows:
            stop_if(self._context.should_stop, "while measuring gradients; a later run measures them anew")
            yield row

    def _arguments(self, row: CapturedRow) -> Arguments:
        return self._inputs.arguments(row, self._device)


def _through(output: Tensor, gradient: Tensor, hidden: Tensor, factor: float) -> Tensor:
    """gradient: with respect to ``output``; returns that with respect to ``hidden``, float32, CPU."""
    output.backward((gradient / factor).to(output.dtype))  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    return hidden.grad.float().cpu() * factor


def _output_hooks(
    blueprint: Blueprint, block: Sequence[GroupPlan], magnitudes: dict[str, _Magnitudes]
) -> Iterator[RemovableHandle]:
    """Hooks that add the gradient of each layer's output to its group's magnitudes."""
    for plan in block:
        add = magnitudes[plan.name].add

        def watch(module: nn.Module, args: tuple[Any, ...], output: Tensor, add: Any = add) -> None:
            output.register_hook(add)  # type: ignore[no-untyped-call]

        yield from (layer.register_forward_hook(watch) for layer in group_layers(blueprint, plan))


def _weights(name: str, magnitude: _Magnitudes) -> ModalityWeights:
    means = [total / count if count else None for total, count in zip(magnitude.sums, magnitude.counts, strict=True)]
    means_there = [mean for mean in means if mean is not None]
    if not all(mean < float("inf") for mean in means_there):
        raise NumericalFailure(
            f"input group {name}: the gradient of the loss is not finite; the model overflows on this calibration data "
            "(try bfloat16 or float32 weights, or another smoothing than mbq)"
        )
    largest = max(means_there, default=0.0)
    if largest == 0.0 or len(means_there) < 2:
        return EQUAL_WEIGHTS
    vision, text = (max(mean / largest, SMALLEST) for mean in means_there)
    return ModalityWeights(vision=vision, text=text)
