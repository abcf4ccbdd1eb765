"""``--evaluation`` and what goes with it: the user's own task, before and after quantization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from pydantic import ValidationError

from quant_experts.spec.choices import MOST_EVALUATION_ROWS, MOST_NEW_TOKENS, AcceptIf, Evaluation

HELD_OUT = "held-out"
OPTIONS = ("evaluation", "evaluation_split", "evaluation_rows", "evaluation_tokens", "evaluation_original")


def evaluation_options(rows: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator. ``rows``: what the command takes as rows beside ``held-out``."""
    options = (
        click.option(
            "--evaluation",
            metavar=f"{rows}|{HELD_OUT}",
            help="Generate greedy replies to these rows with the original and the checkpoint, and score them; "
            f"{HELD_OUT}: to calibration rows that are not fitted on.",
        ),
        click.option("--evaluation-split", metavar="NAME", help="Split of that dataset.  [default: train]"),
        click.option(
            "--evaluation-rows",
            type=click.IntRange(1, MOST_EVALUATION_ROWS),
            metavar="N",
            help="At most so many of them.  [default: 32]",
        ),
        click.option(
            "--evaluation-tokens",
            type=click.IntRange(1, MOST_NEW_TOKENS),
            metavar="N",
            help="Cut replies there.  [default: 64]",
        ),
        click.option(
            "--evaluation-original/--no-evaluation-original",
            "evaluation_original",
            default=None,
            help="Generate with the original too, which needs memory for all of it.  [default: with it]",
        ),
    )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def evaluation_fields(options: dict[str, Any]) -> dict[str, Any] | None:
    """Take the options out of ``options``; as the field of a job, None without ``--evaluation``.

    Raises UsageError when one is given without it.
    """
    fields = evaluation_changes(options)
    if fields is not None and "dataset" not in fields:
        name = next(name for name in OPTIONS if _field(name) in fields)
        raise click.UsageError(f"--{name.replace('_', '-')} goes with --evaluation")
    return fields


def evaluation_changes(options: dict[str, Any]) -> dict[str, Any] | None:
    """The same with what is given alone, for a job that has an evaluation already; held-out rows are dataset None."""
    given = {_field(name): value for name in OPTIONS if (value := options.pop(name, None)) is not None}
    if given.get("dataset") == HELD_OUT:
        given["dataset"] = None
    return given or None


def _field(option: str) -> str:
    return {"evaluation": "dataset", "evaluation_tokens": "max_new_tokens"}.get(
        option, option.removeprefix("evaluation_")
    )


def evaluation_of(options: dict[str, Any], accept_if: AcceptIf | None) -> Evaluation | None:
    """The same as the library takes it. Raises UsageError, also for a limit that can never be kept."""
    fields = evaluation_fields(options)
    try:
        evaluation = None if fields is None else Evaluation(**fields)
    except ValidationError as error:  # bounds are those of the options
        raise click.UsageError(f"--evaluation: {error.errors(include_url=False)[0]['msg']}") from error
    refusal = accept_if.refusal(evaluation) if accept_if is not None else None
    if refusal is not None:
        raise click.UsageError(f"accept_if {refusal}")
    return evaluation
