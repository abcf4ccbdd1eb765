"""Random numbers that depend on a seed and names, never on what ran before, so that a resumed run is bit-identical."""

from __future__ import annotations

import hashlib

import torch


def stable_seed(seed: int, *names: str) -> int:
    """A 63-bit integer from the run's seed and a path of names, the same on every machine and Python version."""
    text = "\x1f".join((str(seed), *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str) -> torch.Generator:
    """A fresh CPU generator for one purpose; draw on the CPU and move, so that devices agree on the numbers."""
    return torch.Generator(device="cpu").manual_seed(stable_seed(seed, *names))
