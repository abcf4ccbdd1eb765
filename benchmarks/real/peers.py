"""Other quantizers beside ours on the real model: the same weights, calibration rows, group size and evaluation tokens.

Each peer runs in an environment of its own, and says itself what its quantized model answers. Writes
benchmarks/results/real_peers.*.

    python -m benchmarks.real.peers                                    # hours on two cores; goes on where it stopped
    python -m benchmarks.real.peers --only "W4A16 AutoRound, 200 iterations" --only "W4A16 balanced"
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.environment import install
from benchmarks.peers.llm_compressor import PACKAGES
from benchmarks.real.__main__ import HOLDOUT, RUNS, write
from benchmarks.real.runs import Bench, open_bench, result
from benchmarks.real.yardstick import compare
from quant_experts.spec.specification import QuantizationSpec

OUT = Path(__file__).parents[1] / "results" / "real_peers"
SCRIPTS = Path(__file__).parents[1] / "peers"
GROUP_SIZE = 64
SCALE_BITS = 16


@dataclass(frozen=True)
class Peer:
    """``name`` of its environment; ``script`` in benchmarks/peers, which runs in it."""

    name: str
    packages: tuple[str, ...]
    script: str


AUTO_ROUND = Peer("auto-round", ("auto-round==0.16.*",), "auto_round_text.py")
LLM_COMPRESSOR = Peer("llm-compressor", PACKAGES, "llm_compressor_text.py")
THEIRS: dict[str, list[tuple[str, Peer, str]]] = {
    "W4A16": [
        ("AutoRound, 200 iterations", AUTO_ROUND, "200"),
        ("AutoRound, 20 iterations", AUTO_ROUND, "20"),
        ("llm-compressor GPTQ", LLM_COMPRESSOR, "gptq"),
        ("llm-compressor AWQ", LLM_COMPRESSOR, "awq"),
    ],
    "W4A8": [
        ("llm-compressor GPTQ", LLM_COMPRESSOR, "gptq"),
        ("llm-compressor SmoothQuant + GPTQ", LLM_COMPRESSOR, "smoothquant:0.5+gptq"),
    ],
    "W4A6": [
        ("llm-compressor GPTQ", LLM_COMPRESSOR, "gptq"),
        ("llm-compressor SmoothQuant + GPTQ", LLM_COMPRESSOR, "smoothquant:0.5+gptq"),
    ],
    "W4A4": [("llm-compressor SmoothQuant + GPTQ", LLM_COMPRESSOR, "smoothquant:0.5+gptq")],
    "W3A16": [("llm-compressor GPTQ", LLM_COMPRESSOR, "gptq")],
}
"""Scheme → (label, peer, its method)."""
OURS = {
    "W4A16": (
        "fast",
        "gptq, groups of 64",
        "balanced, without experts",
        "best, without experts",
        "balanced",
        "best",
        "budget in the place of experts",
    ),
    "W4A8": ("gptq", "balanced"),
    "W4A6": ("gptq", "balanced"),
    "W4A4": ("gptq", "balanced"),
    "W3A16": ("gptq", "balanced"),
}
"""Scheme → labels in RUNS."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="SCHEME LABEL", help="these runs; repeatable")
    parser.add_argument("--environments", type=Path, default=Path(".qe") / "peers", help="of the peers")
    parser.add_argument("--out", type=Path, default=OUT, help="without the ending")
    arguments = parser.parse_args()
    arguments.environments.mkdir(parents=True, exist_ok=True)
    bench, cells = open_bench(), []
    for scheme, label, found in _figures(bench, arguments):
        cells.append({"scheme": scheme, **found, "label": label})
        print(
            f"{scheme} {label}: {found['effective_bits']:.2f} bits, KL {found['kl']:.4f}", file=sys.stderr, flush=True
        )
        write(
            arguments.out,
            bench,
            cells,
            command=" ".join(["python -m benchmarks.real.peers", *map(shlex.quote, sys.argv[1:])]),
            seconds="calibration and fit; ours load, evaluate held-out rows, pack and verify too",
        )


def _figures(bench: Bench, arguments: argparse.Namespace) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for scheme, runs in THEIRS.items():
        for label, peer, method in runs:
            if not arguments.only or f"{scheme} {label}" in arguments.only:
                yield scheme, label, _theirs(bench, arguments.environments.resolve(), peer, method, scheme)
        for label, options in RUNS[scheme]:
            if f"{scheme} {label}" in (arguments.only or [f"{scheme} {ours}" for ours in OURS[scheme]]):
                wanted = {"scheme": scheme, "samples": 32, "holdout": HOLDOUT, **options}
                yield scheme, label, result(bench, label, QuantizationSpec.preset(**wanted))


def _theirs(bench: Bench, environments: Path, peer: Peer, method: str, scheme: str) -> dict[str, Any]:
    """The figures of a peer's run, from the work directory or made now."""
    script = SCRIPTS / peer.script
    content = json.dumps([peer.packages, method, scheme, GROUP_SIZE, script.read_text(encoding="utf-8")])
    path = bench.results / f"{hashlib.sha256(content.encode()).hexdigest()[:24]}.json"
    if not path.is_file():
        python = install(environments, peer.name, peer.packages)
        with tempfile.TemporaryDirectory(prefix="qe-peers-", dir=bench.results.parent) as name:
            request = Path(name) / "request.json"
            request.write_text(json.dumps(_request(bench, method, scheme, Path(name).resolve())), encoding="utf-8")
            done = subprocess.run(
                [str(python), str(script), str(request.resolve())],
                check=False,
                capture_output=True,
                text=True,
                cwd=name,
            )
            if done.returncode:
                raise SystemExit(f"{peer.name}, {method} {scheme}, failed:\n{done.stderr[-3000:]}")
            found = _measured(bench, Path(name), scheme)
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(found), encoding="utf-8")
        fresh.rename(path)
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return kept


def _request(bench: Bench, method: str, scheme: str, output: Path) -> dict[str, Any]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bench.prepared.model)
    lines = bench.prepared.calibration.read_text(encoding="utf-8").splitlines()
    texts = [tokenizer.apply_chat_template(json.loads(line)["messages"], tokenize=False) for line in lines]
    return {
        "model": str(bench.prepared.model.resolve()),
        "calibration": [tokenizer(text)["input_ids"] for text in texts],
        "evaluation": [row["ids"] for row in bench.yardstick.rows],
        "method": method,
        "scheme": scheme,
        "group_size": GROUP_SIZE,
        "output": str(output),
    }


def _measured(bench: Bench, directory: Path, scheme: str) -> dict[str, Any]:
    figures = json.loads((directory / "figures.json").read_text(encoding="utf-8"))
    answers = np.memmap(directory / "answers.float16", dtype=np.float16, mode="r", shape=bench.yardstick.full.shape)
    weight_bits = int(scheme[1 : scheme.index("A")])
    return {
        **compare(bench.yardstick, _rows(bench, answers)),
        **figures,
        "effective_bits": weight_bits + SCALE_BITS / GROUP_SIZE,
    }


def _rows(bench: Bench, answers: np.ndarray[Any, Any]) -> Iterator[Tensor]:
    place = 0
    for row in bench.yardstick.rows:
        tokens = len(row["ids"]) - 1
        yield torch.from_numpy(answers[place : place + tokens].astype(np.float32)).log_softmax(-1)
        place += tokens


if __name__ == "__main__":
    main()
