"""python -m tests.every_type [TYPE …]: every type that is not done yet, or those named; one line each as it goes.

Results are in benchmarks/results/models, one file per type, so that a run that was ended goes on. With the word
``plans`` the planner is asked again about those. The table in docs/models.md is written at the end.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import transformers

from tests.every_type.check import CAUSAL, VLMS, Outcome, check, plan_again
from tests.every_type.table import write_table

RESULTS = Path("benchmarks/results/models")
SECONDS = 240
"""Of one type."""


def main(names: list[str]) -> None:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    signal.signal(signal.SIGALRM, _late)
    RESULTS.mkdir(parents=True, exist_ok=True)
    if names == ["plans"]:
        _plan_all()
        names = []
    for kind in names or dict.fromkeys([*sorted(VLMS), *sorted(CAUSAL)]):
        path = RESULTS / f"{kind}.json"
        if path.exists() and not names:
            continue
        outcome = _checked(kind)
        path.write_text(outcome.text() + "\n")
        print(
            f"{kind}: {' '.join(outcome.reached)} {outcome.reason or ''} | plan: {outcome.plan or 'exact'}", flush=True
        )
    write_table(RESULTS, Path("docs/models.md"))


def _plan_all() -> None:
    for path in sorted(RESULTS.glob("*.json")):
        outcome = Outcome(**json.loads(path.read_text()))
        with tempfile.TemporaryDirectory(prefix="qe-type-") as scratch:
            plan_again(outcome, Path(scratch))
        path.write_text(outcome.text() + "\n")
        if outcome.written is not None:
            print(f"{outcome.kind}: plan {outcome.plan or 'exact'}", flush=True)


def _checked(kind: str) -> Outcome:
    signal.alarm(SECONDS)
    try:
        with tempfile.TemporaryDirectory(prefix="qe-type-") as scratch:
            return check(kind, Path(scratch))
    except TimeoutError:
        traceback.print_exc()
        return Outcome(kind, "image-text-to-text" if kind in VLMS else "causal", [], f"longer than {SECONDS} seconds")
    finally:
        signal.alarm(0)


def _late(*_: Any) -> None:
    raise TimeoutError


if __name__ == "__main__":
    main(sys.argv[1:])
