"""Plans, forks, comparisons, webhooks, uploads in parts, datasets and usage through both clients, on the real API."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from fastapi import Request, Response

from core.settings import Settings
from quant_experts.client import (
    AsyncClient,
    Candidate,
    Client,
    ClientError,
    Comparison,
    Conflict,
    InvalidRequest,
    NotFound,
    UploadProgress,
)
from quant_experts.client.retries import RetryPolicy
from quant_experts.client.upload import resume_file
from tests.app.conftest import BOOTSTRAP_KEY, MODEL, Api, served
from tests.app.cutting import Cuts, cutting
from tests.app.test_audio_headers import row as heard
from tests.app.test_audio_headers import wav
from tests.app.test_datasets import data_uri, jsonl, picture, row
from tests.models import make_model
from tests.services import wait_until

T = TypeVar("T")
QUICK = RetryPolicy(first=0.01, longest=0.05)
JOB: dict[str, Any] = {"model": MODEL, "calibration": "acme/rows", "scheme": "W4A6"}
CANDIDATES: list[Candidate] = [{"scheme": "W4A6"}, {"scheme": "W8A8", "method": "rtn", "label": "eight"}]
ROWS = jsonl(*(row(data_uri(picture(size=(40, 30))), f"row {number}") for number in range(20)))


@pytest.fixture
async def network(api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Cuts]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    async with served(api) as direct, cutting(direct.base_url.port or 0) as cuts:
        yield cuts


@pytest.fixture
async def client(network: Cuts) -> AsyncIterator[Client]:
    with Client(network.url, BOOTSTRAP_KEY, retry=QUICK) as client:
        yield client


@pytest.fixture
def parts(api: Api) -> list[int]:
    """Numbers of the parts that were sent."""
    sent: list[int] = []

    @api.app.middleware("http")
    async def note(request: Request, call_next: Any) -> Response:
        if request.method == "PUT":
            sent.append(int(request.url.path.rpartition("/")[2]))
        answer: Response = await call_next(request)
        return answer

    return sent


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(ROWS)
    return path


async def run(work: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """The blocking client in a thread, because the service runs in this one."""
    return await asyncio.to_thread(work, *arguments, **named)


def succeed(api: Api, job_id: str, *, kl: float, size: int) -> None:
    api.start(job_id)
    summary = {"kl": kl, "top1_agreement": 0.9, "effective_bits": 4.5, "bytes_after": size, "bytes_before": 4000}
    api.execute("UPDATE jobs SET summary = %s WHERE id = %s", [json.dumps(summary), job_id])
    api.end(job_id, "succeeded")


async def test_a_job_made_of_a_plan_runs_what_was_planned(client: Client, settings: Settings, rows: Path) -> None:
    assert settings.model_root is not None
    shutil.rmtree(settings.model_root / "tiny")
    make_model("qwen2_vl", settings.model_root / "tiny")
    dataset = await run(client.datasets.upload, rows)
    fields = {**JOB, "model": "local/tiny", "calibration": dataset, "options": {"seed": 3}, "labels": {"team": "a"}}
    plan = await run(client.jobs.plan, **fields)
    assert (plan.accepted, plan.refusals) == (True, [])
    assert plan.estimate is not None
    assert (plan.estimate.blocks, plan.estimate.size.exact, plan.estimate.size.bytes_before > 0) == (2, True, True)
    seconds = plan.estimate.placements[0].seconds
    assert seconds.least < seconds.likely < seconds.most
    job = await run(plan.create, idempotency_key="once")
    assert (job.model.id, job.options["seed"], job.labels) == ("local/tiny", 3, {"team": "a"})
    searched = {**fields, "scheme": "auto", "target": {"max_kl": 0.5}}
    of_search = await run(client.jobs.create_planned, (await run(client.jobs.plan, **searched)).digest)
    assert (of_search.scheme, of_search.target) == ("auto", {"max_bytes": None, "max_kl": 0.5})
    assert (await run(client.jobs.create, **fields, plan=plan, idempotency_key="once")).id == job.id
    with pytest.raises(InvalidRequest) as refused:
        await run(client.jobs.create, **{**fields, "scheme": "W4A8"}, plan=plan.digest)
    assert refused.value.type == "plan-mismatch"
    of_digest = await run(client.jobs.create_planned, plan.digest, name="nightly", idempotency_key="planned")
    again = await run(client.jobs.create_planned, plan.digest, name="nightly", idempotency_key="planned")
    assert again.id == of_digest.id
    assert (of_digest.options, of_digest.name) == (job.options, "nightly")
    pinned = of_digest.resolved.model_extra or {}
    assert pinned["model_fingerprint"] == plan.resolved.model_fingerprint
    assert (await run(client.jobs.planned, plan.digest)).options["seed"] == 3
    with pytest.raises(NotFound):
        await run(client.jobs.create_planned, "0" * 64)
    async with AsyncClient(api_key=BOOTSTRAP_KEY, url=client.access.url) as awaited:
        again = await awaited.jobs.plan(**fields)
        assert again.digest == plan.digest
        assert (await (await again.create()).refresh()).options["seed"] == 3


async def test_a_fork_is_the_job_with_changes_and_made_once(client: Client, network: Cuts, api: Api) -> None:
    job = await run(client.jobs.create, **JOB, options={"seed": 7, "experts": 4}, labels={"team": "vision"})
    network.after = [20]
    fork = await run(job.fork, method="gptq", options={"experts": None}, labels={"round": "2"})
    assert network.made == 1
    assert (fork.forked_from, fork.method, fork.options["seed"]) == (job.id, "gptq", 7)
    assert fork.options.get("experts") is None
    assert fork.labels == {"team": "vision", "round": "2"}
    assert len(api.execute("SELECT id FROM jobs")) == 2
    with pytest.raises(InvalidRequest) as refused:
        await run(client.jobs.fork, job.id, scheme="W9A9")
    assert refused.value.pointer == "/scheme"


async def test_a_comparison_is_watched_to_its_end_over_broken_connections(
    client: Client, network: Cuts, api: Api
) -> None:
    network.after = [20]
    made = await run(
        client.comparisons.create, model=MODEL, calibration="acme/rows", candidates=CANDIDATES, options={"seed": 5}
    )
    hasty = Client(network.url, BOOTSTRAP_KEY, retry=RetryPolicy(retries=0))
    comparison = await run(hasty.comparisons.get, made.id)
    assert (network.made, len(api.execute("SELECT id FROM jobs"))) == (1, 2)
    assert [entry.label for entry in comparison.jobs] == ["W4A6 balanced", "eight"]
    seen: list[Comparison] = []
    first, second = (entry.job_id for entry in comparison.jobs)

    def watch() -> None:
        for state in comparison.watch(every=0.02):
            seen.append(state)
            if len(seen) == 1:
                succeed(api, first, kl=0.02, size=1000)
                network.after = [100]
            elif not state.finished and state.jobs[0].status == "succeeded" and state.jobs[1].status == "queued":
                succeed(api, second, kl=0.001, size=2000)

    await run(watch)
    assert network.made == 2
    assert not seen[0].finished
    assert [entry.kl for entry in seen[-1].jobs] == [0.02, 0.001]
    assert seen[-1].frontier == [first, second]
    assert (await run(comparison.wait)).finished
    assert "<svg" in await run(comparison.plot)
    assert [each.id for each in await run(lambda: list(client.comparisons.list()))] == [comparison.id]
    await run(comparison.delete)
    with pytest.raises(NotFound):
        await run(comparison.refresh)
    hasty.close()


async def test_webhooks_are_made_changed_rotated_and_removed(client: Client, api: Api) -> None:
    made = await run(client.webhooks.create, "https://hooks.example.com/qe", event_types=["job.cancelled"])
    assert made.secret.startswith("whsec_")
    rotated = await run(client.webhooks.rotate_secret, made.id, keep_previous_s=60)
    assert rotated.secret != made.secret
    assert rotated.previous_secret_until is not None
    job = await run(client.jobs.create, **JOB)
    await run(job.cancel)
    [delivery] = await run(lambda: list(client.webhooks.deliveries(made.id, status="pending")))
    assert delivery.event_type == "job.cancelled"
    detail = await run(client.webhooks.delivery, made.id, delivery.id)
    assert (detail.payload["data"]["job"]["id"], detail.log) == (job.id, [])
    assert (await run(client.webhooks.redeliver, made.id, delivery.id)).message_id == delivery.message_id
    assert (await run(client.webhooks.ping, made.id)).event_type == "webhook.ping"
    assert (await run(client.webhooks.change, made.id, status="disabled")).status == "disabled"
    with pytest.raises(Conflict):
        await run(client.webhooks.ping, made.id)
    assert [each.id for each in await run(lambda: list(client.webhooks.list()))] == [made.id]
    await run(client.webhooks.delete, made.id)
    with pytest.raises(NotFound):
        await run(client.webhooks.get, made.id)


async def test_a_large_file_goes_on_in_the_middle_after_a_break(
    client: Client, network: Cuts, parts: list[int], rows: Path
) -> None:
    steps: list[UploadProgress] = []

    def break_off(step: UploadProgress) -> None:
        steps.append(step)
        if step.parts_done == 3:
            raise KeyboardInterrupt

    size = len(ROWS) // 6 + 1
    with pytest.raises(KeyboardInterrupt):
        await run(client.datasets.upload, rows, part_bytes=size, parallel=1, on_progress=break_off)
    sent = len(parts)
    assert sent < 6
    with Client(network.url, BOOTSTRAP_KEY, retry=QUICK) as another:
        dataset = await run(another.datasets.upload, rows, part_bytes=size, on_progress=steps.append)
    assert sorted(parts) == [1, 2, 3, 4, 5, 6]
    assert (dataset.bytes, dataset.rows, dataset.name) == (len(ROWS), 20, "rows.jsonl")
    assert steps[-1] == UploadProgress(len(ROWS), len(ROWS), 6, 6)
    assert (await run(client.datasets.upload, rows, part_bytes=size)).id == dataset.id
    assert not resume_file(network.url, dataset.sha256).exists()


async def test_a_lost_answer_to_the_last_call_makes_no_second_dataset(
    client: Client, network: Cuts, api: Api, parts: list[int], rows: Path
) -> None:
    network.after = [10**9, 10**9, 20]  # the lookup and the begin pass, the answer to complete is lost
    dataset = await run(client.datasets.upload, rows, part_bytes=len(ROWS) // 2 + 1)
    assert (network.made, sorted(parts)) == (1, [1, 2])
    assert api.execute("SELECT id FROM datasets") == [(dataset.id,)]


async def test_an_upload_that_was_begun_in_other_parts_is_not_mixed(
    client: Client, parts: list[int], rows: Path
) -> None:
    def break_off(step: UploadProgress) -> None:
        if step.parts_done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await run(client.datasets.upload, rows, part_bytes=len(ROWS) // 9, parallel=1, on_progress=break_off)
    dataset = await run(client.datasets.upload, rows, part_bytes=len(ROWS) // 2 + 1)
    assert dataset.bytes == len(ROWS)
    rows.write_bytes(b"x" * 5_000_000)
    with pytest.raises(ClientError, match="the service takes"):
        await run(client.datasets.upload, rows, part_bytes=1_000_000)


async def test_bad_rows_of_a_large_file_are_named(client: Client, rows: Path) -> None:
    rows.write_bytes(ROWS + b'{"messages": []}\n')
    with pytest.raises(InvalidRequest) as refused:
        await run(client.datasets.upload, rows, part_bytes=len(ROWS) // 3)
    assert refused.value.errors[0].row == 21


async def test_a_dataset_shows_its_rows_images_and_figures(client: Client, settings: Settings, rows: Path) -> None:
    assert settings.model_root is not None
    make_model("qwen2_vl", settings.model_root / "small", blocks=1)
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    dataset = await run(client.datasets.upload, rows, expires_at=tomorrow)
    assert dataset.expires_at == tomorrow
    assert (await run(client.datasets.change, dataset.id, expires_at=None)).expires_at is None
    shown = await run(lambda: list(client.datasets.rows(dataset.id)))
    assert [each.number for each in shown] == list(range(1, 21))
    assert [(image.width, image.height) for image in shown[0].images] == [(40, 30)]
    image = await run(client.datasets.image, dataset.id, 1, 0)
    assert image == picture(size=(40, 30))
    spoken = rows.with_name("spoken.jsonl")
    spoken.write_bytes(jsonl(heard(wav(seconds=0.5))))
    sound = await run(client.datasets.upload, spoken)
    (only,) = await run(lambda: list(client.datasets.rows(sound.id)))
    assert [(audio.rate, audio.seconds) for audio in only.audio] == [(16_000, 0.5)]
    assert await run(client.datasets.audio, sound.id, 1, 0) == wav(seconds=0.5)
    figures = await run(client.datasets.statistics, dataset.id)
    assert (figures.rows, figures.images, figures.image_formats) == (20, 20, {"PNG": 20})
    assert figures.tokens is not None
    assert (figures.tokens.model, figures.tokens.text_by) == (None, "estimate")
    counted = (await run(client.datasets.statistics, dataset.id, model="local/small")).tokens
    assert counted is not None
    assert (counted.text_by, counted.images_by, counted.rows) == ("tokenizer", "processor", 20)
    with pytest.raises(InvalidRequest, match="absent"):
        await run(client.datasets.statistics, dataset.id, model="local/absent")


async def test_usage_says_what_was_done_and_is_stored(client: Client, rows: Path) -> None:
    await run(client.datasets.upload, rows)
    await run(client.jobs.create, **JOB)
    usage = await run(client.usage, by="month")
    assert (usage.by, usage.stored.datasets) == ("month", len(ROWS))
    assert sum(period.jobs_created for period in usage.periods) == 1
    assert usage.limits is not None
    assert usage.unfinished is not None
    assert (usage.unfinished.queued, usage.limits.running_jobs) == (1, 32)


async def test_the_asynchronous_client_does_all_that_too(network: Cuts, api: Api, parts: list[int], rows: Path) -> None:
    async with AsyncClient(network.url, BOOTSTRAP_KEY, retry=QUICK) as client:
        dataset = await client.datasets.upload(rows, part_bytes=len(ROWS) // 2 + 1)
        assert sorted(parts) == [1, 2]
        assert [each.number async for each in client.datasets.rows(dataset.id, after=18)] == [19, 20]
        comparison = await client.comparisons.create(model=MODEL, calibration=dataset, candidates=CANDIDATES)
        for number, entry in enumerate(comparison.jobs):
            succeed(api, entry.job_id, kl=0.1 + number, size=1000 + number)
        finished = await comparison.wait(every=0.02)
        assert finished.frontier == [comparison.jobs[0].job_id]
        job = await client.jobs.get(comparison.jobs[0].job_id)
        fork = await job.fork(scheme="W4A8")
        assert [event.type async for event in client.jobs.events(fork.id)] == ["job.created"]
        assert fork.forked_from == job.id
        hook = await client.webhooks.create("https://hooks.example.com/qe")
        assert [each.id async for each in client.webhooks.list()] == [hook.id]
        assert (await client.usage()).stored.datasets == len(ROWS)


async def test_a_cancelled_task_stops_its_upload(network: Cuts, parts: list[int], rows: Path) -> None:
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with AsyncClient(network.url, BOOTSTRAP_KEY, retry=QUICK) as client:
        sending = asyncio.create_task(
            client.datasets.upload(
                rows,
                part_bytes=len(ROWS) // 100,
                parallel=1,
                on_progress=lambda _: loop.call_soon_threadsafe(begun.set),
            )
        )
        await asyncio.wait_for(begun.wait(), 20)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
    still = lambda: [thread for thread in threading.enumerate() if thread.name.startswith("upload-")]  # noqa: E731
    await run(wait_until, lambda: not still(), what="the end of the upload's thread")
    assert len(parts) < 100
