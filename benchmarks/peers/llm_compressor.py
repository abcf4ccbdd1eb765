"""QE against llm-compressor on the same weights, rows and test questions: KL, wall time, and their ratios.

llm-compressor (0.14) is installed into a virtual environment of its own, beside the same torch. Its image processor
would need torchvision, so it is handed the model inputs that our collator made. Both sides quantize the linear layers
of the language model only, symmetric, with the same group size; all runs happen one after the other with the same
number of threads. SmoothQuant's strength is tried on QE's own grid and the best on the *test* questions counts, in its
favour.

    python -m benchmarks.peers.llm_compressor                 # installs what is missing, then runs
    python -m benchmarks.peers.llm_compressor --variants outlier --seeds 0 --schemes W4A8 --out /tmp/peers
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.digits.methods import COMMON, METHODS_BY_LABEL
from benchmarks.digits.reading import BATCH, encode
from benchmarks.digits.runs import HOLDOUT, PER_TASK, ROWS, VARIANTS, Bench
from benchmarks.digits.yardstick import Yardstick, compare
from benchmarks.peers.environment import install
from benchmarks.peers.tables import page
from quant_experts.calibration.collate import open_collator
from quant_experts.calibration.rows import Row
from quant_experts.calibration.samples import open_rows
from quant_experts.fit.smoothing.search import ALPHAS

OUT = Path(__file__).parents[1] / "results" / "accuracy_peers"
DIRECTORY = Path(".qe") / "peers"
PACKAGES = ("llmcompressor==0.14.*", "pillow")
RUN = Path(__file__).with_name("llm_compressor_run.py")
THEIRS = ("rtn", "gptq", "awq", *(f"smoothquant:{alpha}" for alpha in ALPHAS))
OURS = ("rtn", "smoothquant", "awq", "gptq", "qe", "qe-gptq")


def model_inputs(bench: Bench, variant: str, seed: int) -> dict[str, Any]:
    """What the peer is given: every calibration row (it holds none out), and the test questions in our batches."""
    yardstick = bench.yardstick(variant)
    collate = open_collator(bench.variant(variant), bench.config(variant))
    rows = open_rows(bench.calibration(seed), split="train")
    questions = yardstick.questions
    batches = [encode(yardstick.processor, questions[i : i + BATCH]) for i in range(0, len(questions), BATCH)]
    return {
        "calibration": [collate(row).inputs for row in rows.read(range(len(rows))) if isinstance(row, Row)],
        "test": [(batch.inputs, batch.answers) for batch in batches],
    }


def theirs(python: Path, model: Path, inputs: Path, method: str, scheme: str, yardstick: Yardstick) -> dict[str, Any]:
    """One quantization by llm-compressor, in a process of its own. Raises SystemExit with its last words."""
    output = inputs.with_name("answers.pt")
    command = [str(python), str(RUN), str(model), str(inputs), method, scheme, str(COMMON["group_size"]), str(output)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=inputs.parent)
    if done.returncode != 0:
        raise SystemExit(f"llm-compressor, {method} {scheme}, failed:\n{done.stderr[-3000:]}")
    found = torch.load(output)
    return {
        **compare(yardstick, found["logits"]),
        "seconds": found["seconds"],
        "kl_of_its_full_precision": compare(yardstick, found["full"])["kl"],
    }


def cells(python: Path, bench: Bench, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One for each variant, scheme, side and method: {variant, scheme, by, label, runs}."""
    for variant in arguments.variants:
        yardstick = bench.yardstick(variant)
        found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for seed in arguments.seeds:
            with tempfile.TemporaryDirectory(prefix="qe-peers-") as name:
                inputs = Path(name) / "inputs.pt"
                torch.save(model_inputs(bench, variant, seed), inputs)
                for scheme in arguments.schemes:
                    for method in THEIRS:
                        run = theirs(python, bench.variant(variant), inputs, method, scheme, yardstick)
                        found.setdefault((scheme, "llm-compressor", method), []).append(run)
                        _say(variant, scheme, "llm-compressor", method, seed, run)
            for scheme in arguments.schemes:
                for label in OURS:
                    if label not in METHODS_BY_LABEL:
                        continue
                    specs = METHODS_BY_LABEL[label].specs(scheme, seed, rows=bench.rows, holdout=HOLDOUT)
                    run = min((bench.run(variant, spec) for spec in specs), key=lambda run: run["calibration_kl"])
                    found.setdefault((scheme, "quant-experts", label), []).append(run)
                    _say(variant, scheme, "quant-experts", label, seed, run)
        for (scheme, by, label), runs in found.items():
            yield {"variant": variant, "scheme": scheme, "by": by, "label": label, "runs": runs}


def _say(variant: str, scheme: str, by: str, label: str, seed: int, run: dict[str, Any]) -> None:
    figures = f"KL {run['kl']:.5f}, {run['seconds']:.1f} s"
    print(f"{variant} {scheme} {by} {label} seed {seed}: {figures}", file=sys.stderr, flush=True)


def versions(python: Path) -> dict[str, str]:
    code = "import importlib.metadata as m; print(*(m.version(n) for n in ('llmcompressor', 'transformers', 'torch')))"
    done = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True)
    return dict(zip(("llmcompressor", "transformers", "torch"), done.stdout.split(), strict=True))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help="of the peer's environment")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--schemes", nargs="+", default=["W4A8", "W4A16"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--per-task", type=int, default=PER_TASK)
    parser.add_argument("--work", type=Path, default=Path(".qe") / "accuracy")
    parser.add_argument("--out", type=Path, default=OUT, help="writes OUT.md and OUT.json")
    chosen = parser.parse_args(arguments)
    chosen.directory.mkdir(parents=True, exist_ok=True)
    python = install(chosen.directory.resolve(), "llm-compressor", PACKAGES)
    bench = Bench(chosen.work.resolve(), rows=ROWS, per_task=chosen.per_task)
    found = {
        "command": "python -m benchmarks.peers.llm_compressor " + " ".join(sys.argv[1:]),
        "peer": versions(python),
        "threads": torch.get_num_threads(),
        "rows": ROWS,
        "seeds": chosen.seeds,
        "cells": list(cells(python, bench, chosen)),
    }
    text = page(found)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    chosen.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
