"""One model type through the pipeline, stage by stage, until one of them says why not."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto

from demo.model import make_tokenizer
from quant_experts.calibration.collate import open_collator
from quant_experts.calibration.rows import parse_row
from quant_experts.checkpoint.verify import Ask
from quant_experts.errors import QuantExpertsError
from quant_experts.model.blueprint import open_blueprint
from quant_experts.planning.errors import Unreadable
from quant_experts.planning.local import read_local
from quant_experts.planning.recipe import Recipe
from quant_experts.planning.shapes import shapes_of
from quant_experts.planning.sizes import size_of
from quant_experts.progress import PhaseStarted
from quant_experts.report.data import QualityReport
from quant_experts.run.quantize import quantize
from quant_experts.spec.specification import QuantizationSpec
from tests.every_type.tiny import tiny_config
from tests.models import TEXT_TEMPLATE, draw
from tests.rows import text_row, write_rows

VLMS = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
CAUSAL = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
GROUPS = {"image-text-to-text": VLMS, "causal": CAUSAL}
TYPES = tuple((group, kind) for group, kinds in GROUPS.items() for kind in sorted(kinds))
"""A type that is in both is run as both: its classes may differ."""
STAGES = ("built", "discovered", "quantized", "loaded", "generates")
"""``quantized`` ends with the packed checkpoint; ``loaded``: a process without our package gives the same logits."""
SPEC = QuantizationSpec.preset(
    "qe",
    scheme="W4A8",
    samples=4,
    experts=2,
    shared_rank=4,
    routed_rank=4,
    important_channels=8,
    group_size=32,
    reservoir=128,
)
LARGEST = 40_000_000
"""Parameters: a type whose configuration does not get smaller by the known names is not run."""


@dataclass
class Outcome:
    """``reached``: the stages that went well, in order. ``reason``: of the first that did not. ``plan``: why the plan
    is not exact; None where it is."""

    kind: str
    group: str
    reached: list[str]
    reason: str | None = None
    plan: str | None = "there is no checkpoint to compare with"

    @property
    def is_complete(self) -> bool:
        return self.reason is None and self.plan is None


def check(group: str, kind: str, directory: Path, ask: Ask) -> Outcome:
    """``directory``: empty; it is left so. ``ask``: as ``verify_in_fresh_process`` has it."""
    outcome = Outcome(kind, group, [])
    try:
        make_type(group, kind, directory / "model")
        outcome.reached.append("built")
        open_blueprint(directory / "model", device=torch.device("cpu"))
        outcome.reached.append("discovered")
        rows = write_rows(directory / "rows.jsonl", [text_row(i) for i in range(5)])
        report = quantize(
            model=directory / "model",
            calibration=rows,
            output=directory / f"{group}-{kind}",
            spec=SPEC,
            work=directory / "work",
            device="cpu",
            on_event=lambda event: outcome.reached.append("quantized") if _verifies(event) else None,
            ask=ask,
        )
        outcome.reached.append("loaded")
        outcome.plan = plan_of(directory / "model", report)
        _generate(directory / f"{group}-{kind}")
        outcome.reached.append("generates")
    # A type's own code: whatever it raises is the answer.
    except Exception as error:
        name = "" if isinstance(error, QuantExpertsError) else f"{type(error).__name__}: "
        outcome.reason = f"{name}{' '.join(str(error).split())}"[:300] or type(error).__name__
    finally:
        for path in directory.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return outcome


def _verifies(event: Any) -> bool:
    return isinstance(event, PhaseStarted) and event.phase == "verifying"


def group_of(kind: str) -> str:
    """The first group that has the type."""
    return next(group for group, kinds in GROUPS.items() if kind in kinds)


def auto_class(group: str) -> Any:
    return (
        transformers.AutoModelForImageTextToText if group == "image-text-to-text" else transformers.AutoModelForCausalLM
    )


def make_type(group: str, kind: str, directory: Path) -> Path:
    """Write a tiny seeded model of the type, bfloat16, with a tokenizer. Raises whatever its classes raise."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEXT_TEMPLATE
    config = tiny_config(kind)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in auto_class(group).from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"its configuration does not get small: {size:,} parameters")
    torch.manual_seed(0)
    model = auto_class(group).from_config(config, dtype=torch.bfloat16)
    model.to(torch.bfloat16)
    draw(model, 0)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _generate(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    model = getattr(transformers, next(iter(config["auto_map"]))).from_pretrained(checkpoint)
    sample = open_collator(checkpoint, model.config)(parse_row(1, text_row(7), checkpoint))
    with torch.no_grad():
        new = model.generate(**sample.inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    if new.shape[1] != sample.tokens + 4:
        raise ValueError(f"generated {new.shape[1] - sample.tokens} tokens instead of 4")


def plan_of(model: Path, report: QualityReport) -> str | None:
    """Why the plan does not say the bytes that the checkpoint has; None where it does. Its one exception: where tokens
    are too few for the experts asked for, fewer are stored."""
    try:
        shapes = shapes_of(read_local(model))
    except (Unreadable, OSError) as error:
        return f"{' '.join(str(error).split())}"[:200]
    planned = size_of(shapes, Recipe.of(**SPEC.model_dump())).bytes_after_most
    assert report.size is not None
    written, warnings = (
        report.size.bytes_after,
        [w for block in report.blocks for g in block.groups for w in g.warnings],
    )
    fewer = planned > written and any("are too few for" in warning for warning in warnings)
    return None if planned == written or fewer else f"{planned} bytes planned, {written} written"
