"""Log lines: JSON with the ids that lead from a request to its job and from there to every attempt."""

from __future__ import annotations

import contextvars
import io
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from core.logs import EXTRA, configure_logging, log_context
from tests.app.conftest import Api

log = logging.getLogger("tests.of.logs")


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    stream = io.StringIO()
    configure_logging("json", stream=stream)
    yield stream
    root.handlers, root.level = before, level


def parsed(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_an_object_with_the_ids_around_it(lines: io.StringIO) -> None:
    with log_context(job_id="job_1", attempt=2):
        log.info("block %d", 3, extra={EXTRA: {"seconds": 1.5}})
        thread = threading.Thread(target=contextvars.copy_context().run, args=(log.warning, "of the same job"))
        thread.start()
        thread.join()
    log.info("outside")
    first, second, third = parsed(lines)
    assert (first["message"], first["job_id"], first["attempt"], first["seconds"]) == ("block 3", "job_1", 2, 1.5)
    assert (second["level"], second["job_id"]) == ("warning", "job_1")
    assert "job_id" not in third
    assert third["time"].endswith("+00:00")


def test_an_exception_and_a_forged_line_stay_one_line(lines: io.StringIO) -> None:
    try:
        raise ValueError('two\nlines {"level": "forged"}')
    except ValueError:
        log.exception("it failed\nbadly")
    [line] = parsed(lines)
    assert line["message"] == "it failed\nbadly"
    assert "ValueError: two" in line["exception"]


def test_configuring_twice_says_everything_once(lines: io.StringIO) -> None:
    configure_logging("json", stream=lines)
    log.info("once")
    assert len(parsed(lines)) == 1


def test_a_terminal_gets_a_readable_line_and_a_file_gets_json() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        for stream, readable in ((Terminal(), True), (io.StringIO(), False)):
            configure_logging("auto", stream=stream)
            with log_context(job_id="job_1"):
                log.warning("hello")
            text = stream.getvalue()
            assert ("WARNING tests.of.logs: hello  [job_id=job_1]" in text) == readable
            assert text.startswith("{") != readable
    finally:
        root.handlers, root.level = before, level


async def test_a_request_leads_to_its_job(api: Api, lines: io.StringIO) -> None:
    body = {"model": {"id": "acme/m"}, "calibration": {"dataset": "acme/r"}, "scheme": "W4A6"}
    response = await api.client.post("/v1/jobs", json=body, headers={"X-Request-Id": "ci-7"})
    job_id = response.json()["id"]
    await api.client.get(f"/v1/jobs/{job_id}")
    said = [line for line in parsed(lines) if line.get("request_id") == "ci-7"]
    assert [(line["message"], line.get("job_id")) for line in said if line["logger"] == "app.jobs.creation"] == [
        ("job queued", job_id)
    ]
    access = [line for line in parsed(lines) if line["logger"] == "app.access"]
    assert [(line["status"], line["route"], line.get("job_id")) for line in access] == [
        (201, "/v1/jobs", None),
        (200, "/v1/jobs/{job_id}", job_id),
    ]
