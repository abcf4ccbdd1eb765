"""Verify a written checkpoint: its digests, and its logits in a process without this package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from quant_experts.checkpoint import fresh_process
from quant_experts.checkpoint.write import CHECKSUMS
from quant_experts.errors import InvalidCheckpoint
from quant_experts.files import file_digest
from quant_experts.spec.exports import EXPORTS_FOLDER

TOLERANCE = 0.05
"""Largest relative Frobenius error of the logits. The same kernels on the same device give 0; another attention kernel
or device moves low bits, which can tip the rounding or the routing of single tokens."""


@dataclass(frozen=True)
class Probe:
    """Inputs for a loaded checkpoint, and the logits that it must give.

    ``inputs``: arguments of the model's forward, by name. ``logits``: (rows, n, vocabulary), of the last n positions.
    """

    inputs: Mapping[str, Tensor]
    logits: Tensor | None = None


@dataclass(frozen=True)
class Verdict:
    """``error``: relative Frobenius error of the logits; ``agreement``: share of positions with the same most likely
    token. Both None when there was nothing to compare with."""

    error: float | None
    agreement: float | None


Ask = Callable[[Path, Path, str], dict[str, Any]]
"""(checkpoint, file of the probe, device) → the answer of ``fresh_process.py``. Raises InvalidCheckpoint."""


def verify_checksums(directory: Path) -> int:
    """Compare every file with SHA256SUMS, exports with their own; returns the number of files.

    Raises InvalidCheckpoint that names each file that is missing, changed or not listed.
    """
    sums = directory / CHECKSUMS
    if not sums.is_file():
        raise InvalidCheckpoint(f"{directory} has no {CHECKSUMS}: it is not a Quant Experts checkpoint, or incomplete")
    digests: dict[str, str] = {}
    for number, line in enumerate(sums.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        digest, separator, name = line.partition("  ")
        if not separator or len(digest) != 64 or Path(name).is_absolute() or ".." in Path(name).parts:
            raise InvalidCheckpoint(f"{CHECKSUMS} line {number} is not '<sha256>  <name>'")
        digests[name] = digest
    exports = directory / EXPORTS_FOLDER
    present = {
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_file() and not path.is_relative_to(exports)
    }
    problems = [f"{name} is missing" for name in sorted(set(digests) - present)]
    problems += [f"{name} is not listed" for name in sorted(present - set(digests) - {CHECKSUMS})]
    problems += [
        f"{name} has changed"
        for name, digest in sorted(digests.items())
        if name in present and file_digest(directory / name) != digest
    ]
    if problems:
        raise InvalidCheckpoint(f"{directory}: {'; '.join(problems)}")
    return len(digests) + sum(verify_checksums(export) for export in sorted(exports.glob("*")))


def ask_fresh_process(directory: Path, probe: Path, device: str) -> dict[str, Any]:
    """Start one process for this checkpoint alone."""
    environment = os.environ | fresh_environment(probe.parent)
    command = [sys.executable, "-I", str(fresh_process.__file__), str(directory.resolve()), str(probe), device]
    process = subprocess.run(  # noqa: S603 -- our own interpreter and script
        command, capture_output=True, text=True, check=False, env=environment, stdin=subprocess.DEVNULL
    )
    lines = process.stdout.strip().splitlines()
    if process.returncode != 0 or not lines:
        raise loading_failed(
            directory, (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        )
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def fresh_environment(scratch: Path) -> dict[str, str]:
    """Variables of a process that runs ``fresh_process.py``, beside those that are there."""
    return {
        "HF_HUB_OFFLINE": "1",
        # The same formula as in the run, so that equal logits are equal to the bit.
        "QE_KERNELS": "reference",
        # Where transformers puts the checkpoint's loader before it imports it.
        "HF_MODULES_CACHE": str(scratch / "modules"),
    }


def loading_failed(directory: Path, reason: str) -> InvalidCheckpoint:
    return InvalidCheckpoint(f"{directory.name}: loading it in a fresh process failed: {reason}")


def verify_in_fresh_process(
    directory: Path,
    probe: Probe | None = None,
    *,
    device: str = "cpu",
    tolerance: float = TOLERANCE,
    ask: Ask = ask_fresh_process,
) -> Verdict:
    """Load the checkpoint in a fresh process without this package, and compare its logits with the probe's.

    Without a probe a few token ids are made up, and the logits only have to be finite.
    Raises InvalidCheckpoint when loading fails or leaves tensors out, or when the logits are not finite or too far off.
    """
    with tempfile.TemporaryDirectory(prefix="qe-verify-") as scratch:
        answer = ask(directory, _written(probe or Probe({}), Path(scratch)), device)
    if answer.get("problems"):
        problems = "; ".join(f"{kind}: {', '.join(names[:3])}" for kind, names in answer["problems"].items())
        raise InvalidCheckpoint(f"{directory.name}: transformers does not fill the model from it: {problems}")
    if not answer["finite"]:
        raise InvalidCheckpoint(f"{directory.name}: the loaded model's logits are not finite")
    error, agreement = answer.get("error"), answer.get("agreement")
    if error is not None and not error <= tolerance:
        raise InvalidCheckpoint(
            f"{directory.name}: the loaded model's logits are {error:.3g} off those of the model that was quantized "
            f"(relative; {tolerance} is allowed; the same token in {agreement:.0%} of places)"
        )
    return Verdict(error, agreement)


def _written(probe: Probe, directory: Path) -> Path:
    path = directory / "probe.safetensors"
    tensors = {f"inputs.{name}": tensor.detach().cpu().clone() for name, tensor in probe.inputs.items()}
    if probe.logits is not None:
        tensors["logits"] = probe.logits.detach().float().cpu().clone()
    save_file(tensors, str(path))
    return path
