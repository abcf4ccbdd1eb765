"""Real text from Debian's documentation packages, in windows of a fixed number of tokens.

Calibration and evaluation read different documents of the same kinds: programming documentation, a handbook for
administrators, prose.
"""

from __future__ import annotations

import gzip
import random
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGES = (
    *("python3.11-doc", "debian-policy", "anarchism"),
    *("developers-reference", "debian-reference-en", "jargon-text"),
)
SHORTEST = 4_000
"""Characters of a document that is used: shorter ones are redirections."""
SHORTEST_PARAGRAPH = 40
"""Characters of a paragraph that is used: shorter ones are entries of an index."""


@dataclass(frozen=True)
class Kind:
    """``calibration``, ``evaluation``: glob patterns below the unpacked packages; no file matches both."""

    name: str
    calibration: tuple[str, ...]
    evaluation: tuple[str, ...]


KINDS = (
    Kind(
        "programming",
        calibration=("usr/share/doc/python3.11/html/_sources/library/*.txt",),
        evaluation=(
            "usr/share/doc/python3.11/html/_sources/howto/*.txt",
            "usr/share/doc/python3.11/html/_sources/tutorial/*.txt",
        ),
    ),
    Kind(
        "administration",
        calibration=("usr/share/doc/debian-policy/policy.txt.gz", "usr/share/doc/debian-reference-en/*.txt.gz"),
        evaluation=("usr/share/developers-reference/_sources/*.txt",),
    ),
    Kind(
        "prose",
        calibration=("usr/share/doc/anarchism/markdown/*.md*",),
        evaluation=("usr/share/doc/jargon-text/jargon.txt.gz",),
    ),
)


def unpack(directory: Path) -> Path:
    """The packages' files below ``directory``, fetched by apt on first use."""
    root, done = directory / "root", directory / ".unpacked"
    if not done.is_file():
        root.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-qq", *PACKAGES], cwd=directory, check=True)
        for archive in sorted(directory.glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", str(archive), str(root)], check=True)
            archive.unlink()
        done.touch()
    return root


def windows(root: Path, part: str, tokenizer: Any, *, count: int, tokens: int, seed: int) -> Iterator[tuple[str, str]]:
    """``count`` times (kind, text of at most ``tokens`` tokens), each from a place drawn at random, kinds in turn.

    ``part``: ``calibration`` or ``evaluation``. No two windows overlap.
    """
    source = random.Random(f"{seed} {part}")
    cut = {kind.name: _cut(_documents(root, getattr(kind, part)), tokenizer, tokens, source) for kind in KINDS}
    for number in range(count):
        kind = KINDS[number % len(KINDS)].name
        yield kind, next(cut[kind])


def _documents(root: Path, patterns: Sequence[str]) -> list[str]:
    paths = sorted(path for pattern in patterns for path in root.glob(pattern) if path.is_file())
    texts = [_read(path) for path in paths]
    return [text for text in texts if len(text) >= SHORTEST]


def _read(path: Path) -> str:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return re.sub(r"\n{3,}", "\n\n", content.decode("utf-8", errors="replace"))


def _cut(documents: list[str], tokenizer: Any, tokens: int, source: random.Random) -> Iterator[str]:
    """Windows that begin at a paragraph, one from a document before any gives a second."""
    parts = [[p for p in document.split("\n\n") if len(p) >= SHORTEST_PARAGRAPH] for document in documents]
    source.shuffle(parts)
    starts = [source.randrange(max(1, len(part) // 3)) for part in parts]
    while True:
        for place, part in enumerate(parts):
            ids: list[int] = []
            while starts[place] < len(part) and len(ids) < tokens:
                ids += tokenizer(part[starts[place]] + "\n\n", add_special_tokens=False)["input_ids"]
                starts[place] += 1
            if len(ids) >= tokens:
                yield tokenizer.decode(ids[:tokens])
        if all(start >= len(part) for start, part in zip(starts, parts, strict=True)):
            raise ValueError("the documents do not hold as many windows")
