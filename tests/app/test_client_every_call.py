"""What is given to a call of the client arrives at the API, what comes is handed out whole, and what must not happen
twice is sent once. Each of these was written for a fault in the client that no other test noticed."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request, Response
from fastapi.responses import JSONResponse

from quant_experts.client import (
    ApiError,
    AsyncClient,
    Client,
    ClientError,
    ConnectionFailed,
    DownloadProgress,
    Unauthenticated,
    UploadProgress,
    async_transport,
)
from quant_experts.client.client import BlockingTransport
from quant_experts.client.download import PARTS
from quant_experts.client.requests import datasets as requests
from quant_experts.client.retries import RetryPolicy
from tests.app.conftest import BOOTSTRAP_KEY, MODEL, Api, served
from tests.app.cutting import Cuts
from tests.app.test_client import QUICK, run
from tests.app.test_client_surface import CANDIDATES, JOB, client, network  # noqa: F401 -- fixtures
from tests.app.test_datasets import jsonl, row
from tests.services import wait_until

ROWS = jsonl(*(row(text=f"row {number}") for number in range(45)))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(ROWS)
    return path


async def test_what_has_many_pages_is_handed_out_to_its_end(client: Client, api: Api, rows: Path) -> None:  # noqa: F811
    job = await run(client.jobs.create, **JOB)
    api.execute(
        "INSERT INTO layers (job_id, block, attempt, seconds, report, files) SELECT %s, number, 1, 1.5,"
        """ '{"seconds_by_phase": {}, "groups": []}', '[]' FROM generate_series(0, 229) AS number""",
        [job.id],
    )
    for layers in (client.jobs.layers(job.id), job.layers()):
        assert await run(lambda layers=layers: [layer.block for layer in layers]) == list(range(230))
    api.execute(
        "INSERT INTO events (job_id, seq, type, data) SELECT %s, number, 'job.block', '{}'"
        " FROM generate_series(2, 2100) AS number",
        [job.id],
    )
    assert await run(lambda: [event.seq for event in client.jobs.events(job.id)]) == list(range(1, 2101))
    dataset = await run(client.datasets.upload, rows)
    assert await run(lambda: [each.number for each in client.datasets.rows(dataset.id)]) == list(range(1, 46))


async def test_tokens_are_counted_by_the_model_and_revision_that_are_named(
    client: Client,  # noqa: F811
    network: Cuts,  # noqa: F811
    rows: Path,
) -> None:
    dataset = await run(client.datasets.upload, rows)
    network.requests.clear()
    with pytest.raises(ApiError):
        await run(client.datasets.statistics, dataset.id, model="local/absent", revision="v2")
    [head] = network.requests
    assert b"/statistics?model=local%2Fabsent&revision=v2 " in head


async def test_listings_find_what_is_asked_for_and_nothing_else(client: Client, api: Api) -> None:  # noqa: F811
    other = {"model": "acme/other", "calibration": "acme/rows", "scheme": "W8A8"}
    first = await run(client.jobs.create, **JOB, labels={"team": "a"})
    second = await run(client.jobs.create, **other, labels={"team": "b"})
    api.execute("UPDATE jobs SET created_at = created_at - interval '2 days' WHERE id = %s", [first.id])
    yesterday = datetime.now(UTC) - timedelta(days=1)
    for wanted, found in (
        ({"model": MODEL}, first),
        ({"scheme": "W8A8"}, second),
        ({"label": {"team": "b"}}, second),
        ({"created_before": yesterday}, first),
        ({"created_after": yesterday}, second),
    ):
        assert await run(lambda wanted=wanted: [job.id for job in client.jobs.list(**wanted)]) == [found.id], wanted
    third = await run(client.jobs.create, **JOB)
    filtered = client.jobs.list(model=MODEL, page_size=1)
    found = await run(lambda: list(filtered))
    assert [job.id for job in found] == [third.id, first.id]
    assert (await run(found[0].cancel)).status == "cancelled"


async def test_a_job_has_its_attempts_files_report_and_workers(
    client: Client,  # noqa: F811
    network: Cuts,  # noqa: F811
    api: Api,
    tmp_path: Path,
) -> None:
    job = await run(client.jobs.create, **JOB)
    api.start(job.id)
    api.execute("INSERT INTO attempts (job_id, attempt, worker, device) VALUES (%s, 1, 'w1', 'cpu')", [job.id])
    api.execute("INSERT INTO workers (id, host, device, job_id) VALUES ('w1', 'h', 'cpu', %s)", [job.id])
    api.publish(job.id, "quality_report.json", b'{"quality": {"kl": 0.5}}', tmp_path, "application/json")
    api.publish(job.id, "quality_report.html", b"<p>page</p>", tmp_path, "text/html")
    assert [(worker.id, worker.job_id, worker.busy) for worker in await run(client.workers)] == [("w1", job.id, True)]
    api.end(job.id, "succeeded")
    network.after = [60, 60]
    assert (await run(job.wait)).status == "succeeded"
    assert network.made == 2
    assert [attempt.worker for attempt in await run(job.history)] == ["w1"]
    assert (await run(job.report))["quality"] == {"kl": 0.5}
    assert await run(job.report_page) == "<p>page</p>"
    assert {file.name for file in await run(job.artifacts)} == {"quality_report.json", "quality_report.html"}
    paths = await run(client.jobs.pull, job.id, tmp_path / "out", names=["quality_report.html"])
    assert [path.name for path in paths] == ["quality_report.html"]


async def test_all_that_is_said_of_an_upload_arrives_however_it_goes(client: Client, rows: Path) -> None:  # noqa: F811
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    for part_bytes in (len(ROWS), len(ROWS) // 3):
        said = {"name": "mine", "expires_at": tomorrow, "reuse": False, "part_bytes": part_bytes}
        dataset = await run(client.datasets.upload, rows, **said)
        assert (dataset.name, dataset.expires_at, dataset.bytes) == ("mine", tomorrow, len(ROWS))
    later = await run(client.datasets.change, dataset.id, expires_at=tomorrow + timedelta(days=1))
    assert later.expires_at == tomorrow + timedelta(days=1)
    found = await run(lambda: list(client.datasets.list(sha256="0" * 64)))
    assert found == []


async def test_rotations_keep_the_one_before_for_as_long_as_they_are_told(
    client: Client,  # noqa: F811
    network: Cuts,  # noqa: F811
    api: Api,
) -> None:
    key = await run(client.keys.create, name="ci", scopes=["jobs:read"])
    await run(client.keys.rotate, key.id, keep_previous_s=0)
    with Client(network.url, key.key, retry=QUICK) as old, pytest.raises(Unauthenticated):
        await run(lambda: list(old.jobs.list()))
    other = await run(client.keys.create, name="cd", scopes=["jobs:read"])
    await run(client.keys.rotate, other.id)
    kept = api.execute("SELECT expires_at > now() + interval '20 hours' FROM api_keys WHERE id = %s", [other.id])
    assert kept == [(True,)]
    hook = await run(client.webhooks.create, "https://hooks.example.com/qe", description="of the pipeline")
    assert hook.description == "of the pipeline"
    assert (await run(client.webhooks.get, hook.id)).url == "https://hooks.example.com/qe"
    rotated = await run(client.webhooks.rotate_secret, hook.id, keep_previous_s=60)
    assert rotated.previous_secret_until is not None
    assert rotated.previous_secret_until < datetime.now(UTC) + timedelta(seconds=90)
    changed = await run(
        client.webhooks.change,
        hook.id,
        url="https://hooks.example.com/other",
        event_types=["job.failed"],
        description="of another",
    )
    assert (changed.url, changed.event_types) == ("https://hooks.example.com/other", ["job.failed"])
    assert changed.description == "of another"


async def test_what_must_not_happen_twice_is_sent_once_when_its_answer_is_lost(
    client: Client,  # noqa: F811
    network: Cuts,  # noqa: F811
    rows: Path,
) -> None:
    dataset = await run(client.datasets.upload, rows)
    job = await run(client.jobs.create, **JOB)
    await run(job.cancel)
    comparison = await run(
        client.comparisons.create, model=MODEL, calibration="acme/rows", candidates=CANDIDATES, name="n"
    )
    key = await run(client.keys.create, name="ci", scopes=["jobs:read"])
    hook = await run(client.webhooks.create, "https://hooks.example.com/qe")
    delivery = await run(client.webhooks.ping, hook.id)
    upload = await run(client.send, requests.begin_upload(name="x"))
    await run(client.send, requests.put_part(upload.id, 1, ROWS))
    whole = requests.complete_upload(upload.id, hashlib.sha256(ROWS).hexdigest(), expires_at=None)
    once: dict[str, Callable[[], Any]] = {
        "jobs.retry": lambda: client.jobs.retry(job.id),
        "webhooks.create": lambda: client.webhooks.create("https://hooks.example.com/two"),
        "webhooks.rotate_secret": lambda: client.webhooks.rotate_secret(hook.id),
        "webhooks.ping": lambda: client.webhooks.ping(hook.id),
        "webhooks.redeliver": lambda: client.webhooks.redeliver(hook.id, delivery.id),
        "webhooks.delete": lambda: client.webhooks.delete(hook.id),
        "keys.create": lambda: client.keys.create(name="two", scopes=["jobs:read"]),
        "keys.rotate": lambda: client.keys.rotate(key.id),
        "datasets.delete": lambda: client.datasets.delete(dataset.id),
        "comparisons.delete": lambda: client.comparisons.delete(comparison.id),
        "complete_upload": lambda: client.send(whole),
        "upload": lambda: client.send(requests.upload("x", ROWS, expires_at=None)),
    }
    for name, call in once.items():
        network.requests.clear()
        network.after = [20]
        with pytest.raises(ConnectionFailed):
            await run(call)
        assert len(network.requests) == 1, name


async def test_all_that_is_said_of_a_comparison_is_said_of_its_jobs(client: Client, api: Api) -> None:  # noqa: F811
    made = await run(
        client.comparisons.create,
        model=MODEL,
        revision="v2",
        calibration="acme/rows",
        split="validation",
        candidates=CANDIDATES,
        options={"seed": 5},
        accept_if={"max_kl": 0.5},
        name="nightly",
        labels={"team": "a"},
        timeout_s=600,
    )
    assert made.name == "nightly"
    specs = [spec for (spec,) in api.execute("SELECT spec FROM jobs")]
    assert len(specs) == 2
    for spec in specs:
        assert (spec["model"]["revision"], spec["calibration"]["split"], spec["options"]["seed"]) == (
            "v2",
            "validation",
            5,
        )
        assert (spec["accept_if"]["max_kl"], spec["labels"], spec["timeout_s"]) == (0.5, {"team": "a"}, 600)
    cancelled = await run(client.comparisons.cancel, made.id)
    assert {entry.status for entry in cancelled.jobs} == {"cancelled"}
    await run(client.comparisons.delete, made.id)
    assert await run(lambda: list(client.comparisons.list())) == []


async def test_a_lost_upload_is_not_taken_for_another_dataset(client: Client, api: Api, rows: Path) -> None:  # noqa: F811
    answers: list[int] = []

    @api.app.middleware("http")
    async def away(request: Request, call_next: Callable[..., Any]) -> Response:
        if request.url.path == "/v1/datasets" and request.method == "POST" and answers:
            await request.body()
            return Response(status_code=answers.pop())
        answer: Response = await call_next(request)
        return answer

    other = await run(client.datasets.upload, rows)
    rows.write_bytes(jsonl(row(text="another")))
    answers.append(503)
    dataset = await run(client.datasets.upload, rows)
    assert (dataset.id != other.id, dataset.rows) == (True, 1)


async def test_a_request_that_is_being_answered_already_is_waited_for(client: Client, api: Api) -> None:  # noqa: F811
    problem = {"type": "/problems/idempotency-in-progress", "title": "t", "status": 409, "detail": "d"}
    answers = [problem, problem]

    @api.app.middleware("http")
    async def busy(request: Request, call_next: Callable[..., Any]) -> Response:
        if answers:
            return JSONResponse(answers.pop(), status_code=409, media_type="application/problem+json")
        answer: Response = await call_next(request)
        return answer

    assert (await run(client.jobs.create, **JOB)).status == "queued"
    assert answers == []


async def test_who_waits_for_a_comparison_gives_up_on_a_service_that_stays_away(api: Api) -> None:
    async with served(api) as direct:
        url = str(direct.base_url)
        with Client(url, BOOTSTRAP_KEY) as asking:
            made = await run(asking.comparisons.create, model=MODEL, calibration="acme/rows", candidates=CANDIDATES)
    with Client("http://127.0.0.1:9", BOOTSTRAP_KEY, retry=RetryPolicy(retries=0)) as away:
        made._transport = away._transport
        with pytest.raises(ConnectionFailed):
            await run(made.wait, every=0.02, silence=0.2)


async def test_a_part_that_another_call_cut_otherwise_is_sent_again(client: Client, rows: Path) -> None:  # noqa: F811
    def break_off(step: UploadProgress) -> None:
        if step.parts_done == 2:
            raise KeyboardInterrupt

    size = len(ROWS) // 4
    with pytest.raises(KeyboardInterrupt):
        await run(client.datasets.upload, rows, part_bytes=size, parallel=1, on_progress=break_off)
    dataset = await run(client.datasets.upload, rows, part_bytes=len(ROWS) // 7)
    assert (dataset.bytes, dataset.sha256) == (len(ROWS), hashlib.sha256(ROWS).hexdigest())


async def test_a_file_that_becomes_shorter_while_it_is_sent_is_no_dataset(client: Client, rows: Path) -> None:  # noqa: F811
    def shorten(step: UploadProgress) -> None:
        if step.parts_done == 1:
            rows.write_bytes(ROWS[: len(ROWS) // 2])

    with pytest.raises(ClientError, match="became shorter"):
        await run(client.datasets.upload, rows, part_bytes=len(ROWS) // 5, parallel=1, on_progress=shorten)
    assert await run(lambda: list(client.datasets.list())) == []


async def test_deliveries_are_those_of_the_status_that_is_asked_for(client: Client) -> None:  # noqa: F811
    hook = await run(client.webhooks.create, "https://hooks.example.com/qe")
    ping = await run(client.webhooks.ping, hook.id)
    for status, found in (("pending", [ping.id]), ("failed", []), (None, [ping.id])):
        listed = client.webhooks.deliveries(hook.id, status=status)  # type: ignore[arg-type]
        assert await run(lambda listed=listed: [each.id for each in listed]) == found


async def test_a_cancelled_task_stops_its_download(network: Cuts, api: Api, tmp_path: Path) -> None:  # noqa: F811
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    size = 40_000_000

    def seen(step: DownloadProgress) -> None:
        loop.call_soon_threadsafe(begun.set)
        time.sleep(0.01)  # or it is over before anybody can stop it

    async with AsyncClient(network.url, BOOTSTRAP_KEY, retry=QUICK) as awaited:
        job = await awaited.jobs.create(**JOB)
        api.start(job.id)
        digest = api.publish(job.id, "big.bin", bytes(size), tmp_path)
        api.end(job.id, "succeeded")
        pulling = asyncio.create_task(awaited.jobs.pull(job.id, tmp_path / "out", on_progress=seen))
        await asyncio.wait_for(begun.wait(), 20)
        pulling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pulling
    still = lambda: [thread for thread in threading.enumerate() if thread.name.startswith("pull")]  # noqa: E731
    await run(wait_until, lambda: not still(), what="the end of the download's threads")
    assert (tmp_path / "out" / PARTS / f"{digest}.part").stat().st_size < size


async def test_an_asynchronous_upload_or_download_is_as_patient_as_its_client_and_leaves_no_connection_open(
    network: Cuts,  # noqa: F811
    api: Api,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[BlockingTransport] = []

    class Noted(BlockingTransport):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            made.append(self)

    monkeypatch.setattr(async_transport, "BlockingTransport", Noted)
    async with AsyncClient(network.url, BOOTSTRAP_KEY, retry=QUICK, timeout=17) as awaited:
        await awaited.datasets.upload(rows)
        job = await awaited.jobs.create(**JOB)
        api.publish(job.id, "a.bin", b"a", tmp_path)
        await job.pull(tmp_path / "out")
        assert [(each._http.is_closed, each._http.timeout.read) for each in made] == [(True, 17), (True, 17)]


async def test_keys_of_ones_own_are_sent_and_others_are_made(client: Client, network: Cuts) -> None:  # noqa: F811
    """``Idempotency-Key`` of everything that makes jobs."""
    job = await run(client.jobs.create, **JOB, revision="v2", split="validation")
    assert (job.model.revision, job.calibration.split) == ("v2", "validation")
    makers: list[Callable[..., Any]] = [
        lambda **key: client.jobs.create(**JOB, **key),
        lambda **key: client.jobs.fork(job.id, scheme="W4A8", **key),
        lambda **key: job.fork(scheme="W8A8", **key),
        lambda **key: client.comparisons.create(model=MODEL, calibration="acme/rows", candidates=CANDIDATES, **key),
    ]
    for number, make in enumerate(makers):
        own = f"mine-{number}"
        made = [(await run(make, idempotency_key=own)).id for _ in range(2)]
        assert made[0] == made[1]
        network.requests.clear()
        another = [(await run(make)).id for _ in range(2)]
        assert len({*made, *another}) == 3
        heads = [head.decode().lower() for head in network.requests]
        keys = {line for head in heads for line in head.splitlines() if line.startswith("idempotency-key: ")}
        assert len(keys) == 2
        assert f"idempotency-key: {own}" not in keys


async def test_models_are_what_a_job_may_name(client: Client) -> None:  # noqa: F811
    found = await run(client.models)
    assert "qwen2_vl" in found.families
    assert ([model.id for model in found.data], found.note) == (["local/tiny"], None)
    assert "config.json cannot be read" in str(found.data[0].problem)
