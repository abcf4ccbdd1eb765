"""The user's own task: what the original and the finished checkpoint reply, and how far the scores of both are apart.

``prepare`` chooses the rows before anything is fitted, so that rows which cannot be used end a run at once. ``measure``
runs behind the verification, when the checkpoint can be loaded. Replies that cannot be made do not end a run: its
checkpoint is good.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quant_experts.calibration.captured_inputs import CapturedInputs
from quant_experts.calibration.collate import open_prompts
from quant_experts.calibration.processor import load_tokenizer
from quant_experts.calibration.samples import Choice, RowFile, open_rows
from quant_experts.errors import InvalidCalibration
from quant_experts.evaluation.generation import Ends, Generated, ReplyFile, finished_model, generate_all, original_model
from quant_experts.evaluation.multiple_choice import picked
from quant_experts.evaluation.scores import difference_of, edit_similarity, mean_of, normalised, share_of
from quant_experts.evaluation.task_rows import (
    TaskRow,
    TaskRows,
    choose_task_rows,
    drawn_positions,
    fitted_rows,
    unseen_positions,
)
from quant_experts.model.blueprint import open_blueprint
from quant_experts.model.run_context import RunContext
from quant_experts.model.tensor_file import json_digest
from quant_experts.progress import Advanced
from quant_experts.report.data import TaskEvaluation, TaskReply, TaskScore
from quant_experts.spec.choices import SCORES, Evaluation
from quant_experts.spec.specification import QuantizationSpec

MOST_TEXT = 4000
"""Characters of a text in the report."""
MANY = 0.1
"""Share of the rows from which a warning says that replies were cut, or expected ones are longer than may be made."""


@dataclass(frozen=True)
class Task:
    """What is evaluated on which rows. ``key``: of replies that are the same."""

    wanted: Evaluation
    rows: TaskRows
    ends: Ends
    tokenizer: Any
    has_template: bool
    key: str


def prepare_task(
    wanted: Evaluation,
    context: RunContext,
    calibration: RowFile,
    choice: Choice,
    inputs: CapturedInputs,
    spec: QuantizationSpec,
    *,
    follow_links: bool,
    environment: dict[str, str],
) -> Task:
    """Choose the rows. ``calibration``, ``choice``, ``inputs``: of the run, to pass over what it is fitted on.

    Raises InvalidCalibration when no row can be used, InvalidSpec for a model that does not reply with text.
    """
    source, config = context.blueprint.directory, context.blueprint.model.config
    prompt_of = open_prompts(source, config, room=wanted.max_new_tokens)
    fitted = set(fitted_rows(calibration, choice, inputs).values())
    file, positions = calibration, unseen_positions(choice)
    if wanted.dataset is not None:
        try:
            file = open_rows(Path(wanted.dataset), split=wanted.split, follow_links=follow_links)
        except InvalidCalibration as error:
            raise InvalidCalibration(f"evaluation: {error}".replace("calibration file", "file")) from error
        positions = drawn_positions(file, spec.seed)
    rows = choose_task_rows(file, positions, prompt_of, most=wanted.rows, fitted=fitted)
    tokenizer = load_tokenizer(source)
    key = json_digest([context.fingerprint, environment, wanted.max_new_tokens, [row.digest for row in rows.rows]])
    return Task(wanted, rows, Ends.of(source, config, tokenizer), tokenizer, bool(tokenizer.chat_template), key)


def measure_task(task: Task, context: RunContext, checkpoint: Path) -> tuple[TaskEvaluation, list[str]]:
    """Generate with the original, where that is wanted, and with the finished ``checkpoint``; the scores, and warnings
    about them. Raises NotGenerated, Stopped."""
    blueprint, count = context.blueprint, len(task.rows.rows)
    total = count * (1 + task.wanted.original)

    def replies_of(name: str, open_model: Any, before: int) -> list[Generated]:
        return generate_all(
            open_model,
            task.rows,
            ReplyFile(context.work / f"replies_{name}.json", task.key),
            most=task.wanted.max_new_tokens,
            ends=task.ends,
            should_stop=context.should_stop,
            on_reply=lambda done: context.on_event(Advanced("generating", before + done, total)),
        )

    full = None
    if task.wanted.original:
        # A blueprint of its own: that of the run holds norms and rotary tables for the walk.
        full = replies_of(
            "original",
            lambda: original_model(open_blueprint(blueprint.directory, device=blueprint.device)),
            0,
        )
    quantized = replies_of("quantized", lambda: finished_model(checkpoint, blueprint.device), total - count)
    evaluation = _evaluation(task, full, quantized)
    return evaluation, list(_warnings(task, quantized, evaluation))


def _evaluation(task: Task, full: Sequence[Generated] | None, quantized: Sequence[Generated]) -> TaskEvaluation:
    replies, before, after = list[TaskReply](), list[dict[str, float]](), list[dict[str, float]]()
    for index, row in enumerate(task.rows.rows):
        text = _text(task, row, quantized[index])
        after.append(scores_of(text, row))
        reply = TaskReply(
            row=row.number,
            question=_short(row.question),
            reference=_short(row.reference),
            choices=[_short(each) for each in row.choices.texts] if row.choices else [],
            quantized=_short(text),
            quantized_ended=quantized[index].ended,
            scores_quantized=after[-1],
        )
        if full is not None:
            text = _text(task, row, full[index])
            before.append(scores_of(text, row))
            reply = reply.model_copy(
                update={"full": _short(text), "full_ended": full[index].ended, "scores_full": before[-1]}
            )
        replies.append(reply)
    scores = [_score(name, before if full is not None else None, after) for name in SCORES]
    return TaskEvaluation(
        dataset=None if task.wanted.dataset is None else Path(task.wanted.dataset).name,
        rows=len(replies),
        rows_skipped=task.rows.skipped,
        max_new_tokens=task.wanted.max_new_tokens,
        scores=[score for score in scores if score is not None],
        replies=replies,
    )


def scores_of(reply: str, row: TaskRow) -> dict[str, float]:
    """Score → value of one reply; of ``multiple_choice`` only for a row with choices."""
    scores = {
        "exact_match": float(normalised(reply) == normalised(row.reference)),
        "edit_similarity": edit_similarity(reply, row.reference),
    }
    if row.choices is not None:
        scores["multiple_choice"] = float(picked(reply, row.choices) == row.choices.right)
    return scores


def _score(name: Any, before: Sequence[dict[str, float]] | None, after: Sequence[dict[str, float]]) -> TaskScore | None:
    """None for a score that no row has."""
    now = [scores[name] for scores in after if name in scores]
    if not now:
        return None
    interval = mean_of if name == "edit_similarity" else share_of
    if before is None:
        return TaskScore(name=name, rows=len(now), quantized=interval(now))
    then = [scores[name] for scores in before if name in scores]
    return TaskScore(
        name=name, rows=len(now), full=interval(then), quantized=interval(now), difference=difference_of(then, now)
    )


def _text(task: Task, row: TaskRow, reply: Generated) -> str:
    """What counts of a reply: what follows the thoughts of a model that writes them down. A model without a chat
    template does not know where to end: as many lines as the expected reply has."""
    text = str(task.tokenizer.decode(list(reply.tokens), skip_special_tokens=True)).rpartition("</think>")[2].strip()
    if task.has_template:
        return text
    return "\n".join(text.split("\n")[: row.reference.count("\n") + 1]).strip()


def _short(text: str) -> str:
    """What a report, a page and a database can hold of a text: no control characters, no halves of surrogate pairs."""
    text = text if len(text) <= MOST_TEXT else f"{text[: MOST_TEXT - 1]}…"
    return "".join("\N{REPLACEMENT CHARACTER}" if _is_unwritable(each) else each for each in text)


def _is_unwritable(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t"


def _warnings(task: Task, quantized: Sequence[Generated], evaluation: TaskEvaluation) -> Any:
    count, most = len(task.rows.rows), task.wanted.max_new_tokens
    longer = sum(
        len(task.tokenizer(row.reference, add_special_tokens=False)["input_ids"]) > most for row in task.rows.rows
    )
    cut = sum(not reply.ended for reply in quantized)
    if longer > MANY * count:
        yield (
            f"evaluation: {longer} of {count} expected replies are longer than max_new_tokens {most}, so that no reply "
            "can match them: give more"
        )
    elif cut > MANY * count and task.has_template:
        yield f"evaluation: {cut} of {count} replies were cut at max_new_tokens {most}: give more, if they should end"
    if count < task.wanted.rows and task.wanted.dataset is None:
        yield (
            f"evaluation: {count} rows are held out or were not needed, {task.wanted.rows} were asked for; the fewer "
            "there are, the wider are the intervals"
        )
    exact = evaluation.score("exact_match")
    similar = evaluation.score("edit_similarity")
    if exact and similar and exact.full and similar.full and similar.full.value < 0.2 and not exact.full.value:
        yield (
            "evaluation: the original itself gives almost nothing of the expected replies, so that its scores say "
            "little about quantization; are the rows in the form that it was trained on?"
        )
