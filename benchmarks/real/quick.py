"""The same comparison at a fraction of the cost: the full-precision model is observed once, for all methods.

A run of the library fits each block on the inputs that the quantized blocks before it leave, as
``python -m benchmarks.real`` does. Here a method costs its fit and one pass over the evaluation text. Writes
benchmarks/results/real_quick.md.

    python -m benchmarks.real.quick
    python -m benchmarks.real.quick --only "W4A16 gptq" --every 2
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.real.__main__ import RUNS, write
from benchmarks.real.runs import Bench, open_bench, source
from benchmarks.real.yardstick import every_nth
from quant_experts.checkpoint.layout import group_config, group_tensors, install_group, stored_bits
from quant_experts.fit.fit_group import fit_group
from quant_experts.fit.statistics import GroupStatistics, Observation, channel_importance
from quant_experts.forward.modeling_quant_experts import dequantized_weights
from quant_experts.model.groups import GroupPlan, plan_groups
from quant_experts.model.manifest import manifest_of
from quant_experts.spec.specification import QuantizationSpec

OUT = Path(__file__).parents[1] / "results" / "real_quick"
RESERVOIR = 4096
IMPORTANT = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="SCHEME LABEL", help="these runs; repeatable")
    parser.add_argument("--out", type=Path, default=OUT, help="without the ending")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="evaluate every Nth row")
    arguments = parser.parse_args()
    bench = open_bench()
    observations = gather(bench)
    bench = replace(bench, yardstick=every_nth(bench.yardstick, arguments.every))
    command = " ".join(["python -m benchmarks.real.quick", *(shlex.quote(word) for word in sys.argv[1:])])
    cells = []
    for scheme, label, options in ((scheme, *run) for scheme, runs in RUNS.items() for run in runs):
        if arguments.only and f"{scheme} {label}" not in arguments.only:
            continue
        spec = QuantizationSpec.preset(**{"scheme": scheme, **options})
        if spec.budget is not None:
            continue  # it is spent by what ``python -m benchmarks.real`` measures of every group
        found = result(bench, observations, spec)
        cells.append({"scheme": scheme, "label": label, **found})
        print(
            f"{scheme} {label}: {found['effective_bits']:.2f} bits, KL {found['kl']:.4f}", file=sys.stderr, flush=True
        )
        write(arguments.out, bench, cells, command=command, seconds="the fit alone")


@torch.no_grad()
def gather(bench: Bench) -> Path:
    """Observations of every input group, one file for each block."""
    from transformers import AutoTokenizer

    directory = bench.results.parent / "observations"
    if (directory / ".done").is_file():
        return directory
    directory.mkdir(exist_ok=True)
    model, tokenizer = _load(bench), AutoTokenizer.from_pretrained(bench.prepared.model)
    lines = bench.prepared.calibration.read_text(encoding="utf-8").splitlines()
    rows = [tokenizer.apply_chat_template(json.loads(line)["messages"], tokenize=False) for line in lines]
    statistics = {plan.name: _statistics(model, plan) for block in _plans(bench, model) for plan in block}
    for block in _plans(bench, model):
        for plan in block:
            first = model.get_submodule(f"{plan.parent}.{plan.layers[0]}")
            first.register_forward_pre_hook(_gathering(statistics[plan.name]))
    for text in rows:
        model.model(input_ids=torch.tensor([tokenizer(text)["input_ids"]]))
    for number, block in enumerate(_plans(bench, model)):
        torch.save({plan.name: statistics.pop(plan.name).finish() for plan in block}, directory / f"{number}.pt")
    (directory / ".done").touch()
    return directory


def result(bench: Bench, observations: Path, spec: QuantizationSpec) -> dict[str, Any]:
    """The figures of one fit, from the work directory or made now."""
    content = json.dumps(["quick", spec.model_dump(mode="json"), source(), len(bench.yardstick.rows)], sort_keys=True)
    path = bench.results / f"{hashlib.sha256(content.encode()).hexdigest()[:24]}.json"
    if not path.is_file():
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(_run(bench, observations, spec)), encoding="utf-8")
        fresh.rename(path)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@torch.no_grad()
def _run(bench: Bench, observations: Path, spec: QuantizationSpec) -> dict[str, Any]:
    from benchmarks.real.yardstick import measure

    started = time.process_time()
    model = _load(bench)
    bits = weights = 0
    for number, block in enumerate(_plans(bench, model)):
        found: dict[str, Observation] = torch.load(observations / f"{number}.pt", weights_only=False)
        for plan in block:
            layers = {layer: model.get_submodule(f"{plan.parent}.{layer}").weight.detach() for layer in plan.layers}
            fitted = fit_group(plan.name, layers, found[plan.name], spec)
            tensors = group_tensors(fitted, plan, dtype=torch.bfloat16)
            install_group(model, group_config(fitted, plan, dtype=torch.float32), tensors)
            bits, weights = bits + stored_bits(tensors)[0], weights + plan.weights
    seconds = time.process_time() - started
    with dequantized_weights(model):
        measured = measure(bench.yardstick, model)
    return {**measured, "effective_bits": bits / weights, "cpu_seconds": seconds, "spec": spec.model_dump(mode="json")}


def _load(bench: Bench) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(bench.prepared.model, dtype=torch.float32).eval()


def _plans(bench: Bench, model: nn.Module) -> list[list[GroupPlan]]:
    return plan_groups(model, manifest_of(model))


def _statistics(model: nn.Module, plan: GroupPlan) -> GroupStatistics:
    stacked = torch.cat([model.get_submodule(f"{plan.parent}.{layer}").weight for layer in plan.layers])
    importance = channel_importance(stacked)
    options = {"important_channels": IMPORTANT, "reservoir": RESERVOIR, "seed": 0, "device": "cpu"}
    return GroupStatistics(plan.name, plan.width, importance, **options)


def _gathering(statistics: GroupStatistics) -> Any:
    def gather_input(module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].reshape(-1, args[0].shape[-1])
        statistics.update(x, torch.zeros(len(x), dtype=torch.bool))

    return gather_input


if __name__ == "__main__":
    main()
