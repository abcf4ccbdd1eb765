"""What the runner makes of the library's events and errors, and that its channel stays its own."""

from __future__ import annotations

import errno
import os
import queue
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import AutoTokenizer

from core.contract.errors import RETRYABLE, FailureCode
from quant_experts import errors, progress
from quant_experts.report.data import GroupReport, StageErrors
from tests.models import make_model
from tests.rows import image_row, picture, write_rows
from worker.runner import job as runner
from worker.runner import protocol

GROUP = GroupReport(
    name="layers.0.qkv",
    block=0,
    layers=["q_proj"],
    tokens=8,
    error=StageErrors(base=0.4, shared=float("nan"), routed=0.1),
    sqnr_db=10.0,
    smoothing="none",
    effective_bits=4.5,
)
FILE = progress.WrittenFile("blocks/00000.safetensors", 3, "00")
EVENTS: list[progress.Event] = [
    progress.PhaseStarted("fitting", 4),
    progress.Advanced("calibrating", 1, 2),
    progress.GroupFitted(0, 4, GROUP),
    progress.BlockFinished(0, 4, 1.5, {"fit": 1.0}, (GROUP,), (FILE,), ("chain/old",)),
    progress.BlockFinished(1, 4, 1.5, {}, (GROUP,), (FILE,), stack="vision", index=1),
    progress.BlockFinished(2, 4, 1.5, {}, (GROUP,), (FILE,), stack="vision", part="projector"),
    progress.Warned("careful"),
    progress.Forecast(3.0, 9.0),
    progress.Finished(Path("/out"), (FILE,)),
]


def test_every_event_of_the_library_crosses_the_channel_unchanged() -> None:
    assert {type(event) for event in EVENTS} == set(get_args(progress.Event))
    for event in EVENTS:
        line = runner.translate(event)
        sent = protocol.encode(line)
        assert sent.count(b"\n") == 1
        received = protocol.decode(sent.rstrip(b"\n"))
        assert type(received) is type(line)
        assert received.model_dump_json() == line.model_dump_json()
        if isinstance(event, progress.BlockFinished):
            assert isinstance(received, protocol.BlockLine)
            place = (received.stack, received.index, received.part)
            assert place == (event.stack, event.index, event.part)


def test_a_figure_that_is_not_finite_arrives_as_null() -> None:
    received = protocol.decode(protocol.encode(runner.translate(EVENTS[2])).rstrip(b"\n"))
    assert isinstance(received, protocol.GroupLine)
    assert received.group["error"] == {"base": 0.4, "shared": None, "routed": 0.1}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidCalibration("row 17: no text"), "invalid_calibration"),
        (errors.NumericalFailure("layers.0.qkv: not finite"), "numerical_failure"),
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out_of_memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "out_of_disk"),
        (KeyError("surprise"), "internal"),
    ],
)
def test_an_error_becomes_a_stable_code_and_one_line(error: Exception, code: str) -> None:
    line = runner.explain(error)
    assert FailureCode(line.code) == code
    assert line.message
    assert "\n" not in line.message


def test_every_code_of_the_library_is_one_that_clients_know() -> None:
    family = errors.QuantExpertsError.__subclasses__()
    raised = [each for each in family if each is not errors.Stopped and ".client." not in each.__module__]
    codes = {each.code for each in raised} - {"error"}
    assert codes <= {code.value for code in FailureCode}


def test_a_wrong_option_is_an_error_line_and_nothing_else_is_on_the_channel(tmp_path: Path) -> None:
    job = protocol.RunnerJob(
        model="/nowhere", model_id="local/x", model_commit=None, calibration="/nowhere", split="train",
        output=str(tmp_path / "out"), work=str(tmp_path / "work"), scheme="W4A6", method="qe",
        options={"experts": 4096},
    )  # fmt: skip
    (tmp_path / "job.json").write_text(job.model_dump_json())
    reader, writer = os.pipe()  # as at a supervisor's, which closes stdin when the runner is gone
    command = [sys.executable, "-m", "worker.runner.job", str(tmp_path / "job.json")]
    done = subprocess.run(command, capture_output=True, stdin=reader)
    os.close(reader)
    os.close(writer)
    assert done.returncode == 1
    assert b"Fatal Python error" not in done.stderr
    (line,) = done.stdout.splitlines()
    message = protocol.decode(line)
    assert isinstance(message, protocol.ErrorLine)
    assert message.code == "invalid_spec"
    assert "experts" in message.message


def test_a_link_out_of_the_rows_of_others_is_not_followed(tmp_path: Path) -> None:
    rows = tmp_path / "rows" / "train.jsonl"
    rows.parent.mkdir()
    (tmp_path / "secret.png").write_bytes(picture())
    (rows.parent / "a.png").symlink_to("../secret.png")
    write_rows(rows, [image_row(index, "a.png") for index in range(4)])
    job = protocol.RunnerJob(
        model=str(make_model("qwen2_vl", tmp_path / "model")), model_id="local/x", model_commit=None,
        calibration=str(rows), split="train", output=str(tmp_path / "out"), work=str(tmp_path / "work"),
        scheme="W4A6", method="rtn", options={},
    )  # fmt: skip
    with pytest.raises(errors.InvalidCalibration, match=r"'a\.png' leaves the directory of the calibration file"):
        runner._quantize(job, lambda line: None, runner.Orders())


def test_a_token_beyond_the_embedding_is_the_rows_fault_and_no_reason_to_try_again(tmp_path: Path) -> None:
    model = make_model("llama", tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens([f"<tool {number}>" for number in range(2000)])
    tokenizer.save_pretrained(model)
    rows = write_rows(tmp_path / "rows.jsonl", [{"messages": [{"role": "user", "content": "<tool 1999>"}]}] * 4)
    job = protocol.RunnerJob(
        model=str(model), model_id="local/x", model_commit=None, calibration=str(rows), split="train",
        output=str(tmp_path / "out"), work=str(tmp_path / "work"), scheme="W4A6", method="rtn", options={},
    )  # fmt: skip
    with pytest.raises(errors.InvalidCalibration) as raised:
        runner._quantize(job, lambda line: None, runner.Orders())
    said = runner.explain(raised.value)
    assert FailureCode(said.code) not in RETRYABLE
    assert re.match(r"calibration row [1-4]: token \d+ is beyond the model's \d+ embeddings", said.message)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"scheme": "auto"}, "target belong together"),
        ({"target": {"max_kl": 0.1}}, "target belong together"),
        ({"accept_if": {"max_kl": -1.0}}, "max_kl"),
        ({"accept_if": {}}, "at least one limit"),
    ],
)
def test_a_target_and_limits_reach_the_spec_or_are_refused(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    body = {
        "model": "/nowhere", "model_id": "local/x", "model_commit": None, "calibration": "/nowhere", "split": "train",
        "output": str(tmp_path / "out"), "work": str(tmp_path / "work"), "scheme": "W4A6", "method": "qe",
        "options": {}, **changes,
    }  # fmt: skip
    with pytest.raises(errors.InvalidSpec, match=named):
        runner.specification_of(protocol.RunnerJob.model_validate(body))


@pytest.mark.parametrize(("options", "grid"), [({}, "max"), ({"method_version": 2}, "searched")])
def test_a_job_from_before_versions_is_read_by_the_defaults_of_its_time(options: dict[str, Any], grid: str) -> None:
    body = {
        "model": "/nowhere", "model_id": "local/x", "model_commit": None, "calibration": "/nowhere", "split": "train",
        "output": "/nowhere/out", "work": "/nowhere/work", "scheme": "W4A6", "method": "gptq", "options": options,
    }  # fmt: skip
    spec, _, _ = runner.specification_of(protocol.RunnerJob.model_validate(body))
    assert (spec.method_version, spec.weight_grid) == (options.get("method_version", 1), grid)


def test_no_block_begins_before_the_last_is_kept_or_a_stop_is_asked() -> None:
    orders, said = runner.Orders(), queue.SimpleQueue[bytes]()
    threading.Thread(target=orders.listen, args=(iter(said.get, b""),), daemon=True).start()
    with ThreadPoolExecutor() as computing:
        waiting = computing.submit(orders.wait_stored, 3)
        said.put(protocol.stored(2))
        with pytest.raises(TimeoutError):
            waiting.result(0.1)
        said.put(protocol.stored(3))
        waiting.result(10)
        assert not orders.stop_asked()
        waiting = computing.submit(orders.wait_stored, 4)
        said.put(protocol.STOP)
        waiting.result(10)
        assert orders.stop_asked()


def test_the_end_of_stdin_is_a_stop() -> None:
    orders = runner.Orders()
    orders.listen(iter([protocol.stored(0)]))
    assert orders.stop_asked()
    orders.wait_stored(7)


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b'{"type": "news"}', b'{"type": "phase"}', b"\xff", b"1"])
def test_a_line_that_is_not_ours_is_refused(line: bytes) -> None:
    with pytest.raises(protocol.NotOurs):
        protocol.decode(line)
