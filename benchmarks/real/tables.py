"""The figures of the real model as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.digits.intervals import paired_ratio

LEGEND = """\
KL: nats per token to the full-precision model on the evaluation text, mean over rows. "/ first": that KL over the one
in the first line on the same rows, with the 95 % interval of a paired bootstrap over rows: below 1, closer to full
precision. Top-1: tokens whose likeliest successor is the same. Bits: stored per quantized weight, all included. CPU:
seconds of all cores for"""


def page(cells: Sequence[dict[str, Any]], full: dict[str, Any], environment: dict[str, Any]) -> str:
    lines = [
        "# Accuracy on a real pretrained language model",
        "",
        f"    {environment['command']}",
        "",
        f"SmolLM2-135M-Instruct from `{environment['package']}`, float32; {environment['rows']} calibration rows of "
        f"Debian's documentation, {environment['tokens']} tokens of other documents to evaluate "
        f"({environment['kinds']}); "
        f"{environment['machine']}, Python {environment['python']}, torch {environment['torch']}, transformers "
        f"{environment['transformers']}. Full precision: perplexity {full['perplexity']:.2f}.",
        "",
        f"{LEGEND} {environment['seconds']}.",
        "",
    ]
    for scheme in dict.fromkeys(cell["scheme"] for cell in cells):
        chosen = [cell for cell in cells if cell["scheme"] == scheme]
        lines += [f"## {scheme}", "", *_table(chosen), ""]
    return "\n".join(lines)


def _table(cells: Sequence[dict[str, Any]]) -> list[str]:
    reference = cells[0]["kl_of_rows"]
    rows = [
        "| method | bits | KL | / first | top-1 | perplexity | CPU s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for cell in cells:
        rows.append(
            f"| {cell['label']} | {cell['effective_bits']:.2f} | {cell['kl']:.4f} | "
            f"{_ratio(cell['kl_of_rows'], reference)} | {cell['top1']:.3f} | {cell['perplexity']:.2f} | "
            f"{cell['cpu_seconds']:.0f} |"
        )
    return rows


def _ratio(rows: list[float], reference: list[float]) -> str:
    if rows == reference:
        return ""
    ratio, low, high = paired_ratio([rows], [reference])
    return f"{ratio:.2f} [{low:.2f}, {high:.2f}]"
