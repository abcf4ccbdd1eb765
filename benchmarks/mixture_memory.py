"""Memory of the walk through mixtures of experts, against their depth, and processor time beside a dense model.

Seeded Qwen3-MoE models of alike blocks, and a Qwen3 whose MLP has as many weights as all experts of a block together.
Every run is a process of its own. The peak must not grow with the number of blocks; it is that of one block.

    python -m benchmarks.mixture_memory --output benchmarks/results/mixture_memory.md
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.memory import RESULT, _mb, quantize_and_measure

SENTENCE = "Which digit is at the top left of the board, and which colour has the square beside it? "


def make(directory: Path, *, experts: int, hidden: int, blocks: int) -> None:
    """A mixture of ``experts`` experts of width ``hidden`` / 2 a block, of which a token takes an eighth; with no
    experts the dense model of 32."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig

    from demo.model import make_tokenizer

    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(directory)
    common: dict[str, Any] = {
        "vocab_size": 1024,
        "hidden_size": hidden,
        "num_hidden_layers": blocks,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": hidden // 8,
    }
    if experts:
        config: Any = Qwen3MoeConfig(
            **common,
            moe_intermediate_size=hidden // 2,
            num_experts=experts,
            num_experts_per_tok=max(1, experts // 8),
            intermediate_size=hidden,
        )
    else:
        config = Qwen3Config(**common, intermediate_size=16 * hidden)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(directory)


def measure(directory: Path, rows: Path, *, experts: int, hidden: int, blocks: int, samples: int) -> dict[str, Any]:
    """In a process of its own."""
    name = f"{experts}-experts-{blocks}-blocks"
    make(directory / name, experts=experts, hidden=hidden, blocks=blocks)
    paths = [str(directory / name), str(rows), str(directory / f"{name}.out")]
    command = [sys.executable, "-m", "benchmarks.mixture_memory", "--samples", str(samples), "--child", *paths]
    environment = {**os.environ, "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    for line in done.stdout.splitlines():
        if line.startswith(RESULT):
            return {"experts": experts, **json.loads(line.removeprefix(RESULT))}
    raise SystemExit(f"quantizing {name} failed:\n{done.stderr[-3000:]}")


def table(results: list[dict[str, Any]], *, hidden: int, samples: int) -> str:
    shallow, deep, _ = results
    lines = [
        f"Seeded Qwen3-MoE models of width {hidden}, experts of width {hidden // 2}, and the Qwen3 whose MLP has as "
        f"many weights as 32 of them; W4A6, method qe, {samples} rows, bf16; {platform.machine()}. "
        "Seconds are of the processor, the whole process, for each block. oneDNN's cache of compiled products is off; "
        "it keeps one for every number of tokens that an expert gets, up to 1,024.",
        "",
        "| experts a block | blocks | model on disk | process before | peak resident | processor s per block |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {each['experts'] or 'dense'} | {each['blocks']} | {_mb(each['model_bytes'])} | "
        f"{_mb(each['resident_before'])} | {_mb(each['resident_peak'])} | {each['cpu'] / each['blocks']:.0f} |"
        for each in results
    ]
    more = _mb(deep["model_bytes"] - shallow["model_bytes"])
    grown = deep["resident_peak"] / shallow["resident_peak"] - 1
    return "\n".join([*lines, "", f"The deeper mixture is {more} larger on disk; its peak is {grown:+.1%}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--blocks", type=int, nargs=2, default=(1, 4), metavar=("SHALLOW", "DEEP"))
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", type=Path, nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        found = quantize_and_measure(*arguments.child, samples=arguments.samples)
        used = resource.getrusage(resource.RUSAGE_SELF)
        print(RESULT + json.dumps({**found, "cpu": used.ru_utime + used.ru_stime}))
        return
    with tempfile.TemporaryDirectory(prefix="qe-mixture-memory-") as name:
        rows = Path(name) / "rows.jsonl"
        messages = [{"messages": [{"role": "user", "content": f"{n}. " + SENTENCE * 12}]} for n in range(16)]
        rows.write_text("".join(json.dumps(row) + "\n" for row in messages))
        sizes = [(32, arguments.blocks[0]), (32, arguments.blocks[1]), (0, 1)]
        results = [
            measure(
                Path(name), rows, experts=experts, hidden=arguments.hidden, blocks=blocks, samples=arguments.samples
            )
            for experts, blocks in sizes
        ]
    text = table(results, hidden=arguments.hidden, samples=arguments.samples)
    print(text)
    if arguments.output:
        command = "python -m " + " ".join(["benchmarks.mixture_memory", *sys.argv[1:]])
        arguments.output.write_text(f"# Memory of the walk through mixtures\n\n    {command}\n\n{text}\n")


if __name__ == "__main__":
    main()
