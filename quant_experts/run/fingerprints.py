"""What tells one run from another, and which captured inputs a run may take over from another run.

Everything in front of the first block (processor, vision tower, embeddings) depends on the model, the chosen rows, the
processor's files and the machine's arithmetic, but on no scheme or method. A run that agrees with another on all of
these reads that run's captured inputs instead of computing them, and ends with the same bytes.

Blocks are taken over under the whole fingerprint only. Behind the first block every input depends on the scheme. The
statistics of the first block do not, but they are a second moment and a reservoir per group: gigabytes for a 7B model,
to save a sixth of one block.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

import quant_experts
from quant_experts.calibration.samples import Choice, RowFile, rows_fingerprint
from quant_experts.checkpoint.write import companions
from quant_experts.files import file_digest
from quant_experts.model.blueprint import Blueprint
from quant_experts.model.shards import shards_fingerprint
from quant_experts.model.tensor_file import json_digest
from quant_experts.spec.specification import QuantizationSpec

LATER_FIELDS = {"vision": "keep", "method_version": 1, "weight_grid": "max"}
"""Fields of the spec that were added later → their value in runs that began before. Such runs resume."""
BEFORE_THE_BLOCKS = ("samples", "holdout", "seed", "vision")
"""Fields of the spec that decide which rows are chosen, and what runs once per row."""


def run_parts(spec: QuantizationSpec, blueprint: Blueprint, rows: RowFile, choice: Choice) -> dict[str, str]:
    """Name → digest of everything that makes a run another run: ``spec``, ``model`` and ``rows``."""
    return {
        "spec": json_digest(_identity(spec)),
        "model": shards_fingerprint(blueprint.weights.shards, blueprint.config_text),
        "rows": rows_fingerprint(rows, choice),
    }


def inputs_fingerprint(
    spec: QuantizationSpec, parts: Mapping[str, str], source: Path, environment: Mapping[str, str]
) -> str:
    """The fingerprint of the captured inputs.

    ``parts``: of the run. ``source``: the model's directory, for the processor's files. ``environment``: versions and
    device, because another one may round differently.
    """
    fields = spec.model_dump(mode="json")
    content = {
        "model": parts["model"],
        "rows": parts["rows"],
        "spec": {name: fields[name] for name in BEFORE_THE_BLOCKS if name in fields},
        "processor": {path.relative_to(source).as_posix(): file_digest(path) for path in companions(source)},
        "environment": dict(environment),
    }
    return json_digest(content)


def environment_of(device: torch.device) -> dict[str, str]:
    """Versions and the device's name, for the report and for ``inputs_fingerprint``."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "quant_experts": quant_experts.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
    }


def _identity(spec: QuantizationSpec) -> dict[str, Any]:
    return {name: value for name, value in spec.model_dump(mode="json").items() if LATER_FIELDS.get(name) != value}
