"""The user's own task: a model that answers questions about handwritten digits, before and after quantization."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from benchmarks.digits.boards import COLOURS, draw_question
from quant_experts.calibration.collate import open_prompts
from quant_experts.checkpoint.verify import verify_checksums
from quant_experts.errors import InvalidCalibration, InvalidSpec, Stopped
from quant_experts.evaluation import generation
from quant_experts.progress import Advanced, Event, Forecast, PhaseStarted
from quant_experts.report.data import QualityReport
from quant_experts.run.quantize import quantize
from quant_experts.spec.choices import AcceptIf, Evaluation
from quant_experts.spec.specification import QuantizationSpec
from tests.models import make_model
from tests.rows import text_row, write_rows

DIGITS = Path(__file__).parent.parent.parent / "benchmarks" / "digits" / "repository"
FAST = QuantizationSpec.preset("fast", scheme="W4A16", samples=6)
QUESTION, LONG = "Which colour is it? \U0001f41e <script>alert(1)</script>", "red green blue yellow " * 700


def run(directory: Path, model: Path, **arguments: Any) -> QualityReport:
    """A run over ``directory``/rows.jsonl into ``directory``/out."""
    rows, work = directory / "rows.jsonl", directory / "work"
    return quantize(model=model, calibration=rows, output=directory / "out", work=work, **{"spec": FAST, **arguments})


def boards(count: int, seed: int) -> Iterator[dict[str, Any]]:
    random = np.random.default_rng(seed)
    while count:
        row = draw_question("held-out", random).row()
        if row["messages"][0]["content"][-1]["text"] != "Describe the board.":  # eight words of a reply
            yield row
            count -= 1


def said(*turns: str) -> dict[str, Any]:
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, QualityReport, list[Event]]:
    """Directory, report and events of a run whose task has rows of all kinds."""
    directory = tmp_path_factory.mktemp("task")
    calibration = list(boards(10, seed=1))
    write_rows(directory / "rows.jsonl", calibration)
    asked = [{**row, "choices": list(COLOURS)} if row["messages"][-1]["content"] in COLOURS else row
             for row in boards(10, seed=2)]  # fmt: skip
    odd = [
        said("no reply"),
        {"messages": [{"role": "assistant", "content": "nothing before it"}]},
        {"messages": [{"role": "user", "content": "a picture?"}, {"role": "assistant", "content": "  "}]},
        said(LONG, "red"),
        said("Which colour is it?", "red", QUESTION, "\u00e9\u732b\x07\u0000 " + LONG),
        calibration[0],
        calibration[9],
    ]
    write_rows(directory / "task.jsonl", [*asked, *odd])
    events: list[Event] = []
    report = run(
        directory,
        DIGITS,
        spec=QuantizationSpec.preset("fast", scheme="W3A6", samples=8),
        evaluation=Evaluation(dataset=str(directory / "task.jsonl"), max_new_tokens=8),
        accept_if=AcceptIf(min_exact_match=0.99, max_edit_similarity_drop=1.0),
        on_event=events.append,
    )
    return directory, report, events


def test_both_models_reply_and_the_original_is_right_more_often_than_chance(
    evaluated: tuple[Path, QualityReport, list[Event]],
) -> None:
    directory, report, events = evaluated
    task = report.evaluation
    assert task is not None
    exact, choice = task.score("exact_match"), task.score("multiple_choice")
    assert exact is not None
    assert exact.full is not None
    assert exact.difference is not None
    assert exact.full.value > 0.5
    assert exact.full.low <= exact.full.value <= exact.full.high
    assert exact.difference.value == pytest.approx(exact.quantized.value - exact.full.value)
    assert choice is not None
    assert choice.rows == sum(bool(reply.choices) for reply in task.replies) >= 1
    # Rows that are none of the task's are counted, and those that were fitted on are among them.
    skipped = dict(task.rows_skipped)
    fitted = skipped.pop("it is fitted on", 0)
    assert skipped == {
        "its last message is no reply of the assistant": 2,
        "nothing stands before its reply": 1,
        "its prompt is too long": 1,
    }
    assert task.rows + fitted == 13
    assert fitted <= 2
    turns = next(reply for reply in task.replies if QUESTION in reply.question)
    assert turns.reference.startswith("\u00e9\u732b\ufffd\ufffd red green")
    assert len(turns.reference) == 4000
    assert 0 < turns.scores_quantized["edit_similarity"] < 0.01 or turns.scores_quantized["edit_similarity"] == 0
    # The checkpoint holds what was returned, and its checksums are of the report that was written last.
    on_disk = QualityReport.model_validate_json((directory / "out" / "quality_report.json").read_bytes())
    assert on_disk == report
    verify_checksums(directory / "out")
    page = (directory / "out" / "quality_report.html").read_text()
    assert "The task, before and after" in page
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    # The phase counts the replies of both models, and the run's forecast knows of it.
    phases = [event.phase for event in events if isinstance(event, PhaseStarted)]
    assert phases[-3:] == ["verifying", "generating", "publishing"]
    counted = [(e.done, e.total) for e in events if isinstance(e, Advanced) and e.phase == "generating"]
    assert (counted[0], counted[-1]) == ((0, 2 * task.rows), (2 * task.rows, 2 * task.rows))
    assert [done for done, _ in counted] == sorted(done for done, _ in counted)
    assert isinstance(events[-2], Forecast)
    assert report.acceptance is not None
    [missed] = report.acceptance.missed
    assert missed.startswith(f"exact match is {exact.quantized.value:.2%} of {exact.rows} rows, under the limit")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("llama") / "model")


def _files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (directory / "out").glob("*.safetensors")}


def test_the_replies_are_those_of_transformers_and_a_killed_run_ends_with_the_same(llama: Path, tmp_path: Path) -> None:
    task = Evaluation(rows=3, max_new_tokens=5)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / "rows.jsonl", map(text_row, range(9)))
    whole = run(tmp_path / "whole", llama, evaluation=task).evaluation
    assert whole is not None
    assert whole.dataset is None
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(llama, dtype="auto"), AutoTokenizer.from_pretrained(llama)
    for reply in whole.replies:
        messages = text_row(reply.row - 1)["messages"]
        inputs = tokenizer.apply_chat_template(
            messages[:1], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        tokens = plain.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
        assert reply.full is not None
        assert [a for a, b in zip(reply.full, text, strict=True) if b.isprintable() and a != b] == []
        assert reply.reference == messages[1]["content"]

    done: list[int] = []

    def look(event: Event) -> None:
        if isinstance(event, Advanced) and event.phase == "generating":
            done.append(event.done)

    with pytest.raises(Stopped, match="while replies are generated"):
        run(tmp_path / "killed", llama, evaluation=task, on_event=look, should_stop=lambda: max(done, default=0) == 4)
    assert not (tmp_path / "killed" / "out").exists()
    done.clear()
    again = run(tmp_path / "killed", llama, evaluation=task, on_event=look)
    assert again.evaluation == whole
    assert done[:3] == [3, 4, 5]  # nothing is generated twice
    assert _files(tmp_path / "killed") == _files(tmp_path / "whole")


def test_a_model_without_a_template_goes_on_for_as_many_lines_as_are_expected(tmp_path: Path) -> None:
    model = make_model("llama", tmp_path / "model")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "chat_template.jinja").unlink(missing_ok=True)
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": None}))
    write_rows(tmp_path / "rows.jsonl", map(text_row, range(9)))
    task = run(tmp_path, model, evaluation=Evaluation(rows=2, max_new_tokens=12, original=False)).evaluation
    assert task is not None
    for reply in task.replies:
        assert (reply.full, reply.scores_full, reply.quantized_ended) == (None, None, False)
        assert "\n" not in reply.quantized
    assert [score.difference for score in task.scores] == [None, None]


def test_replies_that_cannot_be_made_leave_the_checkpoint_and_miss_the_limits(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "rows.jsonl", map(text_row, range(9)))
    monkeypatch.setattr(generation, "free_bytes", lambda device: 1000)
    limits = AcceptIf(min_exact_match=0.0, max_kl=100.0)
    report = run(tmp_path, llama, evaluation=Evaluation(rows=2), accept_if=limits)
    assert report.evaluation is None
    [warning] = [warning for warning in report.warnings if warning.startswith("evaluation:")]
    assert "generating with the original takes 993 KiB for its weights alone, and 1,000 B of memory are free" in warning
    assert "say original false" in warning
    assert report.acceptance is not None
    assert report.acceptance.missed == [
        "exact match was not measured, because no replies could be made: the limit of 0.00% cannot be kept"
    ]
    assert verify_checksums(tmp_path / "out") > 0


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([said("a"), said("b")], "none of 2 rows can be used .2: its last message is no reply"),
        ([{"messages": 7}] * 3, "cannot be used|messages"),
        (
            [{**said("a", "cat"), "choices": ["dog", "cow"]}],
            "evaluation row 1: its reply is neither one of its choices",
        ),
        ([], "task.jsonl is empty"),
        (None, "task.jsonl does not exist"),
    ],
)
def test_a_task_without_usable_rows_ends_before_anything_is_fitted(
    llama: Path, tmp_path: Path, rows: Sequence[Any] | None, why: str
) -> None:
    write_rows(tmp_path / "rows.jsonl", map(text_row, range(9)))
    if rows is not None:
        write_rows(tmp_path / "task.jsonl", rows)
    events: list[Event] = []
    task = Evaluation(dataset=str(tmp_path / "task.jsonl"))
    with pytest.raises(InvalidCalibration, match=why) as caught:
        run(tmp_path, llama, evaluation=task, on_event=events.append)
    assert "evaluation" in str(caught.value)
    assert "calibration" not in str(caught.value)
    assert not any(isinstance(event, PhaseStarted) and event.phase == "fitting" for event in events)


def test_what_no_model_can_do_is_refused(llama: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", map(text_row, range(9)))
    with pytest.raises(InvalidSpec, match="accept_if: min_exact_match is of a score of evaluation, which is left out"):
        run(tmp_path, llama, accept_if=AcceptIf(min_exact_match=0.5))
    for model, room, why in (
        (llama, 10**6, r"max_new_tokens is 1000000, and the model has \d+ positions"),
        (make_model("whisper", tmp_path / "whisper"), 8, "a speech model's transcripts are not generated yet"),
    ):
        with pytest.raises(InvalidSpec, match=why):
            open_prompts(model, AutoConfig.from_pretrained(model), room=room)
