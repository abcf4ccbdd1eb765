"""How many tokens each text makes: a program of its own, which may be killed and may take no more than it is given.

What it reads from its standard input: eight bytes with the length of a ``tokenizer.json``, the file, then one JSON line
``[text, special]`` for each text. What it writes at the end: ``{"counts": [[tokens, largest id], …]}``, or
``{"error": "…"}``. A tokenizer
file is a program of regular expressions and replacements from a repository that anybody may have written: it can be
made to run for years, or to fill the memory.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterable, Sequence
from typing import Any


def main(seconds: int, memory: int) -> None:
    """``seconds``: of the CPU; ``memory``: bytes of address space."""
    for limit, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    reader = sys.stdin.buffer
    file = reader.read(int.from_bytes(reader.read(8), "little"))
    sys.stdout.write(json.dumps(counted(file, map(json.loads, reader))))


def counted(file: bytes, texts: Iterable[Sequence[Any]]) -> dict[str, object]:
    """``texts``: pairs of text and special. Raises nothing."""
    counts: list[tuple[int, int]] = []
    try:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(file.decode())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        for text, special in texts:
            ids = tokenizer.encode(text, add_special_tokens=special).ids
            counts.append((len(ids), max(ids, default=-1)))
    except BaseException as error:  # noqa: BLE001 -- of the library's own: a panic in it is no Exception
        return {"error": " ".join(f"{error or type(error).__name__}".split())[:200]}
    return {"counts": counts}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
