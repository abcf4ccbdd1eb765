"""A mixture whose experts matter: SmolLM2 with its MLPs split into experts, quantized by several methods.

Every MLP becomes two halves of its channels, and every half two experts with the same weights. The router sends a token
to one of the two experts of each half, by the side of a random plane that the token lies on. So the mixture computes
what the dense model computes, each token takes two of four experts, and each expert sees its own tokens. Its KL to the
dense model is what quantization costs. Writes benchmarks/results/mixture.md.

    python -m benchmarks.mixture
    python -m benchmarks.mixture --only "W4A16 rtn"
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.digits.intervals import paired_ratio
from benchmarks.real.prepare import WORK, Prepared, prepare
from benchmarks.real.runs import Bench, result
from benchmarks.real.yardstick import Yardstick, measure, open_yardstick
from quant_experts.seeding import generator
from quant_experts.spec.specification import QuantizationSpec

OUT = Path(__file__).parent / "results" / "mixture"
HALVES, COPIES = 2, 2
LOGIT = 1e-3
"""Scale of the router: its softmax over the chosen experts is even to about so much."""
CALIBRATION_ROWS, EVALUATION_ROWS = 8, 8
RUNS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("W4A16", "rtn", {"method": "rtn"}),
    ("W4A16", "gptq", {"method": "gptq", "weight_grid": "max"}),
    ("W4A16", "fast", {"method": "fast"}),
    ("W4A16", "gptq, searched scales", {"method": "gptq"}),
    ("W4A16", "balanced (default)", {"method": "balanced"}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="SCHEME LABEL", help="these runs; repeatable")
    arguments = parser.parse_args()
    bench = open_bench()
    cells = []
    for scheme, label, options in RUNS:
        if arguments.only and f"{scheme} {label}" not in arguments.only:
            continue
        found = result(bench, label, QuantizationSpec.preset(**options, scheme=scheme))
        cells.append({"scheme": scheme, **found})
        print(
            f"{scheme} {label}: {found['effective_bits']:.2f} bits, KL {found['kl']:.4f}", file=sys.stderr, flush=True
        )
        OUT.with_suffix(".md").write_text(page(cells, json.loads((bench.results / "grown.json").read_text())))


def open_bench(work: Path = WORK) -> Bench:
    """The grown model beside the dense one, the first rows of its texts, and the dense model's answers to them."""
    dense = prepare(work)
    grown = Prepared(work / "mixture", work / "mixture.jsonl", dense.evaluation)
    results = work / "mixture.results"
    results.mkdir(exist_ok=True)
    lines = dense.calibration.read_text(encoding="utf-8").splitlines()[:CALIBRATION_ROWS]
    grown.calibration.write_text("\n".join(lines) + "\n", encoding="utf-8")
    full = open_yardstick(dense.evaluation, dense.model)
    bench = Bench(grown, Yardstick(full.rows[:EVALUATION_ROWS], full.full), results)
    if not (results / "grown.json").is_file():
        model = grow(dense.model, grown.model)
        (results / "grown.json").write_text(json.dumps(measure(bench.yardstick, model)), encoding="utf-8")
    return bench


@torch.no_grad()
def grow(dense: Path, directory: Path) -> Any:
    """Write the mixture made of the Llama in ``dense``, and return it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM

    source = AutoModelForCausalLM.from_pretrained(dense)
    config = source.config
    model = MixtralForCausalLM(
        MixtralConfig(
            **{name: getattr(config, name) for name in COPIED},
            intermediate_size=config.intermediate_size // HALVES,
            num_local_experts=HALVES * COPIES,
            num_experts_per_tok=HALVES,
            sliding_window=None,
        )
    ).eval()
    mine = model.state_dict()
    kept = {name: tensor for name, tensor in source.state_dict().items() if ".mlp." not in name}
    missing = set(model.load_state_dict(kept, strict=False).missing_keys)
    assert all(".mlp." in name for name in missing), missing
    for number, block in enumerate(source.model.layers):
        prefix = f"model.layers.{number}.mlp"
        mine[f"{prefix}.gate.weight"].copy_(_router(config.hidden_size, number))
        gate, up = (_halves(layer.weight) for layer in (block.mlp.gate_proj, block.mlp.up_proj))
        mine[f"{prefix}.experts.gate_up_proj"].copy_(torch.cat([gate, up], dim=1))
        mine[f"{prefix}.experts.down_proj"].copy_(HALVES * _halves(block.mlp.down_proj.weight.t()).transpose(1, 2))
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(dense).save_pretrained(directory)
    return model


COPIED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def _halves(weight: Tensor) -> Tensor:
    """weight: (channels, d); returns (experts, channels / HALVES, d): the copies of a half follow one another."""
    return torch.stack(weight.chunk(HALVES)).repeat_interleave(COPIES, dim=0)


def _router(width: int, block: int) -> Tensor:
    """(experts, d): of each half one plane, and the two sides of it."""
    planes = torch.randn(HALVES, width, generator=generator(0, f"block {block}", "mixture"))
    return (LOGIT / math.sqrt(width)) * torch.stack([planes, -planes], dim=1).flatten(0, 1)


def page(cells: list[dict[str, Any]], grown: dict[str, Any]) -> str:
    lines = [
        "# A mixture of experts grown from a real language model",
        "",
        "    python -m benchmarks.mixture",
        "",
        f"SmolLM2-135M-Instruct with each MLP split into {HALVES} halves of {COPIES} experts each; a token takes one "
        f"expert of each half, and an expert sees about half of the tokens. {CALIBRATION_ROWS} calibration rows, "
        f"{grown['tokens']} tokens to evaluate, float32, torch {torch.__version__.partition('+')[0]}. KL: nats per "
        f'token to the dense model; of the mixture in full precision it is {grown["kl"]:.1e}. "/ first": that '
        "KL over the one in the first line on the same rows, with the 95 % interval of a paired bootstrap. "
        "Bits: stored per quantized weight, all included. An expert of the mixture has one adapter of its own.",
        "",
        "| scheme | method | KL | / first | top-1 | bits per weight |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for cell in cells:
        ratio, low, high = paired_ratio([cell["kl_of_rows"]], [cells[0]["kl_of_rows"]])
        lines.append(
            f"| {cell['scheme']} | {cell['label']} | {cell['kl']:.4f} | {ratio:.2f} ({low:.2f} to {high:.2f}) | "
            f"{cell['top1']:.1%} | {cell['effective_bits']:.2f} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
