"""What a run may take over from another one: the language model's calls, which no scheme or method changes.

Everything before the first block, the processor, the vision tower and the embeddings, depends on the model, the chosen
rows, the processor's files, and on the machine's arithmetic. A run that agrees with another on all of these reads its
calls instead of computing them, and ends with the same bytes. Blocks are taken over by the run's whole fingerprint
only: behind the first one every input depends on the scheme, and the first one's statistics, which do not, are a second
moment and a reservoir per group (gigabytes for a 7B model) that cost a sixth of one block to gather again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from quant_experts.checkpoint.write import companions
from quant_experts.model.tensor_file import file_digest
from quant_experts.spec.specification import QuantizationSpec

BEFORE_THE_BLOCKS = ("samples", "holdout", "seed", "vision")
"""Fields of the spec that decide which rows are chosen, and what runs once per row."""


def calls_fingerprint(
    spec: QuantizationSpec, parts: Mapping[str, str], source: Path, environment: Mapping[str, str]
) -> str:
    """``parts``: of the run, its model and rows among them; ``source``: the model's directory, for the processor's
    files; ``environment``: versions and device, because another one may round differently."""
    fields = spec.model_dump(mode="json")
    content = {
        "model": parts["model"],
        "rows": parts["rows"],
        "spec": {name: fields[name] for name in BEFORE_THE_BLOCKS if name in fields},
        "processor": {path.relative_to(source).as_posix(): file_digest(path) for path in companions(source)},
        "environment": dict(environment),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
