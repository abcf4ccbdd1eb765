"""Parts of the client that need no service: what it loads, its settings, its retries, its reading of streams."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant_experts import __version__
from quant_experts.client import (
    AsyncClient,
    Client,
    ClientError,
    Conflict,
    ConnectionFailed,
    Forbidden,
    InvalidRequest,
    MisconfiguredClient,
    NotFound,
    RateLimited,
    ServiceFault,
    Unauthenticated,
    Unavailable,
)
from quant_experts.client.configuration import LOCAL, resolve
from quant_experts.client.errors import ApiError, Stopped, error_of
from quant_experts.client.event_stream import EventStream
from quant_experts.client.retries import RetryPolicy
from quant_experts.client.upload import _cut, resume_file
from quant_experts.client.views.datasets import UploadView

KEY = "qe_0123456789"
JOB: dict[str, Any] = {"model": "a/b", "calibration": "ds_x", "scheme": "W4A6"}


def test_the_client_loads_neither_torch_nor_what_computes() -> None:
    light = tuple(f"quant_experts.{name}" for name in ("client", "errors", "planning", "spec"))
    program = (
        "import sys; import quant_experts.client; "
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('torch', 'transformers', 'numpy', 'safetensors') "
        f"or m.startswith('quant_experts.') and not m.startswith({light!r})))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(tmp_path), "QE_HOME": str(tmp_path / "home"), **more}


def write_config(tmp_path: Path, text: str) -> None:
    (tmp_path / "quant-experts").mkdir(exist_ok=True)
    (tmp_path / "quant-experts" / "config.toml").write_text(text)


def test_arguments_come_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    write_config(tmp_path, 'url = "https://file.example/"\napi_key = "qe_of_the_file"\n')
    access = resolve(environment=environment(tmp_path))
    assert (access.url, access.api_key) == ("https://file.example", "qe_of_the_file")
    access = resolve(environment=environment(tmp_path, QE_URL="https://env.example", QE_API_KEY="qe_of_env"))
    assert (access.url, access.api_key) == ("https://env.example", "qe_of_env")
    assert resolve("http://argument", KEY, environment=environment(tmp_path)).url == "http://argument"
    assert KEY not in repr(resolve("http://argument", KEY))


def test_a_service_of_this_machine_needs_no_settings(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "api_key").write_text("qe_kept_by_serve\n")
    access = resolve(environment=environment(tmp_path))
    assert (access.url, access.api_key) == (LOCAL, "qe_kept_by_serve")
    with pytest.raises(MisconfiguredClient, match="QE_API_KEY"):
        resolve("https://elsewhere.example", environment=environment(tmp_path))


@pytest.mark.parametrize(
    ("text", "match"),
    [("url = ", "cannot be read"), ('token = "x"', "token is not a setting"), ("url = 3", "both strings")],
)
def test_a_bad_config_file_is_named(tmp_path: Path, text: str, match: str) -> None:
    write_config(tmp_path, text)
    with pytest.raises(MisconfiguredClient, match=match) as error:
        resolve(environment=environment(tmp_path))
    assert "config.toml" in str(error.value)


@pytest.mark.parametrize("url", ["service:8000", "ftp://x", "http://", "http://[::1"])
def test_a_bad_address_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(MisconfiguredClient, match="QE_URL"):
        Client(url, KEY)


@pytest.mark.parametrize("key", ["qe key", "qe_\n", "qé"])
def test_a_key_that_is_none_is_refused(key: str) -> None:
    with pytest.raises(MisconfiguredClient, match="copied"):
        Client("http://127.0.0.1", key)


def answer(status: int, **headers: str) -> ApiError:
    request = httpx.Request("GET", "http://x/")
    error = error_of(
        httpx.Response(status, headers={k.replace("_", "-"): v for k, v in headers.items()}, request=request)
    )
    assert error is not None
    return error


def test_what_may_have_been_carried_out_is_not_repeated_unless_that_is_safe() -> None:
    policy = RetryPolicy()
    lost, refused = httpx.ReadError("cut"), httpx.ConnectError("refused")
    assert policy.pause(lost, attempt=0, repeatable=False) is None
    assert policy.pause(lost, attempt=0, repeatable=True) is not None
    assert policy.pause(refused, attempt=0, repeatable=False) is not None
    assert policy.pause(answer(503), attempt=0, repeatable=False) is None
    assert policy.pause(answer(503), attempt=0, repeatable=True) is not None
    assert policy.pause(answer(429), attempt=0, repeatable=False) is not None
    for status in (429, 502, 503, 504):
        assert policy.pause(answer(status), attempt=0, repeatable=True) is not None
    for status in (400, 401, 403, 404, 409, 422, 500):
        assert policy.pause(answer(status), attempt=0, repeatable=True) is None
    assert policy.pause(lost, attempt=policy.retries, repeatable=True) is None


def test_retry_after_is_kept_to() -> None:
    policy = RetryPolicy(patience=60)
    assert policy.pause(answer(429, retry_after="7"), attempt=0, repeatable=True) == 7
    assert policy.pause(answer(429, retry_after="61"), attempt=0, repeatable=True) is None
    assert policy.pause(answer(503, retry_after="Thu, 01 Jan 1970 00:00:00 GMT"), attempt=0, repeatable=True) == 0
    assert policy.pause(answer(503, retry_after="soon"), attempt=0, repeatable=True) is not None


def test_the_pause_grows_and_is_bounded() -> None:
    policy = RetryPolicy(first=1, longest=8)
    for attempt in range(12):
        longest = max(policy.backoff(attempt) for _ in range(200))
        assert longest <= min(8, 2**attempt)
        assert longest > min(8, 2**attempt) / 2


def event(seq: int, note: str = "x", end: str = "\n") -> bytes:
    data = f'{{"seq":{seq},"type":"job.block","data":{{"note":"{note}"}},"created_at":"2026-01-01T00:00:00Z"}}'
    return f"id: {seq}{end}event: job.block{end}data: {data}{end}{end}".encode()


@given(cuts=st.lists(st.integers(0, 600), max_size=12), end=st.sampled_from(["\n", "\r\n", "\r"]))
def test_a_stream_reads_the_same_however_it_is_cut_into_chunks(cuts: list[int], end: str) -> None:
    stream = f"retry: 250{end}{end}: still here{end}{end}".encode() + b"".join(
        event(seq, "a\u2028b\x85c", end) for seq in (1, 2, 3)
    )
    stream += f": the end{end}".encode()
    following = EventStream(after=0, patience=1, policy=RetryPolicy())
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    events = [e for start, stop in pairwise(edges) for e in following.feed(stream[start:stop])]
    assert [e.seq for e in events] == [1, 2, 3]
    assert events[0].data["note"] == "a\u2028b\x85c"
    assert following.pause(None) == 0.25


def test_half_an_event_of_a_broken_connection_is_forgotten_and_a_known_one_skipped() -> None:
    following = EventStream(after=0, patience=1, policy=RetryPolicy())
    assert [e.seq for e in following.feed(event(1) + event(2)[:30])] == [1]
    assert following.headers()["Last-Event-ID"] == "1"
    assert [e.seq for e in following.feed(event(1) + event(2))] == [2]


def test_a_line_without_end_does_not_fill_the_memory() -> None:
    following = EventStream(after=0, patience=1, policy=RetryPolicy())
    for _ in range(4):
        assert list(following.feed(b"x" * (1 << 20))) == []
    with pytest.raises(ConnectionFailed, match="does not end"):
        list(following.feed(b"x"))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_json_cannot_say_is_named_before_anything_is_sent(number: float) -> None:
    with Client("http://127.0.0.1:9", KEY) as client:
        job = {"model": "a/b", "calibration": "ds_x", "scheme": "W4A6"}
        for make in (client.jobs.create, client.jobs.plan):
            with pytest.raises(ClientError, match=r"/accept_if/max_kl is -?(nan|inf): only finite"):
                make(**job, accept_if={"max_kl": number})
        with pytest.raises(ClientError, match="/options/sensitive/share is"):
            client.jobs.fork("job_x", options={"sensitive": {"share": number}})
        candidates = [{"scheme": "W4A6"}, {"scheme": "W4A6", "options": {"smoothquant_alpha": number}}]
        with pytest.raises(ClientError, match="/candidates/1/options/smoothquant_alpha is"):
            client.comparisons.create(model="a/b", calibration="ds_x", candidates=candidates)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequest),
        (401, Unauthenticated),
        (403, Forbidden),
        (404, NotFound),
        (409, Conflict),
        (412, Conflict),
        (422, InvalidRequest),
        (429, RateLimited),
        (500, ServiceFault),
        (502, Unavailable),
        (503, Unavailable),
        (504, Unavailable),
    ],
)
def test_every_refusal_has_its_class(status: int, kind: type[ApiError]) -> None:
    assert type(answer(status)) is kind


def test_a_stream_that_is_closed_ends_only_after_the_last_event() -> None:
    following = EventStream(after=0, patience=1, policy=RetryPolicy())
    assert [e.seq for e in following.feed(event(1))] == [1]
    following.closed()
    assert not following.ended
    last = event(2).replace(b"job.block", b"job.failed")
    assert [e.type for e in following.feed(last)] == ["job.failed"]
    assert not following.ended
    following.closed()
    assert following.ended


def test_a_file_of_more_parts_than_the_service_takes_is_refused_before_it_is_sent() -> None:
    limits = {"most_parts": 3, "most_part_bytes": 100, "most_bytes": 10**9}
    begun = UploadView.model_validate({"id": "up_x", "parts": [], "expires_at": "2026-01-01T00:00:00Z", **limits})
    assert [part.bytes for part in _cut(250, 10, begun)] == [84, 84, 82]
    with pytest.raises(ClientError, match="has at most 300"):
        _cut(301, 10, begun)


def problem(status: int, **said: object) -> httpx.Response:
    body = {"type": "/problems/x", "title": "t", "status": status, "detail": "d", **said}
    return httpx.Response(
        status,
        json=body,
        headers={"content-type": "application/problem+json"},
        request=httpx.Request("GET", "http://x/"),
    )


@pytest.mark.parametrize(("said", "retryable"), [(True, True), (False, False), (None, False), ("yes", False)])
def test_whether_the_same_request_may_succeed_later_is_the_services_to_say(said: object, retryable: bool) -> None:
    error = error_of(problem(507, **({} if said is None else {"retryable": said})))
    assert error is not None
    assert error.retryable is retryable


async def test_every_request_says_who_asks_and_with_which_key() -> None:
    heads = []

    def answer(request: httpx.Request) -> httpx.Response:
        heads.append((request.headers["user-agent"], request.headers["authorization"]))
        return httpx.Response(200, json={"data": []})

    network = httpx.MockTransport(answer)
    with Client("http://x", KEY, transport=network) as client:
        client.workers()
    async with AsyncClient("http://x", KEY, transport=network) as awaited:
        await awaited.workers()
    assert heads == [(f"quant-experts-client/{__version__}", f"Bearer {KEY}")] * 2


async def test_a_redirect_of_the_events_is_followed_without_the_key() -> None:
    heads: list[tuple[str, str | None]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        heads.append((request.url.host, request.headers.get("authorization")))
        if request.url.host == "x":
            return httpx.Response(307, headers={"location": "http://elsewhere/events"})
        return httpx.Response(
            200, content=event(1).replace(b"job.block", b"job.failed"), headers={"content-type": "text/event-stream"}
        )

    network = httpx.MockTransport(answer)
    with Client("http://x", KEY, transport=network) as client:
        assert [e.type for e in client.jobs.follow("job_x", silence=0)] == ["job.failed"]
    async with AsyncClient("http://x", KEY, transport=network) as awaited:
        assert [e.type async for e in awaited.jobs.follow("job_x", silence=0)] == ["job.failed"]
    assert heads == [("x", f"Bearer {KEY}"), ("elsewhere", None)] * 2


def comparison(*statuses: str) -> dict[str, object]:
    unknown = dict.fromkeys(("kl", "top1_agreement", "effective_bits", "bytes_after", "seconds", "verdict", "error"))
    about = {"scheme": "W4A6", "method": "qe", "frontier": False, **unknown}
    return {
        "id": "cmp_x",
        "name": None,
        "model": {"id": "a/b"},
        "calibration": {"dataset": "ds_x"},
        "finished": all(status == "succeeded" for status in statuses),
        "bytes_before": None,
        "jobs": [{"label": "", "job_id": f"job_{n}", "status": status, **about} for n, status in enumerate(statuses)],
        "frontier": [],
        "created_at": "2026-01-01T00:00:00Z",
    }


def test_a_comparison_is_handed_out_when_it_changed_and_not_each_time_that_it_was_asked_for() -> None:
    said = [("queued", "queued")] * 3 + [("succeeded", "queued")] * 3 + [("succeeded", "succeeded")]
    answers = [httpx.Response(200, json=comparison(*statuses)) for statuses in (said[0], *said)]
    with Client("http://x", KEY, transport=httpx.MockTransport(lambda _: answers.pop(0))) as client:
        seen = list(client.comparisons.get("cmp_x").watch(every=0))
    assert [[job.status for job in each.jobs] for each in seen] == [list(said[0]), list(said[3]), list(said[6])]
    assert answers == []


def test_who_stopped_does_not_begin_again() -> None:
    assert RetryPolicy().pause(Stopped("a.bin"), attempt=0, repeatable=True) is None


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_who_is_sent_elsewhere_is_told_where(status: int) -> None:
    moved = httpx.MockTransport(lambda _: httpx.Response(status, headers={"location": "https://quant.example/v1/jobs"}))
    with Client("http://x", KEY, transport=moved) as client:
        for call in (client.schemes, lambda: list(client.jobs.list()), lambda: client.jobs.create(**JOB)):
            with pytest.raises(ApiError, match=r"leads to https://quant.example/v1/jobs: set QE_URL"):
                call()


@pytest.mark.parametrize(
    ("status", "kind", "content"),
    [
        (200, "text/html", b"<html>"),
        (200, "application/json", b'{"a": 1}'),
        (200, "application/json", b'["a"]'),
        (200, "", b""),
        (200, "", b"\xff"),
        (204, "", b""),
    ],
)
async def test_an_answer_of_something_else_is_no_traceback_of_what_reads_it(
    status: int, kind: str, content: bytes
) -> None:
    network = httpx.MockTransport(lambda _: httpx.Response(status, content=content, headers={"content-type": kind}))
    with Client("http://x", KEY, transport=network) as client:
        asks = [lambda: list(client.jobs.list()), lambda: client.jobs.get("job_x"), lambda: client.jobs.plan(**JOB)]
        for ask in asks:
            with pytest.raises(ClientError, match=r"is QE_URL the address of a Quant Experts service\?"):
                ask()
        if status == 200:
            with pytest.raises(ClientError, match="no events"):
                list(client.jobs.follow("job_x"))
    async with AsyncClient("http://x", KEY, transport=network) as awaited:
        with pytest.raises(ClientError, match="is QE_URL"):
            await awaited.workers()


def test_an_answer_that_cannot_be_unpacked_is_a_failed_connection() -> None:
    spoiled = httpx.MockTransport(
        lambda _: httpx.Response(200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(b"no gzip"))
    )
    with Client("http://x", KEY, transport=spoiled) as client, pytest.raises(ConnectionFailed, match="decompressing"):
        client.schemes()


@pytest.mark.parametrize("named", ["", ".", ".."])
def test_what_would_be_another_path_is_no_id(named: str) -> None:
    nobody = httpx.MockTransport(lambda request: pytest.fail(str(request.url)))
    with Client("http://x", KEY, transport=nobody) as client:
        for call in (
            client.jobs.get,
            client.datasets.delete,
            client.webhooks.get,
            client.keys.revoke,
            client.jobs.planned,
        ):
            with pytest.raises(ClientError, match="is not an id"):
                call(named)


@pytest.mark.parametrize("url", ["http://me:secret@x", "http://x/?a=b", "https://x/#part"])
def test_an_address_with_more_than_host_and_path_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(MisconfiguredClient, match="without them") as refused:
        Client(url, KEY)
    assert "secret" not in str(refused.value)


def test_blanks_and_slashes_around_an_address_are_not_of_it() -> None:
    assert resolve(" http://x/prefix/ \n", KEY).url == "http://x/prefix"


def test_a_user_without_a_home_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    assert resolve("http://x", environment={"QE_API_KEY": KEY}).api_key == KEY
    assert resume_file("http://x", "0" * 64, {}).parts[:3] == ("/", ".local", "state")


PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "foo://x"])
async def test_a_service_on_this_machine_is_not_looked_for_behind_a_proxy(
    no_proxy: pytest.MonkeyPatch, proxy: str
) -> None:
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "12")
            self.end_headers()
            self.wfile.write(b'{"data": []}')

        def log_message(self, *arguments: object) -> None:
            """Quiet."""

    no_proxy.setenv("ALL_PROXY", proxy)
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        with Client(url, KEY) as client:
            assert client.workers() == []
        async with AsyncClient(url, KEY) as awaited:
            assert await awaited.workers() == []
        server.shutdown()


def test_a_proxy_that_does_not_lead_there_is_spoken_of(no_proxy: pytest.MonkeyPatch) -> None:
    once = RetryPolicy(retries=0)
    with Client("http://quant.invalid", KEY, retry=once) as client, pytest.raises(ConnectionFailed) as away:
        client.schemes()
    assert "proxy" not in str(away.value)
    no_proxy.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with (
        Client("http://quant.invalid", KEY, retry=once) as client,
        pytest.raises(ConnectionFailed, match="A proxy is set"),
    ):
        client.schemes()
    no_proxy.setenv("HTTP_PROXY", "foo://x")
    with pytest.raises(MisconfiguredClient, match="HTTP_PROXY"):
        Client("http://quant.invalid", KEY)


def test_a_file_that_cannot_be_read_twice_is_refused_before_it_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    nobody = httpx.MockTransport(lambda request: pytest.fail(str(request.url)))
    with Client("http://x", KEY, transport=nobody) as client:
        for path in (tmp_path, tmp_path / "rows.jsonl"):
            with pytest.raises(ClientError, match="not a regular file"):
                client.datasets.upload(path)


def test_a_file_that_changes_between_its_digest_and_its_content_is_not_sent(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("before")

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.method == "GET"  # whether the service has it already
        rows.write_text("after")
        return httpx.Response(200, json={"data": [], "has_more": False, "next_cursor": None})

    with (
        Client("http://x", KEY, transport=httpx.MockTransport(answer)) as client,
        pytest.raises(ClientError, match="changed while it was sent"),
    ):
        client.datasets.upload(rows)
