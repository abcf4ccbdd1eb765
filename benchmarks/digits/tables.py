"""The figures of the accuracy benchmark as Markdown, and the sentences that follow from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.digits.intervals import over_seeds, paired_ratio
from benchmarks.digits.reading import wilson

QE = "qe"
ACTIVE_RIVALS = ("rtn", "smoothquant", "mbq", "lqer", "aser", "lqer + search", "aser + search")
"""What QE is held against at equal active rank, or at less."""

LEGEND = """\
KL: nats per answer token to the full-precision model on held-out digits, mean over calibration seeds ± half of the 95 %
interval (Student; RTN and SVD do not look at the rows and have one run). "/ qe": that KL over QE's on the same
questions, with the 95 % interval of a paired bootstrap over questions: above 1, QE is closer to the full-precision
model. "recovered": share of RTN's KL that is gone. Accuracy: answers exactly right, with the Wilson interval of one
run's questions. Perplexity: of the right answers. Bits: stored per quantized weight, adapters and routers included.
Seconds: calibrate, fit and evaluate. Peak: resident memory over
what the process (torch included) held before.
"""

Cell = dict[str, Any]


def method_tables(found: dict[str, Any]) -> str:
    environment = found["environment"]
    trained = environment["trained_model"]
    lines = [
        "# Accuracy on a trained vision-language model",
        "",
        f"    {environment['command']}",
        "",
        f"{environment['machine']}, Python {environment['python']}, torch {environment['torch']}, transformers "
        f"{environment['transformers']}; {environment['calibration_rows']} calibration rows, seeds "
        f"{', '.join(map(str, environment['seeds']))}; {environment['test_questions_per_task']} test questions for "
        f"each of six tasks; {environment['processes']} at a time, one thread each.",
        "",
        f"The model: Qwen2-VL architecture, {trained['parameters'] / 1e6:.1f} M parameters, trained here "
        f"(`{trained['command'].strip()}`, {trained['seconds'] / 60:.0f} minutes) to read handwritten digits on "
        "coloured boards. Variant *outlier* computes exactly the same function; its activation outliers were made by "
        "hand (benchmarks/digits/outliers.py). The static ones among them are what SmoothQuant undoes exactly; those "
        "that come and go with the token it cannot undo.",
        "",
        LEGEND,
    ]
    for variant, full in found["full_precision"].items():
        lines += [
            f"## Variant {variant}",
            "",
            f"Full precision: accuracy {_accuracy([full], 'all')}, digit at a place {_accuracy([full], 'digit')}, "
            f"perplexity {full['perplexity']:.4f}.",
            "",
        ]
        for scheme in _schemes(found["methods"], variant):
            cells = [c for c in found["methods"] if c["variant"] == variant and c["scheme"] == scheme]
            lines += [f"### {variant}, {scheme}", "", *_table(cells), "", *_sentences(cells), ""]
    return "\n".join(lines)


def ablation_tables(found: dict[str, Any]) -> str:
    lines = [
        "",
        "## Ablations of QE",
        "",
        "One thing changed at a time, variant outlier. Without a shared expert no column is exempt.",
        "",
    ]
    for scheme in _schemes(found["ablations"], None):
        cells = [c for c in found["ablations"] if c["scheme"] == scheme]
        lines += [f"### {scheme}", "", *_table(cells), ""]
    return "\n".join(lines)


def _schemes(cells: Sequence[Cell], variant: str | None) -> list[str]:
    return list(dict.fromkeys(c["scheme"] for c in cells if variant in (None, c["variant"])))


def _table(cells: Sequence[Cell]) -> Iterator[str]:
    """One scheme: equal active rank first, then equal stored bytes."""
    by_label = {cell["label"]: cell["runs"] for cell in cells}
    yield "| method | KL | / qe | recovered | accuracy | digit | perplexity | bits | s | peak MB |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for cell in sorted(cells, key=lambda cell: cell["stored"]):
        runs = cell["runs"]
        yield " | ".join(
            [
                f"| {cell['label']}{_chosen(runs)}",
                _kl(runs),
                _against(runs, by_label.get(QE)),
                _recovered(runs, by_label.get("rtn")),
                _accuracy(runs, "all"),
                _accuracy(runs, "digit", interval=False),
                f"{_mean(runs, 'perplexity'):.4f}",
                f"{_mean(runs, 'effective_bits'):.2f}",
                f"{_mean(runs, 'seconds'):.1f}",
                f"{_mean(runs, 'peak_bytes') / 1e6:.0f} |",
            ]
        )


def _sentences(cells: Sequence[Cell]) -> Iterator[str]:
    """What the table says about QE, in words."""
    by_label = {cell["label"]: cell for cell in cells}
    if QE not in by_label:
        return
    qe = by_label[QE]["runs"]
    if "rtn" in by_label:
        yield f"* QE recovers {_recovered(qe, by_label['rtn']['runs'])} of the KL that RTN loses."
    yield from _verdicts("At equal active rank, or less", [by_label[n] for n in ACTIVE_RIVALS if n in by_label], qe)
    yield from _verdicts("At equal stored bytes", [cell for cell in cells if cell["stored"]], qe)


def _verdicts(opening: str, rivals: Sequence[Cell], qe: Sequence[Cell]) -> Iterator[str]:
    sorted_out: dict[str, list[str]] = {"beats": [], "does not differ clearly from": [], "loses to": []}
    for rival in rivals:
        sorted_out[_verdict(rival["runs"], qe)].append(rival["label"])
    parts = [f"{verb} {', '.join(labels)}" for verb, labels in sorted_out.items() if labels]
    if parts:
        yield f"* {opening}, QE {'; '.join(parts)}."


def _verdict(rival: Sequence[Cell], qe: Sequence[Cell]) -> str:
    """Clear: the intervals over seeds are apart, and the ratio's interval over questions does not hold 1."""
    (theirs, their_half), (ours, our_half) = over_seeds(_all(rival, "kl")), over_seeds(_all(qe, "kl"))
    apart = abs(theirs - ours) > (their_half or 0.0) + (our_half or 0.0)
    _, low, high = paired_ratio(_all(rival, "kl_of_rows"), _all(qe, "kl_of_rows"))
    if apart and low > 1:
        return "beats"
    return "loses to" if apart and high < 1 else "does not differ clearly from"


def _all(runs: Sequence[Cell], name: str) -> list[Any]:
    return [run[name] for run in runs]


def _mean(runs: Sequence[Cell], name: str) -> float:
    return float(sum(_all(runs, name))) / len(runs)


def _kl(runs: Sequence[Cell]) -> str:
    mean, half = over_seeds(_all(runs, "kl"))
    return f"{mean:.3g}" + ("" if half is None else f" ± {half:.1g}")


def _against(runs: Sequence[Cell], qe: Sequence[Cell] | None) -> str:
    if qe is None:
        return "–"
    ratio, low, high = paired_ratio(_all(runs, "kl_of_rows"), _all(qe, "kl_of_rows"))
    return f"{ratio:.2f} [{low:.2f}, {high:.2f}]"


def _recovered(runs: Sequence[Cell], rtn: Sequence[Cell] | None) -> str:
    return "–" if rtn is None else f"{1 - _mean(runs, 'kl') / _mean(rtn, 'kl'):.0%}"


def _accuracy(runs: Sequence[Cell], task: str, *, interval: bool = True) -> str:
    asked = runs[0]["tasks"][task][1]
    share = sum(run["tasks"][task][0] for run in runs) / len(runs) / asked
    low, high = wilson(share * asked, asked)
    return f"{share:.1%} [{low:.1%}, {high:.1%}]" if interval else f"{share:.1%}"


def _chosen(runs: Sequence[Cell]) -> str:
    """The candidate that was chosen, where there was a choice."""
    alphas = sorted({run["spec"].get("smoothquant_alpha", 0.5) for run in runs})
    is_choice = runs[0]["spec"].get("smoothing") == "smoothquant"
    return f" (alpha {', '.join(map(str, alphas))})" if is_choice else ""
