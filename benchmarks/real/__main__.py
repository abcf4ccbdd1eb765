"""Our presets beside plain rounding to nearest, on the real model; writes benchmarks/results/real.*.

python -m benchmarks.real                              # hours on two cores; goes on where it was interrupted
python -m benchmarks.real --only "W4A16 gptq" --only "W4A16 rtn"
"""

from __future__ import annotations

import argparse
import collections
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.real.prepare import PACKAGES
from benchmarks.real.runs import Bench, open_bench, result
from quant_experts.spec.specification import QuantizationSpec

HOLDOUT = 0.0625
"""Two of 32 rows: the report needs them; the benchmark measures on other text."""
OUT = Path(__file__).parents[1] / "results" / "real"
PLAIN: dict[str, Any] = {"method": "rtn", "weight_grid": "max", "group_size": 64}
"""Rounding to nearest as everybody has it."""
ROOM = {"bits_per_weight": 4.79}
"""What the default takes with its experts."""
RUNS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "W4A16": [
        ("gptq, groups of 64", {"method": "gptq", "group_size": 64}),
        ("gptq, groups of 64, max grid", {"method": "gptq", "group_size": 64, "weight_grid": "max"}),
        ("gptq, version 1", {"method": "gptq", "method_version": 1}),
        ("rtn, groups of 64", {"method": "rtn", "group_size": 64}),
        ("rtn, groups of 64, max grid", PLAIN),
        ("gptq", {"method": "gptq"}),
        ("fast", {"method": "fast"}),
        ("balanced", {"method": "balanced"}),
        ("best", {"method": "best"}),
        ("balanced, without experts", {"method": "balanced", "reconstruction": "none"}),
        ("best, without experts", {"method": "best", "reconstruction": "none"}),
        ("balanced, version 3", {"method": "balanced", "method_version": 3}),
        ("balanced, search", {"method": "balanced", "smoothing": "search"}),
        ("budget in the place of experts", {"method": "balanced", "reconstruction": "none", "budget": ROOM}),
    ],
    "W5A16": [("rtn, groups of 64, max grid", PLAIN), ("gptq", {"method": "gptq"})],
    "W6A16": [("rtn, groups of 64, max grid", PLAIN), ("gptq", {"method": "gptq"})],
    "W8A16": [("rtn, groups of 64, max grid", PLAIN)],
    "W4A8": [
        ("balanced", {"method": "balanced"}),
        ("gptq", {"method": "gptq"}),
        ("search + gptq", {"method": "gptq", "smoothing": "search", "method_version": 3}),
        ("qe-gptq, version 1", {"method": "qe-gptq", "method_version": 1}),
        ("balanced, 2 routed experts", {"method": "balanced", "experts": 2}),
        ("balanced, without experts", {"method": "balanced", "reconstruction": "none"}),
        ("balanced, version 3", {"method": "balanced", "method_version": 3}),
    ],
    "W4A6": [
        ("balanced", {"method": "balanced"}),
        ("best", {"method": "best"}),
        ("balanced, version 3", {"method": "balanced", "method_version": 3}),
        ("balanced, 2 routed experts", {"method": "balanced", "experts": 2}),
        ("balanced, 4 routed experts", {"method": "balanced", "experts": 4}),
        ("balanced, without experts", {"method": "balanced", "reconstruction": "none"}),
        ("gptq", {"method": "gptq"}),
    ],
    "W4A4": [
        ("balanced", {"method": "balanced"}),
        ("best", {"method": "best"}),
        ("balanced, version 3", {"method": "balanced", "method_version": 3}),
        ("balanced, without experts", {"method": "balanced", "reconstruction": "none"}),
        ("gptq", {"method": "gptq"}),
        ("rtn, groups of 64, max grid", PLAIN),
    ],
    "W3A16": [("gptq", {"method": "gptq"}), ("balanced", {"method": "balanced"}), ("best", {"method": "best"})],
}
"""Scheme → (label, options over the preset)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="SCHEME LABEL", help="these runs; repeatable")
    parser.add_argument("--out", type=Path, default=OUT, help="without the ending")
    arguments = parser.parse_args()
    bench = open_bench()
    cells = []
    for scheme, runs in RUNS.items():
        for label, options in runs:
            if arguments.only and f"{scheme} {label}" not in arguments.only:
                continue
            spec = QuantizationSpec.preset(**{"scheme": scheme, "samples": 32, "holdout": HOLDOUT, **options})
            found = result(bench, label, spec)
            cells.append({"scheme": scheme, **found})
            print(
                f"{scheme} {label}: {found['effective_bits']:.2f} bits, KL {found['kl']:.4f}",
                file=sys.stderr,
                flush=True,
            )
            write(arguments.out, bench, cells)


def write(
    out: Path,
    bench: Bench,
    cells: list[dict[str, Any]],
    *,
    command: str = "python -m benchmarks.real",
    seconds: str = "calibration, fit, evaluation, packing and verification",
) -> None:
    from benchmarks.real.tables import page
    from benchmarks.real.yardstick import of_full

    environment = {
        "command": command,
        "seconds": seconds,
        "package": PACKAGES[0],
        "rows": len(bench.prepared.calibration.read_text(encoding="utf-8").splitlines()),
        "tokens": len(bench.yardstick.full),
        "kinds": ", ".join(
            f"{count} rows of {kind}"
            for kind, count in collections.Counter(row["kind"] for row in bench.yardstick.rows).items()
        ),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    full = of_full(bench.yardstick)
    out.with_suffix(".md").write_text(page(cells, full, environment), encoding="utf-8")
    content = {"environment": environment, "full_precision": full, "runs": cells}
    out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
