"""What a method leaves of the outputs of single blocks of the real model; writes benchmarks/results/real_rotation.md.

Each input group is fitted on what the full-precision model sends it, and measured on evaluation text.

    python -m benchmarks.real.layers --block 10
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.real.quick import _load, _plans, gather
from benchmarks.real.runs import Bench, open_bench
from quant_experts.fit.fit_group import evaluate_group, fit_group
from quant_experts.spec.specification import QuantizationSpec

OUT = Path(__file__).parents[1] / "results" / "real_rotation.md"
SCHEMES = ("W4A4", "W4A6", "W4A8", "W4A16")
METHODS: dict[str, dict[str, Any]] = {
    "gptq": {"method": "gptq"},
    "search + gptq": {"method": "gptq", "smoothing": "search", "method_version": 3},
    "rotation + gptq": {"method": "gptq", "smoothing": "rotation"},
    "balanced, version 3": {"method": "balanced", "method_version": 3},
    "balanced": {"method": "balanced"},
    "rotation + balanced": {"method": "balanced", "smoothing": "rotation"},
}
MARK, BEHIND = "<!-- layers -->", "<!-- end of layers -->"
"""Between them the page is written anew."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--block", type=int, action="append", required=True, help="repeatable")
    parser.add_argument("--scheme", action="append", choices=SCHEMES, help="default: all; repeatable")
    parser.add_argument("--rows", type=int, default=2, help="of evaluation text, every third token")
    arguments = parser.parse_args()
    bench = open_bench()
    tables = []
    for scheme in arguments.scheme or SCHEMES:
        found = {
            name: errors(bench, arguments.block, arguments.rows, QuantizationSpec.preset(scheme=scheme, **options))
            for name, options in METHODS.items()
        }
        tables.append(table(scheme, found))
        print(tables[-1], flush=True)
    command = " ".join(["python -m benchmarks.real.layers", *(shlex.quote(word) for word in sys.argv[1:])])
    before, _, rest = OUT.read_text(encoding="utf-8").partition(MARK)
    behind = rest.partition(BEHIND)[2]
    OUT.write_text(f"{before}{MARK}\n\n    {command}\n\n" + "\n".join(tables) + f"\n{BEHIND}{behind}", encoding="utf-8")


@torch.no_grad()
def errors(bench: Bench, blocks: list[int], rows: int, spec: QuantizationSpec) -> dict[str, float]:
    """Relative squared output error of each input group, by block and label."""
    observations, model = gather(bench), _load(bench)
    plans = [plan for block in blocks for plan in _plans(bench, model)[block]]
    held: dict[str, list[Tensor]] = {plan.name: [] for plan in plans}
    for plan in plans:
        first = model.get_submodule(f"{plan.parent}.{plan.layers[0]}")
        first.register_forward_pre_hook(lambda _, args, name=plan.name: held[name].append(args[0].flatten(0, 1)[::3]))
    step = max(1, len(bench.yardstick.rows) // rows)
    for row in bench.yardstick.rows[::step]:
        model.model(input_ids=torch.tensor([row["ids"]]))
    left = {}
    for plan in plans:
        weights = {layer: model.get_submodule(f"{plan.parent}.{layer}").weight.detach() for layer in plan.layers}
        observed = torch.load(observations / f"{plan.block}.pt", weights_only=False)[plan.name]
        tokens = torch.cat(held[plan.name])
        fitted = fit_group(plan.name, weights, observed, spec)
        found = evaluate_group(fitted, weights, tokens, torch.zeros(len(tokens), dtype=torch.bool))
        left[f"{plan.block} {plan.label}"] = found.error.routed
    return left


def table(scheme: str, found: dict[str, dict[str, float]]) -> str:
    groups = list(next(iter(found.values())))
    lines = [f"| {scheme} | {' | '.join(groups)} | geometric mean |", f"|---|{'---:|' * (len(groups) + 1)}"]
    for name, left in found.items():
        mean = statistics.geometric_mean(left.values())
        lines.append(f"| {name} | {' | '.join(f'{100 * each:.3f} %' for each in left.values())} | {100 * mean:.3f} % |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
