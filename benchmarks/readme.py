"""The figures of the README, taken from ``benchmarks/results`` so that the two cannot differ.

    python -m benchmarks.readme            write them between the README's markers
    python -m benchmarks.readme --check    end with 1 where the README says something else

A row of a table names the file, the heading, the row and the columns that it shows. A sentence names the patterns that
find its figures.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
BLOCK = re.compile(r"(<!-- figures: make readme -->\n).*?(<!-- end of figures -->)", re.DOTALL)


@dataclass(frozen=True)
class Row:
    """``row``: the cells that the row of the result begins with."""

    label: str
    file: str
    heading: str
    row: tuple[str, ...]
    bold: bool = False


@dataclass(frozen=True)
class Sentence:
    """``text`` holds one ``{}`` for each of ``patterns``, whose first group is the figure."""

    label: str
    file: str
    text: str
    patterns: tuple[str, ...]


ACCURACY = {
    "SmolLM2-135M, W4A16, groups of 64": [
        Row("plain rounding", "real_quick.md", "W4A16", ("rtn, groups of 64, max grid",)),
        Row("llm-compressor's GPTQ", "real_peers.md", "W4A16", ("llm-compressor GPTQ",)),
        Row("AutoRound, its default 200 iterations", "real_peers.md", "W4A16", ("AutoRound, 200 iterations",)),
        Row("`fast`", "real_peers.md", "W4A16", ("fast",)),
        Row("`balanced --reconstruction none`", "real_peers.md", "W4A16", ("balanced, without experts",)),
        Row("`best --reconstruction none`", "real_peers.md", "W4A16", ("best, without experts",)),
        Row("`balanced`, the default, with experts", "real_peers.md", "W4A16", ("balanced",)),
        Row("`best`", "real_peers.md", "W4A16", ("best",)),
        Row(
            "weight bits by need in the place of experts (`--bits-per-weight`)",
            "real_ranks.md",
            "Weight bits in the place of experts",
            ("budget in the place of experts",),
        ),
    ],
    "Vision-language model trained here, outlier channels made by hand, W4A6 (`method_version` 1)": [
        Row("plain rounding", "accuracy.md", "outlier, W4A6", ("rtn",)),
        Row("QE as published (`qe-paper`)", "accuracy.md", "outlier, W4A6", ("qe-paper",)),
        Row("QE on GPTQ (`qe-gptq`)", "accuracy.md", "outlier, W4A6", ("qe-gptq",), bold=True),
        Row(
            "ASER with QE's search for a scaling, same active rank", "accuracy.md", "outlier, W4A6", ("aser + search",)
        ),
    ],
}
OTHERS = [
    Sentence(
        "[Memory](benchmarks/results/memory.md): one block, not one model",
        "memory.md",
        "{} for 24 blocks of width 1024, {} for 6",
        (r"\| 24 \|[^|]*\|[^|]*\| ([\d,]+ MB)", r"\| 6 \|[^|]*\|[^|]*\| ([\d,]+ MB)"),
    ),
    Sentence(
        "[Faults](benchmarks/results/faults.md)",
        "faults.md",
        "{} jobs under {} SIGKILLs, {} outages of the database and {} of the broker: none lost or doubled",
        (r"\n([\d,]+) jobs, \1 succeeded", r"([\d,]+) SIGKILLs", r"(\d+) database outages", r"(\d+) broker outages"),
    ),
    Sentence(
        "[Load](benchmarks/results/load.md)",
        "load.md",
        "{} jobs of {} clients, {} a second: none lost or doubled",
        (r"([\d,]+) rows with those below, \1 succeeded, \1 ends", r"queued by (\d+) clients", r"end: ([\d.]+) jobs/s"),
    ),
]


def section(file: str, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, the names of its columns first."""
    text = (RESULTS / file).read_text(encoding="utf-8")
    _, found, rest = text.partition(f"# {heading}\n")
    if not found:
        raise SystemExit(f"benchmarks/results/{file} has no heading {heading!r}")
    rows = []
    for line in rest.splitlines():
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows or line.startswith("#"):
            break
    return rows


def table_line(row: Row) -> str:
    columns, _, *rows = section(row.file, row.heading)
    matching = [cells for cells in rows if tuple(cells[: len(row.row)]) == row.row]
    if len(matching) != 1:
        raise SystemExit(f"benchmarks/results/{row.file}, {row.heading}: {len(matching)} rows begin with {row.row}")
    kl, bits = (matching[0][columns.index(name)].split(" ")[0] for name in ("KL", "bits"))
    kl = f"{float(kl):.3g}" if float(kl) < 0.1 else f"{float(kl):.3f}"
    return f"| {row.label} | {f'**{kl}**' if row.bold else kl} | {bits} |"


def sentence_line(sentence: Sentence) -> str:
    text = (RESULTS / sentence.file).read_text(encoding="utf-8")
    matches = [re.search(pattern, text) for pattern in sentence.patterns]
    missing = [pattern for pattern, match in zip(sentence.patterns, matches, strict=True) if match is None]
    if missing:
        raise SystemExit(f"benchmarks/results/{sentence.file} has nothing that matches {missing}")
    return f"| {sentence.label} | {sentence.text.format(*(match[1] for match in matches if match))} |"


def figures() -> str:
    lines = []
    for title, rows in ACCURACY.items():
        lines += [f"| {title} | KL | bits per weight |", "|---|---:|---:|", *map(table_line, rows), ""]
    lines += ["| Also measured, on two cores | |", "|---|---|", *map(sentence_line, OTHERS), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the README's figures from benchmarks/results.")
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 where they differ")
    arguments = parser.parse_args()
    before = README.read_text(encoding="utf-8")
    after, blocks = BLOCK.subn(lambda match: f"{match[1]}{figures()}{match[2]}", before)
    if blocks != 1:
        raise SystemExit("README.md needs the two markers around its figures once")
    if arguments.check and before != after:
        sys.exit("the README's figures are not those of benchmarks/results: run `make readme`")
    if not arguments.check:
        README.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
