"""In Schemathesis' process: in half of the valid requests the made-up ids are replaced by real ones.

``SCHEMATHESIS_HOOKS=tests.app.fuzzing_hooks``; ``QE_FUZZ_SUPPLY`` is the file that ``tests.app.fuzzing_supply`` writes.
"""

from __future__ import annotations

import json
import os
import random
import uuid
from pathlib import Path
from typing import Any

import schemathesis
from schemathesis.core.parameters import ParameterLocation
from schemathesis.generation import GenerationMode
from schemathesis.generation.meta import TestPhase

from tests.app.fuzzing_kinds import kind_of

SUPPLY = Path(os.environ["QE_FUZZ_SUPPLY"])
CHOICE = random.Random(os.environ["QE_FUZZ_SEED"])


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    if case.meta is None:
        return
    if case.meta.phase.name is TestPhase.STATEFUL:
        _never_repeat(case)
        return
    if CHOICE.random() < 0.5:
        return
    supply = json.loads(SUPPLY.read_text())
    modes = {location: info.mode for location, info in case.meta.components.items()}
    if any(mode is not GenerationMode.POSITIVE for mode in modes.values()):
        return
    path = case.operation.path
    kind = kind_of(path)
    if kind is not None:
        real = CHOICE.choice(supply[kind])
        case.path_parameters.update({name: real[name] for name in case.path_parameters if name in real})
        if path.endswith("/complete"):
            case.body = {"sha256": real["sha256"]}
    elif path == "/v1/jobs:plan" and ParameterLocation.BODY in modes:
        rows = {"dataset": CHOICE.choice(supply["plan"])["dataset"]}
        case.body = {**case.body, "model": {"id": "local/fuzzed"}, "calibration": rows}
    elif path == "/problems/{slug}":
        case.path_parameters["slug"] = "not-found"


def _never_repeat(case: Any) -> None:
    """A key that an earlier scenario used replays its answer, and that scenario may have deleted what the answer
    names."""
    for name in [name for name in case.headers or () if name.lower() == "idempotency-key"]:
        case.headers[name] = str(uuid.UUID(int=CHOICE.getrandbits(128)))
