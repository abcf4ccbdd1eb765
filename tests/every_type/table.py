"""What came of every type: kept as lines of JSON, and a table of them for the docs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import transformers

from tests.every_type.check import GROUPS, TYPES, Outcome

BEGIN, END = "<!-- every type: make models -->", "<!-- end -->"
COLUMNS = {
    "discovered": "discovered",
    "quantized": "quantized W4A8 `qe`",
    "loaded": "same logits in a fresh process",
    "generates": "generates",
}
HEAD = """# Every type of transformers, as far as it runs

    make models

Each type's tiny model, made from its default configuration, W4A8 with method `qe`, on rows of text. "Same logits in a
fresh process": a process with `trust_remote_code` and nothing of ours loads the checkpoint. "Plan exact": the planner
says its bytes to the byte. [Which models](models.md) says what is tested with processors and images.
"""
Outcomes = dict[tuple[str, str], Outcome]


def read_results(path: Path) -> Outcomes:
    """Of types that the installed transformers has."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = [Outcome(**json.loads(line)) for line in lines]
    return {(each.group, each.kind): each for each in found if (each.group, each.kind) in TYPES}


def write_results(path: Path, outcomes: Mapping[tuple[str, str], Outcome]) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text("".join(json.dumps(asdict(outcomes[each])) + "\n" for each in TYPES if each in outcomes))
    fresh.rename(path)


def write_page(outcomes: Mapping[tuple[str, str], Outcome], page: Path) -> None:
    page.write_text("\n".join([HEAD, *_lines(outcomes)]))


def write_summary(outcomes: Mapping[tuple[str, str], Outcome], page: Path) -> None:
    """Between the marks in ``page``."""
    before, _, rest = page.read_text().partition(BEGIN)
    lines = [f"- {group}: {_summary(group, outcomes)}" for group in GROUPS]
    page.write_text("\n".join([before + BEGIN, *lines, END + rest.partition(END)[2]]))


def _of_group(group: str, outcomes: Mapping[tuple[str, str], Outcome]) -> list[Outcome]:
    return [outcomes[each] for each in TYPES if each[0] == group and each in outcomes]


def _summary(group: str, outcomes: Mapping[tuple[str, str], Outcome]) -> str:
    of_group = _of_group(group, outcomes)
    reached = [f"{title} {sum(stage in each.reached for each in of_group)}" for stage, title in COLUMNS.items()]
    exact = sum(each.plan is None for each in of_group)
    known = f"{len(of_group)} of {len(GROUPS[group])} types of transformers {transformers.__version__} were run"
    return f"{known}; {', '.join(reached)}, plan exact {exact}."


def _lines(outcomes: Mapping[tuple[str, str], Outcome]) -> Iterator[str]:
    for group in GROUPS:
        yield f"## {group}"
        yield ""
        yield _summary(group, outcomes)
        yield ""
        yield f"| type | {' | '.join(COLUMNS.values())} | plan exact | where it ends |"
        yield f"|---|{'---|' * (len(COLUMNS) + 2)}"
        for each in _of_group(group, outcomes):
            marks = " | ".join("yes" if stage in each.reached else "–" for stage in COLUMNS)
            reason = each.reason or ("" if each.plan is None else f"plan: {each.plan}")
            yield f"| `{each.kind}` | {marks} | {'yes' if each.plan is None else '–'} | {_cell(reason)} |"
        yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
