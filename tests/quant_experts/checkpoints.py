"""Checkpoints of tiny real models whose experts are drawn, not fitted: the format does not care, and it is quick."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from quant_experts.checkpoint.layout import group_config, group_tensors, install_group
from quant_experts.checkpoint.write import publish, staging_directory, write_files
from quant_experts.fit.fitted import FittedGroup
from quant_experts.fit.quantizer import quantize
from quant_experts.fit.rotation import rotation_of
from quant_experts.model.groups import GroupPlan, plan_groups
from quant_experts.model.manifest import manifest_of
from quant_experts.report.data import BlockReport, GroupReport, ModelQuality, QualityReport, Size, StageErrors
from quant_experts.spec.specification import QuantizationSpec
from tests.models import make_model

SPEC = QuantizationSpec.preset("qe", scheme="W4A8", group_size=32, shared_rank=4, routed_rank=4, experts=3)


@dataclass(frozen=True)
class Parts:
    """What the walk leaves behind for the writer, and the model in memory that the checkpoint must equal."""

    model: Any
    arguments: dict[str, Any]
    """Of ``write_files``, all but the directory."""


def drawn_group(plan: GroupPlan, weights: list[Tensor], seed: int) -> FittedGroup:
    """The real weights rounded to nearest, and small random experts; of odd seeds, behind a rotation."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random) * 0.02

    codes, scales = zip(*(quantize(weight.float(), 4, 32, torch.bfloat16) for weight in weights), strict=True)
    return FittedGroup(
        name=plan.name,
        layers=plan.layers,
        weight_bits=4,
        activation_bits=8,
        group_size=32,
        smoothing="outlier",
        codes=codes,
        scales=scales,
        smooth=torch.rand(plan.width, generator=random) + 0.5,
        shared_down=draw(4, plan.width),
        shared_up=tuple(draw(out, 4) for out in plan.outs),
        routed_down=draw(3, 4, plan.width),
        routed_up=tuple(draw(3, out, 4) for out in plan.outs),
        router=draw(3, plan.width),
        warnings=(),
        rotation=rotation_of(plan.width, 4) if seed % 2 else None,
    )


def quantized_parts(
    family: str,
    directory: Path,
    *,
    tied: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    draw: Callable[[GroupPlan, list[Tensor], int], FittedGroup] = drawn_group,
) -> Parts:
    source = make_model(family, directory / "source", tied=tied, dtype=dtype)
    config = json.loads((source / "config.json").read_text())
    model_class = getattr(transformers, config["architectures"][0])
    model = model_class.from_pretrained(source, dtype=dtype).eval()
    known = manifest_of(model)
    groups, block_files = [], []
    for block, plans in enumerate(plan_groups(model, known)):
        for i, plan in enumerate(plans):
            linears = [model.get_submodule(f"{plan.parent}.{layer}") for layer in plan.layers]
            fitted = draw(plan, [linear.weight.detach() for linear in linears], 10 * block + i)
            biases = {n: m.bias for n, m in zip(plan.layers, linears, strict=True) if m.bias is not None}
            groups.append(group_config(fitted, plan, dtype=dtype))
            install_group(model, groups[-1], group_tensors(fitted, plan, dtype=dtype, biases=biases))
        prefix = f"{known.language_model}.layers.{block}"
        block_files.append(_save_block(model.get_submodule(prefix), prefix, directory / f"block-{block}.safetensors"))
    inside = tuple(f"{known.language_model}.layers.{block}." for block in range(len(block_files)))
    tied_names = {"lm_head.weight"} if tied else set()
    others = [(n, t) for n, t in model.state_dict().items() if not n.startswith(inside) and n not in tied_names]
    arguments = {
        "source": source,
        "block_files": block_files,
        "groups": groups,
        "other_tensors": others,
        "spec": SPEC,
        "report": made_up_report(groups),
        "recipe": {"spec": SPEC.model_dump(), "model_digest": "0" * 64},
        "architecture": known.model_class,
    }
    return Parts(model, arguments)


def _save_block(block: nn.Module, prefix: str, path: Path) -> Path:
    save_file({f"{prefix}.{name}": tensor.contiguous() for name, tensor in block.state_dict().items()}, str(path))
    return path


def written(
    parts: Parts, output: Path, *, check: Callable[[Path], None] = lambda directory: None, **changes: Any
) -> Path:
    """``check``: called with the whole checkpoint before it gets its name."""
    with staging_directory(output) as directory:
        write_files(directory, **{**parts.arguments, **changes})
        check(directory)
        publish(directory, output)
    return output


def made_up_report(groups: list[dict[str, Any]], **changes: Any) -> QualityReport:
    error = StageErrors(base=0.012, shared=0.006, routed=0.004)
    by_block: dict[int, list[GroupReport]] = {}
    for group in groups:
        block = int(group["name"].split("layers.")[1].split(".")[0])
        by_block.setdefault(block, []).append(
            GroupReport(
                name=group["name"],
                block=block,
                layers=group["layers"],
                tokens=100,
                error=error,
                error_text=error,
                sqnr_db=24.0,
                expert_usage=[0.5, 0.3, 0.2],
                smoothing="outlier",
                effective_bits=6.5,
            )
        )
    blocks = [
        BlockReport(block=n, seconds=1.5, seconds_by_phase={"observe": 0.5, "fit": 0.7}, groups=found)
        for n, found in by_block.items()
    ]
    quality = ModelQuality(
        rows=4, tokens=2000, kl=0.01, top1_agreement=0.93, perplexity_full=9.0, perplexity_quantized=9.2
    )
    size = Size(bytes_before=10**9, bytes_after=4 * 10**8, effective_bits=6.5, base_bits=4.5, quantized_weights=10**8)
    values = {
        "model": "local/tiny",
        "scheme": "W4A8",
        "method": "qe",
        "blocks": blocks,
        "quality": quality,
        "size": size,
        "rows_used": 36,
        "rows_held_out": 4,
    }
    return QualityReport(**{**values, **changes})
