"""One quantization of one variant of the trained model, measured, and kept: an interrupted benchmark goes on.

A run's key holds everything that can change its figures: the variant's files, the spec, the rows, the test questions
and the source of the fit. Its result is one small JSON file below the work directory.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils.logging import disable_progress_bar

import quant_experts
from benchmarks.digits import REPOSITORY
from benchmarks.digits.boards import held_out_questions, write_rows
from benchmarks.digits.outliers import write_variant
from benchmarks.digits.yardstick import Yardstick, measure, open_yardstick
from quant_experts.calibration.processor import load_processor
from quant_experts.model import blueprint
from quant_experts.model.manifest import Manifest
from quant_experts.planning.families import DECODER
from quant_experts.run.quantize import quantize
from quant_experts.spec.specification import QuantizationSpec

VARIANTS = ("plain", "outlier")
ROWS = 64
"""Calibration rows, of which an eighth is held out for the report and for choosing SmoothQuant's alpha."""

HOLDOUT = 0.125
PER_TASK = 50
"""Test questions of each of the six tasks."""

FIT_SOURCES = (
    *("fit", "fit/smoothing", "fit/rounding", "fit/reconstruction", "fit/experts"),
    *("forward/modeling_quant_experts.py", "seeding.py", "spec/ranks.py"),
)
"""Files and folders below the package: a change here makes every kept result stale."""


@dataclass(frozen=True)
class Bench:
    """``work``: where variants, rows and results are kept. ``per_task``: test questions of each task. ``grouped``:
    layers that read the same input are fitted together, as the library does it; else each for itself."""

    work: Path
    rows: int = ROWS
    per_task: int = PER_TASK
    grouped: bool = True

    def variant(self, name: str) -> Path:
        """The model directory of a variant, written on first use."""
        if name == "plain":
            return REPOSITORY
        directory = self.work / "variants" / f"{name}-{digest_of_files([REPOSITORY, Path(__file__).parent])}"
        if not (directory / "config.json").is_file():
            scratch = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=_made(self.work / "variants")))
            write_variant(REPOSITORY, scratch)
            try:
                scratch.rename(directory)
            except OSError:  # another process was quicker
                shutil.rmtree(scratch)
        return directory

    def calibration(self, seed: int) -> Path:
        """The calibration rows of a seed; for all variants, methods and peers the same."""
        path = self.work / "rows" / f"{self.rows}-{seed}.jsonl"
        if not path.is_file():
            scratch = Path(tempfile.mkdtemp(prefix="rows-", dir=_made(path.parent)))
            write_rows(scratch / path.name, self.rows, seed=seed).rename(path)
            scratch.rmdir()
        return path

    def yardstick(self, variant: str) -> Yardstick:
        return _yardstick(replace(self, grouped=True), variant)

    def config(self, variant: str) -> Any:
        return AutoConfig.from_pretrained(self.variant(variant))

    def full_precision(self, variant: str) -> dict[str, Any]:
        """The figures of the unquantized model on the same questions."""
        return measure(self.yardstick(variant), _load(self.variant(variant)))

    def result(self, variant: str, spec: QuantizationSpec) -> dict[str, Any]:
        """The figures of one run: from the work directory, or made now. The rows are those of ``spec.seed``.

        ``peak_bytes``: resident memory at its highest, over what the process held before the run.
        """
        key = self._key(variant, spec)
        path = self.work / "results" / f"{key}.json"
        if not path.is_file():
            found = self.run(variant, spec)
            _made(path.parent)
            fresh = path.with_suffix(f".{id(found)}.new")
            fresh.write_text(json.dumps(found), encoding="utf-8")
            fresh.rename(path)
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return result

    def run(self, variant: str, spec: QuantizationSpec) -> dict[str, Any]:
        """The same, made anew."""
        yardstick = self.yardstick(variant)
        with tempfile.TemporaryDirectory(prefix="qe-accuracy-") as name:
            directory = Path(name)
            before = _forget_peak()
            with contextlib.nullcontext() if self.grouped else _layers_apart():
                report = quantize(
                    model=self.variant(variant),
                    calibration=self.calibration(spec.seed),
                    output=directory / "checkpoint",
                    work=directory / "work",
                    spec=spec,
                )
            needed = _resident_peak() - before
            model = _load(directory / "checkpoint")
            measured = measure(yardstick, model)
        return {
            **measured,
            "variant": variant,
            "spec": spec.model_dump(mode="json", exclude_defaults=True),
            "calibration_kl": report.quality.kl,
            "effective_bits": report.size.effective_bits,
            "base_bits": report.size.base_bits,
            "bytes_after": report.size.bytes_after,
            "seconds": report.seconds,
            "peak_bytes": needed,
            "warnings": len(report.warnings) + sum(len(g.warnings) for b in report.blocks for g in b.groups),
        }

    def _key(self, variant: str, spec: QuantizationSpec) -> str:
        content = [
            variant,
            spec.model_dump(mode="json"),
            self.rows,
            self.per_task,
            self.grouped,
            digest_of_files([REPOSITORY, Path(__file__).parent]),
            digest_of_files(fit_sources()),
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


@contextlib.contextmanager
def _layers_apart() -> Iterator[None]:
    """Every layer an input group of its own, for as long as the block runs."""
    found = blueprint.manifest_of
    alone = tuple((parent, layer.removesuffix("_proj"), (layer,)) for parent, _, layers in DECODER for layer in layers)

    def apart(model: Any) -> Manifest:
        manifest = found(model)
        return replace(manifest, decoder=replace(manifest.decoder, groups=alone, each=()))

    blueprint.manifest_of = apart
    try:
        yield
    finally:
        blueprint.manifest_of = found


@functools.cache
def _yardstick(bench: Bench, variant: str) -> Yardstick:
    directory = bench.variant(variant)
    model = _load(directory)
    processor = load_processor(directory, model.config)
    return open_yardstick(model, processor, held_out_questions(bench.per_task))


def _load(directory: Path) -> Any:
    """Stock transformers, in the dtype of the files; the package has registered its quantization method."""
    disable_progress_bar()
    return AutoModelForImageTextToText.from_pretrained(directory).eval()


def fit_sources() -> list[Path]:
    package = Path(quant_experts.__file__).parent
    return [package / name for name in FIT_SOURCES]


def digest_of_files(places: list[Path]) -> str:
    """Of weights and Python source directly inside of ``places``, which are files or directories."""
    files = [file for place in places for file in (place.iterdir() if place.is_dir() else [place])]
    digest = hashlib.sha256()
    for file in sorted(files):
        if file.suffix in (".py", ".safetensors"):
            digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _forget_peak() -> int:
    """Give back what earlier runs left, let ``VmHWM`` begin anew (Linux, proc(5): clear_refs 5), and say what is
    resident."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _resident_peak()


def _resident_peak() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
