"""Does memory grow with the depth of the model, and where does the time of a block go?

Two seeded Qwen2-VL models that differ only in the number of decoder blocks are quantized with the same rows, each in a
process of its own. The walk holds one block at a time, so the peak of the deeper must stay near that of the shallower.

    python -m benchmarks.memory                  # 6 and 24 blocks of width 1024
    python -m benchmarks.memory --blocks 2 4     # a quick look

Peak memory is ``VmHWM`` of the quantizing process: everything resident, mapped weight files included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

RESULT = "result: "


def quantize_and_measure(model: Path, rows: Path, output: Path, samples: int) -> dict[str, Any]:
    """Run in a child process: quantize ``model`` and say what the process needed. Sizes in bytes, times in seconds."""
    from quant_experts.run.quantize import quantize
    from quant_experts.spec.specification import QuantizationSpec

    before = _resident_peak()
    spec = QuantizationSpec.preset("qe", scheme="W4A6", samples=samples)
    report = quantize(model=model, calibration=rows, output=output, spec=spec, work=output.with_suffix(".work"))
    seconds: dict[str, float] = defaultdict(float)
    for block in report.blocks:
        for phase, value in block.seconds_by_phase.items():
            seconds[phase] += value / len(report.blocks)
    return {
        "blocks": len(report.blocks),
        "model_bytes": sum(file.stat().st_size for file in model.glob("*.safetensors")),
        "resident_before": before,
        "resident_peak": _resident_peak(),
        "seconds_total": report.seconds,
        "seconds_per_block": sum(block.seconds for block in report.blocks) / len(report.blocks),
        "seconds_by_phase": dict(seconds),
    }


def _resident_peak() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def measure(directory: Path, rows: Path, *, hidden: int, blocks: int, samples: int) -> dict[str, Any]:
    model = directory / f"model-{blocks}"
    make = (
        "from pathlib import Path; from demo.model import make_qwen2_vl;"
        f"make_qwen2_vl(Path({str(model)!r}), hidden={hidden}, blocks={blocks}, heads=16, kv_heads=4,"
        f"intermediate={hidden * 11 // 4})"
    )
    subprocess.run([sys.executable, "-c", make], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    child = [
        sys.executable,
        "-m",
        "benchmarks.memory",
        "--child",
        str(model),
        str(rows),
        str(directory / f"out-{blocks}"),
    ]
    done = subprocess.run([*child, "--samples", str(samples)], check=False, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith(RESULT):
            result: dict[str, Any] = json.loads(line.removeprefix(RESULT))
            return result
    raise SystemExit(f"quantizing the model of {blocks} blocks failed:\n{done.stderr[-3000:]}")


def table(results: list[dict[str, Any]], *, hidden: int, samples: int) -> str:
    shallow, deep = results
    grown = deep["resident_peak"] / shallow["resident_peak"] - 1
    lines = [
        f"Two seeded Qwen2-VL models of width {hidden}, W4A6, method qe, {samples} rows, bf16;",
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}.",
        "",
        "| blocks | model on disk | process before | peak resident | s per block | s in all |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r['blocks']} | {_mb(r['model_bytes'])} | {_mb(r['resident_before'])} | {_mb(r['resident_peak'])}"
        f" | {r['seconds_per_block']:.1f} | {r['seconds_total']:.0f} |"
        for r in results
    ]
    more = deep["model_bytes"] - shallow["model_bytes"]
    lines += [
        "",
        f"The deeper model is {_mb(more)} larger on disk; its peak is {grown:+.1%} of the shallower's.",
        "",
        "Seconds per block, by what is done (deeper model):",
        "",
        "| phase | s | share |",
        "|---|---:|---:|",
    ]
    total = deep["seconds_per_block"]
    phases = sorted(deep["seconds_by_phase"].items(), key=lambda item: -item[1])
    lines += [f"| {phase} | {value:.2f} | {value / total:.0%} |" for phase, value in phases]
    return "\n".join(lines)


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, nargs=2, default=(6, 24), metavar=("SHALLOW", "DEEP"))
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--output", type=Path, help="also keep the table in this file")
    parser.add_argument("--child", type=Path, nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(RESULT + json.dumps(quantize_and_measure(*arguments.child, samples=arguments.samples)))
        return
    from demo.rows import write_jsonl

    with tempfile.TemporaryDirectory(prefix="qe-memory-") as name:
        directory = Path(name)
        rows = directory / "rows.jsonl"
        write_jsonl(rows, arguments.samples)
        results = [
            measure(directory, rows, hidden=arguments.hidden, blocks=blocks, samples=arguments.samples)
            for blocks in arguments.blocks
        ]
    text = table(results, hidden=arguments.hidden, samples=arguments.samples)
    print(text)
    if arguments.output:
        command = "python -m " + " ".join(["benchmarks.memory", *sys.argv[1:]])
        arguments.output.write_text(f"# Memory and time of the walk\n\n    {command}\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
