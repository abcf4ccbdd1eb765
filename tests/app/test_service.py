"""The service itself: health, readiness, metrics, schemes, workers, its published contract."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import psycopg
import pytest

from app.main import COLLECTING, create_app
from app.openapi import document
from app.system.service import METRICS_SECONDS
from app.web.openapi.examples import EXAMPLES, FILES
from app.web.problems import CATALOGUE
from core.contract.patterns import SAYS
from core.settings import Settings
from quant_experts.spec.methods import DEFAULT_METHOD
from tests.app.conftest import BOOTSTRAP_KEY, Api, job_body, ok, problem, served, started
from tests.app.tenant_cases import CREATES, DASHBOARD, LISTS, NOBODYS, OBJECTS, route_table

ROOT = Path(__file__).parent.parent.parent
FORBIDDEN = ("torch", "transformers", "worker", "celery")


async def test_the_collector_does_not_look_at_what_was_loaded(api: Api) -> None:
    assert gc.get_freeze_count() > 50_000
    assert gc.get_threshold() == COLLECTING


async def test_health_needs_no_key_and_no_database(settings: Settings) -> None:
    away = settings.model_copy(update={"database_url": "postgresql://nobody@127.0.0.1:1/none"})
    async with started(away) as api:
        assert ok(await api.client.get("/healthz", headers={"Authorization": ""})) == {"status": "ok"}


async def test_ready_when_database_storage_and_broker_answer(api: Api) -> None:
    body = ok(await api.client.get("/readyz"))
    assert body == {"status": "ready", "checks": {"database": "ok", "storage": "ok", "broker": "ok"}}


async def test_without_a_broker_it_is_degraded_but_ready(settings: Settings) -> None:
    for redis_url in ("redis://127.0.0.1:1/0", None):
        async with started(settings.model_copy(update={"redis_url": redis_url})) as api:
            assert ok(await api.client.get("/readyz"))["status"] == "degraded"


async def test_without_a_database_it_is_not_ready_and_says_so_everywhere(settings: Settings) -> None:
    away = settings.model_copy(update={"database_url": "postgresql://nobody@127.0.0.1:1/none"})
    async with started(away) as api:
        assert ok(await api.client.get("/readyz"), 503)["status"] == "unavailable"
        response = await api.client.get("/v1/jobs")
        assert problem(response, 503, "unavailable")["retryable"] is True
        assert "retry-after" in response.headers


async def test_an_unmigrated_database_is_not_ready(settings: Settings, empty_database_url: str) -> None:
    async with started(settings.model_copy(update={"database_url": empty_database_url})) as api:
        assert "qe migrate" in ok(await api.client.get("/readyz"), 503)["checks"]["database"]


async def test_a_storage_that_cannot_be_written_is_not_ready(api: Api) -> None:
    storage = api.settings.resolved_home / "storage"
    (storage / "readiness").rmdir() if (storage / "readiness").exists() else None
    (storage / "readiness").write_text("a file where a folder must be")
    assert ok(await api.client.get("/readyz"), 503)["checks"]["storage"].startswith("not writable")


async def test_metrics_count_requests_by_route_and_unfinished_jobs_by_status(api: Api) -> None:
    job = await api.create_job()
    ended = await api.create_job()
    ok(await api.client.post(f"/v1/jobs/{ended['id']}/cancel"))
    await api.client.get(f"/v1/jobs/{job['id']}")
    await api.client.get("/nowhere")
    text = (await api.client.get("/metrics")).text
    assert 'qe_http_requests_total{method="GET",route="/v1/jobs/{job_id}",status="200"} 1.0' in text
    assert 'route="unmatched",status="404"' in text
    assert job["id"] not in text
    assert 'qe_jobs{status="queued"} 1.0' in text
    assert 'qe_jobs{status="running"} 0.0' in text
    assert 'qe_jobs{status="cancelled"}' not in text  # a count of all that ever ended would cost more every day


async def test_with_a_token_metrics_are_for_who_has_it(settings: Settings) -> None:
    token = "a-token-of-the-collector"
    async with started(settings.model_copy(update={"metrics_token": token})) as api:
        for wrong in ("", "Bearer ", "Bearer another-token-of-mine", f"Bearer {BOOTSTRAP_KEY}"):
            problem(await api.client.get("/metrics", headers={"Authorization": wrong}), 401, "unauthenticated")
        assert (await api.client.get("/metrics", headers={"Authorization": f"Bearer {token}"})).status_code == 200


async def test_the_methods_that_clients_invent_make_no_series_of_their_own(api: Api) -> None:
    for method in ("INVENTED", "PROPFIND", "X" * 50):
        assert (await api.client.request(method, "/v1/jobs")).status_code == 405
    text = (await api.client.get("/metrics")).text
    assert 'qe_http_requests_total{method="other",route="/v1/jobs",status="405"} 3.0' in text
    assert "INVENTED" not in text


async def test_while_the_database_is_away_metrics_say_that_they_do_not_know(api: Api) -> None:
    await api.create_job()
    assert 'qe_jobs{status="queued"} 1.0' in (await api.client.get("/metrics")).text
    name = api.execute("SELECT current_database()")[0][0]
    with psycopg.connect(api.settings.database_url or "", dbname="postgres", autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
        connection.execute("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s", [name])
        await asyncio.sleep(METRICS_SECONDS)
        away = (await api.client.get("/metrics")).text
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())
    await asyncio.sleep(METRICS_SECONDS)
    assert "qe_jobs{" not in away
    assert "qe_oldest_queued_seconds NaN" in away
    assert "qe_workers_alive NaN" in away
    assert 'qe_jobs{status="queued"} 1.0' in (await api.client.get("/metrics")).text


async def test_schemes_list_what_a_job_may_ask_for(api: Api) -> None:
    body = ok(await api.client.get("/v1/schemes"))
    assert {"name": "W3A16", "weight_bits": 3, "activation_bits": 16} in body["schemes"]
    method = body["methods"][0]
    for scheme in body["schemes"]:
        await api.create_job(scheme=scheme["name"], method=method["name"])
    measured = {each["name"]: each["measured"] for each in body["methods"]}
    assert measured["rtn"] == []
    assert measured[DEFAULT_METHOD][0].keys() == {"scheme", "bits", "kl", "cpu_seconds"}
    assert (await api.create_job())["method"] == DEFAULT_METHOD


async def test_workers_are_listed_with_the_job_they_hold(api: Api) -> None:
    job = await api.create_job()
    api.execute("INSERT INTO workers (id, host, device, job_id) VALUES ('w1', 'h', 'cpu', %s)", [job["id"]])
    api.execute("INSERT INTO workers (id, host, device, seen_at) VALUES ('w2', 'h', 'cpu', now() - interval '1 day')")
    first, second = ok(await api.client.get("/v1/workers"))["data"]
    assert (first["id"], first["alive"], first["busy"], first["job_id"]) == ("w1", True, True, job["id"])
    assert (second["id"], second["alive"], second["busy"]) == ("w2", False, False)
    key = ok(await api.client.post("/v1/keys", json={"name": "k", "scopes": ["workers:read"], "tenant": "acme"}), 201)
    async with api.as_key(key["key"]) as theirs:
        assert ok(await theirs.get("/v1/workers"))["data"][0]["job_id"] is None


async def test_head_is_answered_wherever_get_is_with_its_headers_and_no_body(api: Api) -> None:
    job = await api.create_job()
    async with served(api) as client:
        for path in ("/healthz", "/readyz", "/metrics", "/", "/v1/jobs", f"/v1/jobs/{job['id']}", "/v1/jobs/job_none"):
            get, head = await client.get(path), await client.head(path)
            assert (head.status_code, head.content) == (get.status_code, b""), path
            assert head.headers.get("content-type") == get.headers.get("content-type")
    metrics = (await api.client.get("/metrics")).text
    assert 'qe_http_requests_total{method="HEAD",route="/v1/jobs/{job_id}",status="200"} 1.0' in metrics


async def test_head_of_a_live_stream_does_not_wait_for_the_end_of_the_job(api: Api) -> None:
    job = await api.create_job()
    async with served(api) as client:
        head = await client.head(f"/v1/jobs/{job['id']}/events", headers={"Accept": "text/event-stream"}, timeout=10)
    assert head.status_code == 200
    assert head.headers["content-type"].startswith("text/event-stream")
    assert head.headers["vary"] == "Accept"


async def test_what_is_not_possible_names_every_method_that_is(api: Api) -> None:
    response = await api.client.delete("/v1/jobs")
    problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "GET, HEAD, POST"


async def test_a_body_that_is_not_sent_as_json_is_told_how_to_send_it(api: Api) -> None:
    body = json.dumps(job_body())
    form = await api.client.post(
        "/v1/jobs", content=body, headers={"Content-Type": "application/x-www-form-urlencoded"}
    )
    refused = problem(form, 422, "invalid-request")
    assert refused["errors"][0]["pointer"] == "/header/Content-Type"
    assert "send it with Content-Type: application/json" in refused["detail"]
    packed = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    refused = problem(
        await api.client.post("/v1/jobs", content=gzip.compress(body.encode()), headers=packed),
        400,
        "malformed-request",
    )
    assert "uncompressed" in refused["detail"]


async def test_every_problem_can_be_looked_up(api: Api) -> None:
    for slug, kind in CATALOGUE.items():
        assert ok(await api.client.get(kind.uri))["type"] == f"/problems/{slug}"
    problem(await api.client.get("/problems/unheard-of"), 404, "not-found")


def test_the_published_contract_is_the_one_in_the_repository() -> None:
    assert (ROOT / "openapi.json").read_text() == document(), "run `make openapi` if the change is wanted"


def test_operations_have_short_names_of_their_own() -> None:
    paths = json.loads(document())["paths"]
    names = [operation["operationId"] for operations in paths.values() for operation in operations.values()]
    assert len(set(names)) == len(names)
    assert {"jobs_create", "jobs_list", "artifacts_download", "uploads_put_part", "plans_plan"} <= set(names)
    assert [name for name in names if not re.fullmatch(r"[a-z]+(_[a-z]+){0,3}", name)] == []


def test_every_operation_says_in_a_line_what_it_does() -> None:
    paths = json.loads(document())["paths"]
    said = {
        operation["operationId"]: operation["summary"]
        for operations in paths.values()
        for operation in operations.values()
    }
    assert said["jobs_create"] == "Queue a quantization"
    # Of the function's name FastAPI makes a title, every word with a capital.
    assert {name: line for name, line in said.items() if line.istitle() or not 5 < len(line) < 100} == {}


def test_every_pattern_that_a_client_can_miss_is_also_said_in_words() -> None:
    assert set(re.findall(r'"pattern": ("(?:[^"\\]|\\.)+")', document())) == set(map(json.dumps, SAYS))


def test_no_enum_of_the_contract_mixes_types() -> None:
    """openapi-python-client leaves out every operation with such a one; it was tried."""

    def enums(part: Any) -> Iterator[list[Any]]:
        if isinstance(part, dict):
            if isinstance(part.get("enum"), list):
                yield part["enum"]
            part = list(part.values())
        if isinstance(part, list):
            for each in part:
                yield from enums(each)

    found = list(enums(json.loads(document())))
    assert found
    assert [each for each in found if len(set(map(type, each))) > 1] == []


def test_every_route_has_a_case_of_another_tenant(tmp_path: Path) -> None:
    """A new route: say in tests/app/tenant_cases.py what another tenant may see of it."""
    table = set(route_table(create_app(Settings(home=tmp_path))))
    assert table == {*NOBODYS, *LISTS, *OBJECTS, *CREATES, *DASHBOARD}


def test_every_operation_documents_its_problems() -> None:
    paths = json.loads(document())["paths"]
    for path, operations in paths.items():
        for method, operation in operations.items():
            if path.startswith("/v1/"):
                assert {"401", "403", "422", "500", "503"} <= set(operation["responses"]), (method, path)
            for status, response in operation["responses"].items():
                if status.startswith(("4", "5")) and path != "/readyz":
                    assert list(response["content"]) == ["application/problem+json"], (method, path, status)


def test_the_application_is_made_without_touching_anything(tmp_path: Path) -> None:
    create_app(Settings(home=tmp_path / "home"))
    assert list(tmp_path.iterdir()) == []


async def test_a_start_without_a_database_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="QE_DATABASE_URL"):
        async with started(Settings(home=tmp_path, database_url=None)):
            pass


def test_the_api_loads_neither_torch_nor_the_worker_and_of_the_library_planner_and_charts_alone() -> None:
    program = (
        "import sys; from app.main import create_app; create_app().openapi(); "
        f"print([name for name in {FORBIDDEN!r} if name in sys.modules], "
        "[name for name in sys.modules if name.startswith('quant_experts.')"
        " and name.split('.')[1] not in ('charts', 'files', 'planning', 'spec')])"
    )
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[] []"


def test_every_operation_with_a_body_has_an_example_that_its_schema_takes() -> None:
    described = json.loads(document())
    bodies = [
        (f"{method} {path}", media_type, content)
        for path, operations in described["paths"].items()
        for method, operation in operations.items()
        for media_type, content in operation.get("requestBody", {}).get("content", {}).items()
        if media_type not in FILES
    ]
    assert {name for name, _, _ in bodies} == set(EXAMPLES)
    for name, media_type, content in bodies:
        schema = {**content["schema"], "components": described["components"]}
        assert jsonschema_rs.validator_for(schema).is_valid(content["example"]), (name, media_type)


async def test_an_address_that_is_not_there_is_a_page_for_a_browser_and_a_problem_for_programs(api: Api) -> None:
    browsers = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
    page = await api.client.get("/jbos", headers=browsers)
    assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "there is no page at /jbos" in page.text
    assert "frame-ancestors" in page.headers["content-security-policy"]
    for accept in ("*/*", "application/json", "application/problem+json, text/html;q=0.5"):
        problem(await api.client.get("/jbos", headers={"Accept": accept}), 404, "not-found")
