"""Walk a model block by block, so that memory is one block and not one model (method.md, section 7).

For each decoder block: read it, run it in full precision to observe its groups, fit them, run it rounded to nearest for
the baseline, put the quantized layers in place, run it again for the next block's inputs, write everything down, forget
it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from quant_experts.baseline import is_baseline, run_baseline
from quant_experts.blueprint import Blueprint, empty, fill
from quant_experts.calls import Calls
from quant_experts.chain import (
    FinishedBlock,
    HiddenStates,
    block_file,
    chain_file,
    commit_block,
    finished_prefix,
    write_chain,
)
from quant_experts.checkpoint.layout import install_group
from quant_experts.errors import Stopped
from quant_experts.fit_in_block import fit_in_block
from quant_experts.groups import GroupPlan, block_prefix
from quant_experts.modeling_quant_experts import dequantized_weights
from quant_experts.observe import observe_block, run_rows
from quant_experts.progress import BlockFinished, GroupFitted, OnEvent, ShouldStop, WrittenFile
from quant_experts.report import BlockReport
from quant_experts.tensor_file import write_tensors
from quant_experts.treatment import Treatment

KEPT_CHAINS = 2
"""Hidden states of this many blocks stay on disk: should the newest be damaged, the walk goes back one block, not to
the beginning."""


@dataclass
class _Clock:
    """Seconds per phase of one block."""

    started: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - start, 3)

    @property
    def total(self) -> float:
        return round(time.monotonic() - self.started, 3)


def walk(
    blueprint: Blueprint,
    plans: Sequence[Sequence[GroupPlan]],
    calls: Calls,
    treatment: Treatment,
    *,
    work: Path,
    fingerprint: str,
    on_event: OnEvent,
    should_stop: ShouldStop,
    keep_superseded: bool = False,
) -> list[FinishedBlock]:
    """Quantize every block that ``work`` does not hold finished; all of them, in order.

    Emits BlockFinished for each, and GroupFitted for each group that is fitted now. When ``on_event`` returns from a
    BlockFinished its ``superseded`` files are deleted, unless ``keep_superseded`` leaves that to a caller who reads
    them in his own time.
    Raises Stopped when ``should_stop`` says so, NumericalFailure and InvalidModel naming what failed.
    """
    finished = finished_prefix(work, len(plans), fingerprint)
    for block in finished:
        # What was superseded since is gone, and no resume will ask for it.
        there = tuple(file for file in block.files if (work / file.name).is_file())
        on_event(_event(replace(block, files=there), len(plans), superseded=(), resumed=True))
    for number in range(len(finished), len(plans)):
        if should_stop():
            raise Stopped(f"stopped before block {number}; a later run goes on from there")
        block = _walk_block(blueprint, plans, number, calls, treatment, work, fingerprint, on_event, should_stop)
        finished.append(block)
        superseded = _superseded(work, number)
        on_event(_event(block, len(plans), superseded=superseded, resumed=False))
        for name in () if keep_superseded else superseded:
            (work / name).unlink(missing_ok=True)
    return finished


def _walk_block(
    blueprint: Blueprint,
    plans: Sequence[Sequence[GroupPlan]],
    number: int,
    calls: Calls,
    treatment: Treatment,
    work: Path,
    fingerprint: str,
    on_event: OnEvent,
    should_stop: ShouldStop,
) -> FinishedBlock:
    clock = _Clock()
    prefix = block_prefix(blueprint.family, number)
    hidden = HiddenStates(work, calls, number)
    with clock.phase("read"):
        fill(blueprint, prefix)
    with clock.phase("observe"):
        observed, full = observe_block(blueprint, plans[number], calls, hidden, treatment.spec, should_stop)
    groups = []
    for plan in plans[number]:
        with clock.phase("fit"):
            groups.append(fit_in_block(blueprint, plan, observed.pop(plan.name), treatment))
        on_event(GroupFitted(number, len(plans), groups[-1].report))
        if should_stop():
            raise Stopped(f"stopped inside block {number}; a later run begins it anew")
    entries = [group.entry for group in groups]
    tensors = _block_tensors(blueprint, plans[number], prefix)
    baseline = {}
    if not is_baseline(treatment.spec):
        with clock.phase("baseline"):
            baseline = run_baseline(blueprint, plans[number], entries, calls, hidden, should_stop)
    with clock.phase("forward"):
        for group in groups:
            install_group(blueprint.model, group.entry, group.tensors)
            tensors.update(group.tensors)
        chain = _write_outputs(blueprint, plans, number, calls, hidden, full, baseline, work, should_stop)
    with clock.phase("write"):
        file = _write_block(work, number, tensors)
    _forget(blueprint, prefix)
    report = BlockReport(
        block=number,
        seconds=clock.total,
        seconds_by_phase=dict(clock.seconds),
        groups=[group.report for group in groups],
    )
    return commit_block(
        work,
        report=report,
        groups=entries,
        bits=(sum(group.bits[0] for group in groups), sum(group.bits[1] for group in groups)),
        files=(file, chain, *(calls.files if number == 0 else ())),
        fingerprint=fingerprint,
    )


def _block_tensors(blueprint: Blueprint, plans: Sequence[GroupPlan], prefix: str) -> dict[str, Tensor]:
    """What stays as it is in the block: norms, biases. On the CPU, under in-memory names."""
    replaced = {f"{plan.parent}.{layer}.weight" for plan in plans for layer in plan.layers}
    kept = (name for name in blueprint.weights.names_under(prefix) if name not in replaced)
    return {name: blueprint.model.get_parameter_or_buffer(name).detach().cpu() for name in kept}


def _write_outputs(
    blueprint: Blueprint,
    plans: Sequence[Sequence[GroupPlan]],
    number: int,
    calls: Calls,
    hidden: HiddenStates,
    full: dict[int, Tensor],
    baseline: dict[int, Tensor],
    work: Path,
    should_stop: ShouldStop,
) -> WrittenFile:
    """Run the quantized block. After the last one nobody looks at the rows that were fitted on."""
    rows = (*(calls.rows if number + 1 < len(plans) else calls.held_out), *calls.variants)
    with dequantized_weights(blueprint.model.get_submodule(block_prefix(blueprint.family, number))):
        outputs = run_rows(blueprint, number, calls, rows, hidden.quantized, should_stop)
        return write_chain(work, number, calls, rows, outputs, full, baseline)


def _write_block(work: Path, number: int, tensors: dict[str, Tensor]) -> WrittenFile:
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in sorted(tensors.items())}
    written = write_tensors(work / block_file(number), layout, sorted(tensors.items()))
    return WrittenFile(block_file(number), written.bytes, written.sha256)


def _forget(blueprint: Blueprint, prefix: str) -> None:
    """Drop the block's tensors, the quantized ones included."""
    empty(blueprint, prefix)
    if blueprint.device.type == "cuda":
        torch.cuda.empty_cache()


def _superseded(work: Path, number: int) -> tuple[str, ...]:
    old = (chain_file(block) for block in range(number - KEPT_CHAINS + 1))
    return tuple(name for name in old if (work / name).is_file())


def _event(block: FinishedBlock, blocks: int, *, superseded: tuple[str, ...], resumed: bool) -> BlockFinished:
    return BlockFinished(
        block=block.block,
        blocks=blocks,
        seconds=block.report.seconds,
        seconds_by_phase=block.report.seconds_by_phase,
        groups=tuple(block.report.groups),
        files=block.files,
        superseded=superseded,
        resumed=resumed,
    )
