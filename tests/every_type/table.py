"""The table of every type in docs/models.md, from the results of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import transformers

BEGIN, END = "<!-- every type: make models -->", "<!-- end -->"
COLUMNS = {
    "discovered": "discovered",
    "quantized": "quantized W4A8 `qe`",
    "loaded": "same logits in a fresh process",
    "generates": "generates",
}


def write_table(results: Path, page: Path) -> None:
    """Between the marks in ``page``."""
    outcomes = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text("\n".join([before + BEGIN, "", *_lines(outcomes), "", END + after]))


def _lines(outcomes: Sequence[dict[str, Any]]) -> Iterator[str]:
    for group in ("image-text-to-text", "causal"):
        of_group = [outcome for outcome in outcomes if outcome["group"] == group]
        counts = ", ".join(
            f"{title} {sum(column in outcome['reached'] for outcome in of_group)}" for column, title in COLUMNS.items()
        )
        counts += f", plan exact {sum(outcome['plan'] is None for outcome in of_group)}"
        yield f"### {group}: {len(of_group)} types of transformers {transformers.__version__}"
        yield ""
        yield f"{counts}."
        yield ""
        yield f"| type | {' | '.join(COLUMNS.values())} | plan exact | where it ends |"
        yield f"|---|{'---|' * (len(COLUMNS) + 2)}"
        for outcome in of_group:
            marks = " | ".join("yes" if column in outcome["reached"] else "–" for column in COLUMNS)
            exact = outcome["plan"] is None
            reason = outcome["reason"] or ("" if exact else f"plan: {outcome['plan']}")
            yield f"| `{outcome['kind']}` | {marks} | {'yes' if exact else '–'} | {_cell(reason)} |"
        yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
