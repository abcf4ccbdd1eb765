"""One decoder block of Qwen2-VL-7B shapes through observe and fit on a GPU, beside the CPU.

Seeded weights and activations with a long tail of channels. Reports seconds by phase and peak device memory per input
group, and how far the held-out errors of the two devices are apart.

    python -m benchmarks.gpu_block --output gpu_block.md    # needs CUDA
    python -m benchmarks.gpu_block --shrink 16 --devices cpu                     # tries the script itself, any machine
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from quant_experts.fit.fit_group import evaluate_group, fit_group
from quant_experts.fit.statistics import GroupStatistics, channel_importance
from quant_experts.spec.specification import QuantizationSpec

GROUPS = {
    "self_attn.qkv": (3584, {"q_proj": 3584, "k_proj": 512, "v_proj": 512}),
    "self_attn.o": (3584, {"o_proj": 3584}),
    "mlp.gate_up": (3584, {"gate_proj": 18944, "up_proj": 18944}),
    "mlp.down": (18944, {"down_proj": 3584}),
}
"""Input group → (input width, output width of each layer) of Qwen2-VL-7B."""

HELD_OUT = 512


@dataclass(frozen=True)
class Measured:
    """Seconds of observe and fit, peak memory of the device in bytes, error of the final stage."""

    observe: float
    fit: float
    peak: int
    error: float


def measure(name: str, device: str, *, tokens: int, shrink: int) -> Measured:
    width, layers = GROUPS[name]
    width //= shrink
    random = torch.Generator().manual_seed(0)
    weights = {
        layer: (0.02 * torch.randn(out // shrink, width, generator=random)).to(device, torch.bfloat16)
        for layer, out in layers.items()
    }
    spread = torch.exp(torch.randn(width, generator=random))
    batches = [_activations(random, 512, spread) for _ in range(tokens // 512)]
    held_out = _activations(random, HELD_OUT, spread)
    spec = QuantizationSpec.preset("qe", scheme="W4A6", reservoir=tokens)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()

    began = time.perf_counter()
    importance = channel_importance(torch.cat([weight.float() for weight in weights.values()]))
    statistics = GroupStatistics(
        name,
        width,
        importance,
        important_channels=spec.important_channels,
        reservoir=spec.reservoir,
        seed=spec.seed,
        device=torch.device(device),
    )
    for x, vision in batches:
        statistics.update(x.to(device), vision.to(device))
    observation = statistics.finish()
    _wait(device)
    observed = time.perf_counter()
    fitted = fit_group(name, weights, observation, spec)
    _wait(device)
    ended = time.perf_counter()
    errors = evaluate_group(fitted, weights, held_out[0].to(device), held_out[1].to(device))
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return Measured(observed - began, ended - observed, peak, errors.error.routed)


def _activations(random: torch.Generator, tokens: int, spread: Tensor) -> tuple[Tensor, Tensor]:
    """(tokens, d) bfloat16 and (tokens,) bool; vision tokens excite other channels than text tokens."""
    vision = torch.rand(tokens, generator=random) < 0.7
    x = torch.randn(tokens, len(spread), generator=random)
    x = torch.where(vision.unsqueeze(-1), x * spread, x * spread.flip(0))
    return x.to(torch.bfloat16), vision


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", nargs="+", choices=("cuda", "cpu"), default=("cuda", "cpu"))
    parser.add_argument("--tokens", type=int, default=8192, help="observed tokens, a multiple of 512")
    parser.add_argument("--shrink", type=int, default=1, help="divide every width, to try the script")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if "cuda" in arguments.devices and not torch.cuda.is_available():
        print("no CUDA device here: this benchmark was not run (--devices cpu runs the CPU side alone)")
        return 1
    lines = [
        f"{arguments.tokens} tokens, W4A6, method qe, torch {torch.__version__}, {torch.get_num_threads()} CPU threads"
        + (f", {torch.cuda.get_device_name()}" if "cuda" in arguments.devices else ""),
        "",
        "| input group | device | observe s | fit s | peak GiB | held-out error |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name in GROUPS:
        for device in arguments.devices:
            m = measure(name, device, tokens=arguments.tokens, shrink=arguments.shrink)
            peak = f"{m.peak / 2**30:.2f}" if m.peak else ""
            lines.append(f"| {name} | {device} | {m.observe:.2f} | {m.fit:.2f} | {peak} | {m.error:.4%} |")
            print(lines[-1], flush=True)
    text = "\n".join(lines)
    print(text)
    if arguments.output:
        command = " ".join(["python -m benchmarks.gpu_block", *sys.argv[1:]])
        arguments.output.write_text(f"# One block of Qwen2-VL-7B shapes\n\n    {command}\n\n{text}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
