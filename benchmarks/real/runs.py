"""One quantization of the real model by the library's pipeline, measured and kept, so that a benchmark can go on."""

from __future__ import annotations

import hashlib
import json
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.digits.runs import digest_of_files, fit_sources
from benchmarks.real.prepare import WORK, Prepared, prepare
from benchmarks.real.yardstick import Yardstick, measure, open_yardstick
from quant_experts.spec.specification import QuantizationSpec


@dataclass(frozen=True)
class Bench:
    prepared: Prepared
    yardstick: Yardstick
    results: Path


def open_bench(work: Path = WORK) -> Bench:
    prepared = prepare(work)
    results = work / "results"
    results.mkdir(exist_ok=True)
    return Bench(prepared, open_yardstick(prepared.evaluation, prepared.model), results)


def result(bench: Bench, label: str, spec: QuantizationSpec) -> dict[str, Any]:
    """The figures of one run, from the work directory or made now; a run belongs to its spec and to the code."""
    content = json.dumps([spec.model_dump(mode="json"), source()], sort_keys=True)
    path = bench.results / f"{hashlib.sha256(content.encode()).hexdigest()[:24]}.json"
    if not path.is_file():
        found = _run(bench, spec)
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(found), encoding="utf-8")
        fresh.rename(path)
    return {"label": label, **json.loads(path.read_text(encoding="utf-8"))}


def _run(bench: Bench, spec: QuantizationSpec) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    from quant_experts.forward.modeling_quant_experts import dequantized_weights
    from quant_experts.run.quantize import quantize

    with tempfile.TemporaryDirectory(prefix="qe-real-", dir=bench.results.parent) as name:
        started, elapsed = _processor_seconds(), time.monotonic()
        report = quantize(
            model=bench.prepared.model,
            calibration=bench.prepared.calibration,
            output=Path(name) / "checkpoint",
            work=Path(name) / "work",
            spec=spec,
        )
        seconds, elapsed = _processor_seconds() - started, time.monotonic() - elapsed
        model = AutoModelForCausalLM.from_pretrained(Path(name) / "checkpoint").eval()
        with dequantized_weights(model):
            measured = measure(bench.yardstick, model)
    return {
        **measured,
        "spec": spec.model_dump(mode="json"),
        "effective_bits": report.size.effective_bits,
        "base_bits": report.size.base_bits,
        "cpu_seconds": seconds,
        "wall_seconds": elapsed,
        "phases": _phases(report),
    }


def _phases(report: Any) -> dict[str, float]:
    """Seconds of all blocks, by what was done."""
    total: dict[str, float] = {}
    for block in report.blocks:
        for phase, seconds in block.seconds_by_phase.items():
            total[phase] = round(total.get(phase, 0.0) + seconds, 1)
    return total


def _processor_seconds() -> float:
    """Of this process and of those that it waited for."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def source() -> str:
    """Digest of what decides a fit: a change there makes every kept result stale."""
    return digest_of_files(fit_sources())
