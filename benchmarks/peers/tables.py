"""The comparison with a peer as Markdown: its own table, and the ratios that were asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.digits.intervals import over_seeds, paired_ratio

Cell = dict[str, Any]
RIVALS = ("gptq", "awq", "smoothquant", "rtn")


def page(found: dict[str, Any]) -> str:
    peer = found["peer"]
    lines = [
        "# QE against llm-compressor",
        "",
        f"    {found['command']}",
        "",
        f"llm-compressor {peer['llmcompressor']} (transformers {peer['transformers']}, torch {peer['torch']}), "
        f"{found['threads']} threads, {found['rows']} calibration rows, seeds {', '.join(map(str, found['seeds']))}. "
        "The same weights, rows, layers, group size and test questions for both. KL: nats per answer token to the "
        "full-precision model. Seconds: quantization only, without imports, loading, saving and verifying; ours "
        "include the evaluation of held-out rows.",
        "",
    ]
    for variant in dict.fromkeys(c["variant"] for c in found["cells"]):
        for scheme in dict.fromkeys(c["scheme"] for c in found["cells"]):
            cells = _best([c for c in found["cells"] if (c["variant"], c["scheme"]) == (variant, scheme)])
            lines += [f"## {variant}, {scheme}", "", *_table(cells), "", *_ratios(cells), ""]
    noise = max(r["kl_of_its_full_precision"] for c in found["cells"] for r in c["runs"] if c["by"] != "quant-experts")
    lines += [
        f"The two environments' full-precision models differ by a KL of {noise:.1e}: differences below that are noise.",
        "",
    ]
    return "\n".join(lines)


def _best(cells: Sequence[Cell]) -> list[Cell]:
    """Of the peer's SmoothQuant strengths, the best on the test questions."""
    plain = [c for c in cells if not c["label"].startswith("smoothquant:")]
    tried = [c for c in cells if c["label"].startswith("smoothquant:")]
    return [*plain, *([min(tried, key=lambda c: over_seeds([r["kl"] for r in c["runs"]])[0])] if tried else [])]


def _table(cells: Sequence[Cell]) -> Iterator[str]:
    yield "| by | method | KL | accuracy | s |"
    yield "|---|---|---:|---:|---:|"
    for cell in sorted(cells, key=lambda c: c["by"]):
        runs = cell["runs"]
        mean, half = over_seeds([run["kl"] for run in runs])
        spread = "" if half is None else f" ± {half:.1g}"
        hits, asked = sum(r["tasks"]["all"][0] for r in runs), sum(r["tasks"]["all"][1] for r in runs)
        yield f"| {cell['by']} | {cell['label']} | {mean:.3g}{spread} | {hits / asked:.1%} | {_seconds(runs):.1f} |"


def _ratios(cells: Sequence[Cell]) -> Iterator[str]:
    """QE and QE on a GPTQ base, each against every method of the peer."""
    ours = {c["label"]: c["runs"] for c in cells if c["by"] == "quant-experts"}
    theirs = {c["label"].partition(":")[0]: c["runs"] for c in cells if c["by"] != "quant-experts"}
    for label in ("qe", "qe-gptq"):
        for rival in RIVALS:
            if label in ours and rival in theirs:
                a, b = ([run["kl_of_rows"] for run in runs] for runs in (theirs[rival], ours[label]))
                ratio, low, high = paired_ratio(a, b)
                time = _seconds(ours[label]) / _seconds(theirs[rival])
                yield f"* llm-compressor's {rival} has {ratio:.2f} [{low:.2f}, {high:.2f}] times the KL of {label}; "
                yield f"  {label} takes {time:.2f} times its wall time."


def _seconds(runs: Sequence[Cell]) -> float:
    return float(sum(run["seconds"] for run in runs)) / len(runs)
