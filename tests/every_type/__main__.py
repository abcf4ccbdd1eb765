"""python -m tests.every_type [TYPE … | all]: every type that does not pass yet, those named, or all; one line each.

Results are in benchmarks/results/every_type.jsonl, one line per type, written as the run goes, so that a run that was
ended goes on. docs/every-type.md and the summary in docs/models.md are written at the end.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import transformers

from quant_experts.checkpoint.verify import Ask
from tests.every_type.check import TYPES, Outcome, check
from tests.every_type.table import read_results, write_page, write_results, write_summary
from tests.forked import ForkedProcesses

RESULTS, PAGE = Path("benchmarks/results/every_type.jsonl"), Path("docs/every-type.md")
SECONDS = 240
"""Of one type."""


def main(names: list[str]) -> None:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    signal.signal(signal.SIGALRM, _late)
    outcomes = read_results(RESULTS)
    with ForkedProcesses() as processes:
        for group, kind in TYPES:
            known = outcomes.get((group, kind))
            if (known is None or not known.is_complete) if not names else names == ["all"] or kind in names:
                outcome = outcomes[group, kind] = _checked(group, kind, processes.ask)
                write_results(RESULTS, outcomes)
                plan = outcome.plan or "exact"
                print(f"{group} {kind}: {' '.join(outcome.reached)} {outcome.reason or ''} | plan: {plan}", flush=True)
    write_page(outcomes, PAGE)
    write_summary(outcomes, Path("docs/models.md"))


def _checked(group: str, kind: str, ask: Ask) -> Outcome:
    signal.alarm(SECONDS)
    try:
        with tempfile.TemporaryDirectory(prefix="qe-type-") as scratch:
            return check(group, kind, Path(scratch), ask)
    except TimeoutError:
        traceback.print_exc()
        return Outcome(kind, group, [], f"longer than {SECONDS} seconds")
    finally:
        signal.alarm(0)


def _late(*_: Any) -> None:
    raise TimeoutError


if __name__ == "__main__":
    main(sys.argv[1:])
