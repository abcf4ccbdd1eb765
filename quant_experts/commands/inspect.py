"""``qe inspect``: what a checkpoint holds, from headers alone; or what would be quantized in a model and what not."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from quant_experts.checkpoint.read import Contents, GroupContents
    from quant_experts.report.data import QualityReport


PARTS_OF_THE_REPORT = ("quality", "baseline", "acceptance", "calibration", "images", "mixed_precision", "auto")
WIDTH_OF_A_FILE = 140
"""Columns without a terminal, where rich assumes 80 and folds the names."""


EXPERT = re.compile(r"(?<=_proj)[._]\d+$")
"""At the end of the name of a group of one expert of a mixture, and of its layer."""

DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command("inspect", short_help="Say what is in a checkpoint: bits, layers, quality.")
@click.argument("directory", metavar="OUT", required=False, type=DIRECTORY)
@click.option("--model", metavar="DIR", type=DIRECTORY, help="A model directory instead: its stacks and input groups.")
@click.option("--vision", type=click.Choice(["keep", "quantize"]), default="keep", help="With --model: its tower too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
def command(directory: Path | None, model: Path | None, vision: Literal["keep", "quantize"], as_json: bool) -> None:
    """Say what the checkpoint OUT holds.

    Reads headers, no tensors. Per input group: how many blocks have it, its layers, bit widths, group size, ranks of
    shared and routed experts, stored bits per weight.

    With --model: what would be quantized in a model that is not yet, and what would stay and why. No weights are read.
    """
    if (directory is None) == (model is None):
        raise click.UsageError("give a checkpoint OUT, or --model DIR")
    if model is not None:
        _inspect_model(model, vision, as_json)
        return
    assert directory is not None
    from quant_experts.checkpoint.read import read_contents

    contents = read_contents(directory)
    if as_json:
        click.echo(json.dumps(_as_dict(contents), indent=2))
    else:
        _print(contents)


def _inspect_model(directory: Path, vision: Literal["keep", "quantize"], as_json: bool) -> None:
    import torch

    from quant_experts.model.blueprint import open_blueprint
    from quant_experts.model.groups import plan_groups, skipped_layers
    from quant_experts.model.manifest_record import record_of

    blueprint = open_blueprint(directory, device=torch.device("cpu"))
    plans = plan_groups(blueprint.model, blueprint.manifest, vision=vision)
    record = record_of(blueprint.manifest, plans)
    record["skipped"] = skipped_layers((plan for block in plans for plan in block), blueprint.manifest)
    if as_json:
        click.echo(json.dumps(record, indent=2))
        return
    click.echo(f"{record['architecture']} · {record['quantized_weights']:,} weights in input groups")
    for stack in record["stacks"]:
        click.echo(f"{stack['name']}: {stack['blocks']}, run by {stack['module']}")
        for kind in (each for each in record["kinds"] if each["stack"] == stack["name"]):
            click.echo(f"  blocks {_ranges(kind['blocks'])}" if kind["blocks"] else "  behind the blocks")
            for line, count in Counter(map(_line, kind["groups"])).items():
                click.echo(f"    {line}" + (f", {count} experts" if count > 1 else ""))
    click.echo("left as they are:")
    for name, reason in record["skipped"].items():
        click.echo(f"  {name}: {reason}")


def _line(group: Mapping[str, Any]) -> str:
    """The same for every expert of a mixture."""
    layers, outs = " ".join(group["layers"]), "+".join(map(str, group["outs"]))
    return f"{EXPERT.sub('_*', group['name'])}: {EXPERT.sub('.*', layers)} ({group['width']} → {outs})"


def _ranges(numbers: Sequence[int]) -> str:
    """``0, 2 to 27``: numbers in order."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def _as_dict(contents: Contents) -> dict[str, object]:
    return {
        "architecture": contents.architecture,
        **{key: value for key, value in contents.quantization.items() if key != "groups"},
        "tensors": contents.tensors,
        "shards": contents.shards,
        "bytes": contents.bytes,
        "quantized_weights": contents.weights,
        "effective_bits": contents.effective_bits,
        "base_bits": contents.base_bits,
        "groups": [vars(group) for group in contents.groups],
        **{part: _part(contents.report, part) for part in PARTS_OF_THE_REPORT},
    }


def _part(report: QualityReport | None, name: str) -> object:
    return report.model_dump(mode="json")[name] if report else None


def _print(contents: Contents) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, emoji=False, width=WIDTH_OF_A_FILE)
    quantization = contents.quantization
    slots = ", ".join(f"{slot} {quantization.get(slot, '?')}" for slot in ("smoothing", "rounding", "reconstruction"))
    console.print(
        f"{contents.architecture} · {quantization['scheme']} · {quantization.get('method', '?')} ({slots})",
        soft_wrap=True,
    )
    console.print(
        f"{contents.weights:,} quantized weights at {contents.effective_bits:.2f} bits "
        f"({contents.base_bits:.2f} without experts) · "
        f"{contents.tensors} tensors, {contents.bytes:,} bytes in {contents.shards} shard(s)",
        soft_wrap=True,
    )
    console.print(f"left as they are: {', '.join(quantization.get('ignored', []))}", soft_wrap=True, markup=False)
    if contents.report:
        for line in _what_the_report_says(contents.report):
            console.print(line, soft_wrap=True, markup=False)
    table = Table(
        Column("input group", overflow="fold"),
        "blocks",
        "layers",
        "bits",
        "group",
        "shared",
        "routed",
        "per weight",
        box=None,
    )
    for kind, alike in _by_kind(contents.groups).items():
        first = alike[0]
        bits = [group.effective_bits for group in alike]
        spread = f"{min(bits):.2f}" + (f" to {max(bits):.2f}" if max(bits) - min(bits) >= 0.005 else "")
        table.add_row(
            kind,
            str(len(alike)),
            " ".join(first.layers),
            _schemes(alike),
            str(first.group_size),
            str(first.shared_rank or "–"),
            f"{first.experts} × {first.routed_rank}" if first.experts else "–",
            f"{spread} bits",
        )
    console.print(table)


def _what_the_report_says(report: QualityReport) -> Iterator[str]:
    """The verdict and what was bought; then, where they were measured, limits, data, images and mixed precision."""
    from quant_experts.report.charts import numbers
    from quant_experts.report.charts.sentences import bought, verdict

    yield verdict(report)
    if report.acceptance is not None:
        yield from (f"limit missed: {sentence}" for sentence in report.acceptance.missed)
    if report.baseline is not None and (against := bought(report)) is not None:
        yield f"against rounding alone (KL {numbers.number(report.baseline.kl)}): {against.sentence}"
    if report.calibration is not None:
        yield ": ".join([f"calibration data: {report.calibration.verdict}", *report.calibration.reasons[:1]])
    if report.images is not None:
        ratio = report.images.smallest_ratio if report.images else None
        note = "" if ratio is None else f" ({numbers.percent(ratio)} of the full-precision reaction)"
        yield f"images: {report.images.verdict.replace('_', ' ')}{note}"
    if report.mixed_precision is not None:
        mixed = report.mixed_precision
        yield (
            f"mixed precision: {len(mixed.groups)} input groups, {numbers.percent(mixed.share)} of the weights, at "
            f"{mixed.weight_bits} bits, chosen by {mixed.decided_by}"
        )
    if report.auto is not None:
        label = next((point.label for point in report.auto.points if point.chosen), "nothing")
        yield f"searched: {len(report.auto.points)} configurations, chosen {label}"


def _schemes(alike: Iterable[GroupContents]) -> str:
    """``W4A6``, or ``W4A6 25, W8A6 3`` where mixed precision kept some blocks at more bits."""
    counts = Counter(f"W{group.weight_bits}A{group.activation_bits}" for group in alike)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{scheme} {number}" for scheme, number in sorted(counts.items()))


def _by_kind(groups: Iterable[GroupContents]) -> dict[str, list[GroupContents]]:
    """The same group of every block is one line. Name with ``*`` for the block → groups."""
    kinds: dict[str, list[GroupContents]] = {}
    for group in groups:
        name = re.sub(r"\.\d+\.", ".*.", group.name)
        kinds.setdefault(EXPERT.sub("_*", name), []).append(group)
    return kinds
