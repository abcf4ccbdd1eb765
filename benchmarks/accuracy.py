"""Accuracy of every method on a trained vision-language model: methods x schemes, on two variants of it.

The model (benchmarks/digits) reads handwritten digits on coloured boards. Each run goes through
``quant_experts.run.quantize`` with rows of training digits; the written checkpoint is loaded with transformers and
asked about held-out digits, the same ones for all. First measure is KL of answer tokens to the full-precision model.
Results are kept below ``--work`` run by run: an interrupted benchmark, started again, goes on.

    python -m benchmarks.accuracy                      # methods and ablations -> benchmarks/results/accuracy.md, .json
    python -m benchmarks.accuracy --quick --out /tmp/accuracy
    python -m benchmarks.accuracy --schemes W4A6 --methods rtn qe --seeds 0 1 2 3 4 --no-ablations
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.digits import REPOSITORY
from benchmarks.digits.methods import SCHEMES, STRESS, Method, ablations, methods
from benchmarks.digits.runs import HOLDOUT, PER_TASK, ROWS, VARIANTS, Bench
from benchmarks.digits.tables import ablation_tables, method_tables
from quant_experts.spec.specification import QuantizationSpec

OUT = Path(__file__).parent / "results" / "accuracy"
WORK = Path(".qe") / "accuracy"
ABLATION_SCHEMES = ("W4A6", "W3A4")
ABLATION_VARIANT = "outlier"

Job = tuple[Bench, str, QuantizationSpec]


def collect(
    bench: Bench,
    variant: str,
    scheme: str,
    method: Method,
    seeds: Sequence[int],
    result: Callable[[Job], dict[str, Any]],
) -> list[dict[str, Any]]:
    """One result per seed. Of several candidates, the one with the smallest KL on held-out calibration rows."""
    chosen = []
    for seed in seeds[:1] if method.one_seed else seeds:
        tried = [
            result((replace(bench, grouped=method.grouped), variant, spec))
            for spec in method.specs(scheme, seed, rows=bench.rows, holdout=HOLDOUT)
        ]
        chosen.append(min(tried, key=lambda found: found["calibration_kl"]))
    return chosen


def run(job: Job) -> dict[str, Any]:
    bench, variant, spec = job
    return bench.result(variant, spec)


def fill(jobs: Sequence[Job], processes: int) -> None:
    """Make what is missing. ``processes``: at a time, one thread each."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for done, (job, found) in enumerate(zip(jobs, pool.map(run, jobs), strict=True), start=1):
            _, variant, spec = job
            print(
                f"{done}/{len(jobs)} {variant} {spec.scheme} {spec.method} seed {spec.seed}: KL {found['kl']:.5f}",
                file=sys.stderr,
                flush=True,
            )


def benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every figure: ``methods`` and ``ablations`` are lists of cells {variant, scheme, label, stored, runs}."""
    bench = Bench(arguments.work, rows=arguments.rows, per_task=arguments.per_task)
    wanted = [m for m in methods() if arguments.methods is None or m.label in arguments.methods]
    tables = {"methods": [(v, s, m) for v in arguments.variants for s in arguments.schemes for m in wanted]}
    schemes = [scheme for scheme in ABLATION_SCHEMES if scheme in arguments.schemes]
    tables["ablations"] = (
        [(ABLATION_VARIANT, s, m) for s in schemes for m in ablations()] if arguments.ablations else []
    )
    jobs: dict[Job, None] = {}

    def note(job: Job) -> dict[str, Any]:
        jobs.setdefault(job)
        return {"calibration_kl": 0.0}

    for cells in tables.values():
        for variant, scheme, method in cells:
            collect(bench, variant, scheme, method, arguments.seeds, note)
    for variant in arguments.variants:
        bench.calibration(arguments.seeds[0])
        bench.variant(variant)
    fill(list(jobs), arguments.processes)
    found: dict[str, Any] = {
        name: [
            {
                "variant": variant,
                "scheme": scheme,
                "label": method.label,
                "stored": method.stored,
                "runs": collect(bench, variant, scheme, method, arguments.seeds, run),
            }
            for variant, scheme, method in cells
        ]
        for name, cells in tables.items()
    }
    found["full_precision"] = {variant: bench.full_precision(variant) for variant in arguments.variants}
    return found


def environment(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "command": "python -m benchmarks.accuracy " + " ".join(sys.argv[1:]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "processes": arguments.processes,
        "calibration_rows": arguments.rows,
        "test_questions_per_task": arguments.per_task,
        "seeds": list(arguments.seeds),
        "trained_model": json.loads((REPOSITORY / "metrics.json").read_text(encoding="utf-8")),
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    labels = [method.label for method in methods()]
    parser.add_argument("--schemes", nargs="+", default=[*SCHEMES, *STRESS])
    parser.add_argument("--methods", nargs="+", choices=labels, help="labels of the table; default: all")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=ROWS, help="calibration rows")
    parser.add_argument("--per-task", type=int, default=PER_TASK, help="test questions of each task")
    parser.add_argument("--ablations", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--processes", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--work", type=Path, default=WORK, help="finished runs are kept here")
    parser.add_argument("--out", type=Path, default=OUT, help="writes OUT.md and OUT.json")
    parser.add_argument(
        "--quick", action="store_true", help="one seed, two schemes, four methods: a look at the format"
    )
    chosen = parser.parse_args(arguments)
    if chosen.quick:
        chosen.schemes, chosen.seeds, chosen.variants = ["W4A6", "W3A4"], [0], ["outlier"]
        chosen.methods = chosen.methods or ["rtn", "aser", "qe"]
        chosen.ablations = False
    return chosen


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = parse(arguments)
    found = {"environment": environment(chosen), **benchmark(chosen)}
    text = method_tables(found) + (ablation_tables(found) if found["ablations"] else "")
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    chosen.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
