"""The long fault run: ``python -m tests.faults --seed 1`` (``make faults``).

Prints every fault with its seed, writes benchmarks/results/faults.md, and ends with 1 when an invariant was violated
or a negative control was not caught. ``--only PART`` runs one part and leaves the results of the others as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults import campaign, kill_matrix, recovery, results, silent_workers
from tests.faults.neighbours import storm_among_neighbours
from tests.services import ROOT

Part = Callable[[int, campaign.Say], dict[str, Any]]


SCALE = float(os.environ.get("QE_FAULTS_SCALE", "1"))
"""Of the storm; below 1 for a look whether it runs at all."""


def storm(seed: int, say: campaign.Say) -> dict[str, Any]:
    jobs, kills, outages = (max(1, round(number * SCALE)) for number in (300, 340, 21))
    return campaign.storm(seed=seed, say=say, jobs=jobs, kills=kills, outages=outages, workers=4, clients=8)


def neighbours(seed: int, say: campaign.Say) -> dict[str, Any]:
    jobs, kills, outages, stalls = (max(1, round(number * SCALE)) for number in (300, 120, 6, 20))
    return storm_among_neighbours(
        seed=seed, say=say, jobs=jobs, kills=kills, outages=outages, stalls=stalls, workers=3, clients=8
    )


def real(seed: int, say: campaign.Say) -> dict[str, Any]:
    from tests.faults import real_runs  # loads torch

    return real_runs.killed_runs(seed=seed, say=say, runs=30, workers=4, seconds=3600)


def matrix(seed: int, say: campaign.Say) -> dict[str, Any]:
    return kill_matrix.every_combination(seed=seed, say=say)


def short_leases(seed: int, say: campaign.Say) -> dict[str, Any]:
    return recovery.recovery_times(seed=seed, say=say, kills=15, lease=3.0, beat=0.25, self_kill=2.0, grace=0.5)


def longer_leases(seed: int, say: campaign.Say) -> dict[str, Any]:
    """A tenth of what a service has by default."""
    return recovery.recovery_times(seed=seed, say=say, kills=6, lease=12.0, beat=2.0, self_kill=9.0, grace=3.0)


def controls(seed: int, say: campaign.Say) -> dict[str, Any]:
    return silent_workers.controls(say)


PARTS: dict[str, Part] = {
    "storm": storm,
    "neighbours": neighbours,
    "real": real,
    "matrix": matrix,
    "recovery": short_leases,
    "recovery-longer": longer_leases,
    "controls": controls,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=PARTS, action="append", help="run this part; may be repeated")
    parser.add_argument("--directory", type=Path, default=ROOT / "build" / "faults", help="figures of each part")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "faults.md")
    chosen = parser.parse_args()
    chosen.directory.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()

    def say(line: str) -> None:
        print(line, flush=True)

    for name in chosen.only or PARTS:
        say(f"== {name}, seed {chosen.seed}")
        figures = PARTS[name](chosen.seed, say)
        (chosen.directory / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
        say(f"== {name}: {json.dumps(figures)}")
    found = {path.stem: json.loads(path.read_text()) for path in sorted(chosen.directory.glob("*.json"))}
    chosen.output.write_text(results.page(found))
    bad = [f"{name}: {line}" for name, figures in found.items() for line in figures["violations"]]
    say("\n".join([*bad, f"{len(bad)} violations; {time.monotonic() - began:.0f} s; {chosen.output} written"]))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
