"""``qe plan`` on a service, which stores the plan for a day; ``qe submit --plan`` runs it by its digest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import click

from quant_experts.client import Plan, PlanView
from quant_experts.client.views.plans import Estimate, GroupKind, WorkerFit
from quant_experts.commands.display.plan_text import (
    PlacementText,
    PlanText,
    QuantizedLayers,
    SkippedLayers,
    Tokens,
    refusal,
    sentences,
    stack_title,
    warning,
)
from quant_experts.commands.options.job import rows_of, task_before_upload, uploaded_task
from quant_experts.commands.service_client import connected, print_json
from quant_experts.planning.number_text import size_text


def plan_on_service(
    *,
    model: str,
    revision: str | None,
    calibration: str,
    split: str | None,
    body: dict[str, Any],
    task: dict[str, Any] | None,
    as_json: bool,
    url: str | None,
) -> bool:
    """Print the plan; whether the job would be accepted."""
    with connected(url) as client:

        def plan_with(rows: str, evaluation: dict[str, Any] | None) -> Plan:
            fields: dict[str, Any] = {"model": model, "revision": revision, "split": split, **body}
            return client.jobs.plan(calibration=rows, evaluation=evaluation, **fields)

        rows = rows_of(client, calibration, ask=lambda rows: plan_with(rows, task_before_upload(task)))
        plan = plan_with(rows, uploaded_task(client, task))
    if as_json:
        print_json(plan)
    else:
        for line in _lines(plan):
            click.echo(line)
        if plan.accepted:
            click.echo(f"Run exactly this: qe submit --plan {plan.digest}", err=True)
    return plan.accepted


def _lines(plan: PlanView) -> Iterator[str]:
    commit = plan.resolved.model_commit
    model = f"{plan.model.id} at {commit[:12]}" if commit else plan.model.id
    if plan.estimate is not None:
        yield from sentences(_told(model, plan.estimate))
    elif plan.accepted:
        yield f"{model}: the service cannot read it, only its workers can: sizes and times are not known beforehand"
    for one in plan.warnings:
        yield warning(one.detail)
    yield "workers:" if plan.workers else "workers: none is alive, the job would wait"
    for kind in plan.workers:
        yield f"  {_worker(kind)}"
    for each in plan.refusals:
        yield refusal(each.code, f"{each.detail} ({each.pointer})" if each.pointer else each.detail)
    yield f"plan {plan.digest}, kept until {plan.expires_at:%Y-%m-%d %H:%M} UTC"


def _worker(kind: WorkerFit) -> str:
    memory = [size_text(kind.memory_bytes)] if kind.memory_bytes else []
    memory += [f"{size_text(kind.device_memory_bytes)} on the device"] if kind.device_memory_bytes else []
    what = f"{kind.workers} × {kind.device}" + (f" ({', '.join(memory)})" if memory else "")
    if kind.fits:
        return f"{what}: can run it"
    return f"{what}: {'cannot run it' if kind.fits is False else 'may run it'}: {kind.reason or 'nothing is known'}"


def _told(model: str, estimate: Estimate) -> PlanText:
    blocks = Counter(each.stack for each in estimate.size.blocks if each.index is not None)
    return PlanText(
        model=f"{model}, {estimate.model_type}" if estimate.model_type else model,
        blocks=estimate.blocks,
        weights=estimate.quantized_weights,
        quantized=[_kind(each, blocks) for each in estimate.quantized],
        skipped=[SkippedLayers(each.name, each.layers, each.weights, each.reason) for each in estimate.skipped],
        exact=estimate.size.exact,
        before=estimate.size.bytes_before,
        after=estimate.size.bytes_after,
        bits=estimate.size.effective_bits,
        tokens=Tokens(estimate.rows.tokens_per_row, estimate.rows.tokens_counted, estimate.rows.tokens_off_by),
        placements=[
            PlacementText(
                each.device,
                each.peak_device_bytes,
                each.peak_host_bytes,
                each.peak_phase,
                each.seconds.least,
                each.seconds.likely,
                each.seconds.most,
            )
            for each in estimate.placements
        ],
        disk=estimate.disk_bytes,
    )


def _kind(kind: GroupKind, blocks: Counter[str | None]) -> QuantizedLayers:
    stack = None if kind.stack is None else stack_title(kind.stack, None if kind.behind else blocks[kind.stack])
    return QuantizedLayers(stack, kind.name.rpartition(".")[2], kind.layers, kind.width, kind.outs)
