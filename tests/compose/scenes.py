"""What is done to the stack. Each scene returns what was seen, or raises AssertionError."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from tests.compose.engine import Engine
from tests.compose.stack import Stack, digests, finished, in_the_middle, pulled, wait_until
from worker.embedded.servers import free_port

FIRST = "cold start: up to ready"
UNDISTURBED = "a job over HTTP"
_kept: dict[str, dict[str, str]] = {}
"""Digests of the undisturbed job, of the job before the upgrade."""


def stopped_at_once(engine: Engine, targets: Sequence[str]) -> str:
    """Each image with servers that do not answer, stopped while Python still imports."""
    took = []
    settings = {
        "QE_SECRET": "s" * 32,
        "QE_DATABASE_URL": "postgresql://qe@192.0.2.1/qe",
        "QE_REDIS_URL": "redis://192.0.2.1:6379/0",
    }
    for target in targets:
        variables = [word for name, value in settings.items() for word in ("--env", f"{name}={value}")]
        container = engine.docker("run", "--detach", *variables, f"quant-experts-{target}:latest").strip()
        began = time.monotonic()
        engine.docker("stop", "--time", "60", container)
        took.append(f"{target} {time.monotonic() - began:.1f} s")
        engine.docker("rm", container)
        assert time.monotonic() - began < 20, f"{target} was killed after {time.monotonic() - began:.0f} s"
    return "stopped after " + ", ".join(took)


def before_the_upgrade(stack: Stack) -> str:
    stack.up(QE_VERSION="previous")
    with stack.client() as client:
        job = finished(client, stack.submit(client))
        _kept["before"] = {"job": job.id, **digests(job)}
        stack.compose("stop", "worker", QE_VERSION="previous")
        _kept["waiting"] = {"job": stack.submit(client).id}
    return f"{len(_kept['before']) - 1} files"


def upgraded(stack: Stack) -> str:
    seconds = stack.up()
    assert ":latest" in stack.compose("ps", "--format", "{{.Image}}")
    with stack.client() as client:
        job = client.jobs.get(_kept["before"]["job"])
        assert {"job": job.id, **pulled(job, stack.directory / "before")} == _kept["before"]
        finished(client, client.jobs.get(_kept["waiting"]["job"]))
    return f"ready after {seconds:.0f} s"


def cold_start(stack: Stack) -> str:
    seconds = stack.up()
    began = time.monotonic()
    wait_until(stack.healthy, seconds=90, what="the health of every container")
    return f"ready after {seconds:.1f} s, every container healthy {time.monotonic() - began:.0f} s later"


def one_job(stack: Stack) -> str:
    with stack.client() as client:
        began = time.monotonic()
        job = finished(client, stack.submit(client))
        _kept["undisturbed"] = pulled(job, stack.directory / "undisturbed")
        assert _kept["undisturbed"]
        return f"{time.monotonic() - began:.0f} s; {len(_kept['undisturbed'])} files of tensors, their digests checked"


def worker_killed(stack: Stack) -> str:
    with stack.client() as client:
        job = stack.submit(client)
        done = in_the_middle(client, job)
        stack.compose("kill", "worker")
        stack.compose("up", "--detach", "--no-build", "worker")
        job = finished(client, job)
        assert job.attempts > 1
        _same(digests(job))
        return f"killed after {done} blocks, {job.attempts} attempts, the same bytes"


def servers_restarted(stack: Stack) -> str:
    with stack.client() as client:
        job = stack.submit(client)
        done = in_the_middle(client, job)
        stack.compose("restart", "postgres", "redis")
        job = finished(client, job)
        _same(digests(job))
        return f"PostgreSQL and Redis after {done} blocks, {job.attempts} attempts, the same bytes"


def stopped_and_started(stack: Stack) -> str:
    with stack.client() as client:
        job = stack.submit(client)
        done = in_the_middle(client, job)
        began = time.monotonic()
        stack.compose("stop")
        stopped = time.monotonic() - began
        stack.compose("start")
        wait_until(stack.ready, seconds=120, what="readiness")
        job = finished(client, job)
        _same(digests(job))
        return f"stopped in {stopped:.0f} s after {done} blocks, {job.attempts} attempts, the same bytes"


def wrong_setups(stack: Stack) -> str:
    """Each one line from the first process; nothing else starts."""
    lines = {
        "QE_SECRET: it has 5 characters": {"QE_SECRET": "short"},
        "QE_API_KEY: it has 5 characters": {"QE_API_KEY": "short"},
        "QE_SECRET is not the one with which": {"QE_SECRET": "x" * 40},
        "PostgreSQL refuses the login of QE_DATABASE_URL": {"POSTGRES_PASSWORD": "another"},
    }
    for line, settings in lines.items():
        said = stack.compose("run", "--rm", "--no-deps", "migrate", check=False, **settings)
        assert said.count(line) == 1, said
        assert "Traceback" not in said, said
    missing = str(stack.directory / "no-such-models")
    said = stack.compose("up", "--detach", "--no-build", check=False, QE_MODELS=missing)
    assert missing in said, said
    assert not Path(missing).exists()
    stack.up()
    return f"{len(lines) + 1} refused in a line each"


def saved_and_restored(stack: Stack) -> str:
    """Into volumes that are new, with the job's files and its row as they were."""
    with stack.client() as client:
        job = finished(client, stack.submit(client))
        stack.settings["QE_BACKUPS"] = str(stack.directory / "backups")
        said = stack.compose("run", "--rm", "backup")
        name = said.split("saved ")[1].split()[0]
        stack.down()
        stack.compose("up", "--detach", "--no-build", "--wait", "postgres")
        stack.compose("run", "--rm", "backup", "restore", name)
        again = stack.compose("run", "--rm", "backup", "restore", name, check=False)
        assert "the database is not empty" in again, again
        stack.up()
        shutil.rmtree(stack.directory / "restored", ignore_errors=True)
        _same(pulled(client.jobs.get(job.id), stack.directory / "restored"))
        checked = stack.compose("run", "--rm", "keeper", "python", "-m", "worker.keeper.reconcile", "--verify")
    return f"the job is there, the same bytes; reconcile: {checked.strip().splitlines()[-1]}"


def behind_tls(stack: Stack) -> str:
    stack.need("proxy")
    ports = {"QE_HTTP_PORT": str(free_port()), "QE_HTTPS_PORT": str(free_port())}
    stack.settings |= {**ports, "QE_TRUSTED_PROXIES": "172.16.0.0/12,192.168.0.0/16"}
    stack.profiles = ("tls",)
    stack.up()
    url = f"https://localhost:{ports['QE_HTTPS_PORT']}"
    own_authority = ssl.create_default_context()
    own_authority.check_hostname, own_authority.verify_mode = False, ssl.CERT_NONE
    with httpx.Client(base_url=url, verify=own_authority) as browser:
        wait_until(lambda: _answers(browser), seconds=60, what="the proxy")
        form = {"key": stack.settings["QE_API_KEY"], "next": "/"}
        answer = browser.post("/login", data=form, headers={"Origin": url})
        cookies = answer.headers.get_list("set-cookie")
    assert cookies, answer.text[:500]
    assert all("Secure" in cookie for cookie in cookies), cookies
    return "ready over HTTPS, and the session's cookie is Secure"


def watched(stack: Stack) -> str:
    stack.need("prometheus")
    grafana = stack.has("grafana")
    ports = {"QE_PROMETHEUS_PORT": str(free_port()), "QE_GRAFANA_PORT": str(free_port())}
    stack.settings |= ports
    stack.profiles = ("monitoring",)
    if grafana:
        stack.up()
    else:
        stack.compose("up", "--detach", "--no-build", "prometheus", "api", "worker", "keeper")
    prometheus = f"http://127.0.0.1:{ports['QE_PROMETHEUS_PORT']}/api/v1"

    def scraped() -> set[str]:
        with contextlib.suppress(httpx.HTTPError):
            targets = httpx.get(f"{prometheus}/targets").json()["data"]["activeTargets"]
            return {each["labels"]["job"] for each in targets if each["health"] == "up"}
        return set()

    wait_until(lambda: len(scraped()) == 2, seconds=120, what="the scrape of API, workers and keeper")
    rules = httpx.get(f"{prometheus}/rules").json()["data"]["groups"][0]["rules"]
    alive = httpx.get(f"{prometheus}/query", params={"query": "max(qe_workers_alive)"}).json()["data"]["result"]
    assert alive[0]["value"][1] == "1", alive
    seen = f"Prometheus scrapes {', '.join(sorted(scraped()))}; {len(rules)} alert rules are loaded"
    if not grafana:
        return f"{seen}; not run: Grafana, whose image is not to be had here"
    url, login = f"http://127.0.0.1:{ports['QE_GRAFANA_PORT']}/api", ("admin", "admin")
    wait_until(lambda: _answers(httpx.Client(base_url=url), "/health"), seconds=120, what="Grafana")
    board = httpx.get(f"{url}/dashboards/uid/quant-experts", auth=login)
    assert board.status_code == 200, board.text
    return f"{seen}; Grafana has the dashboard"


def _answers(client: httpx.Client, path: str = "/readyz") -> bool:
    try:
        return client.get(path).status_code == 200
    except httpx.HTTPError:
        return False


def object_store(stack: Stack) -> str:
    stack.need("objects")
    stack.down()
    stack.profiles = ("objects",)
    port = stack.settings.setdefault("QE_OBJECTS_PORT", "19000")
    stack.settings |= {
        "QE_STORAGE_URL": "s3://qe?endpoint_url=http://objects:9000&addressing_style=path"
        f"&public_endpoint_url=http://127.0.0.1:{port}",
        "QE_REDIRECT_DOWNLOADS": "true",
        "AWS_ACCESS_KEY_ID": "compose-test",
        "AWS_SECRET_ACCESS_KEY": "compose-test-secret",
    }
    stack.up()
    with stack.client() as client:
        job = finished(client, stack.submit(client))
        shutil.rmtree(stack.directory / "objects", ignore_errors=True)
        _same(pulled(job, stack.directory / "objects"))
        artifact = next(each for each in job.artifacts() if each.name.endswith(".safetensors"))
    # httpx gives the key to nobody but the API, as every client should; a store answers 400 to one.
    key = {"Authorization": f"Bearer {stack.settings['QE_API_KEY']}"}
    answer = httpx.get(f"{stack.url}{urlsplit(artifact.url).path}", headers=key, follow_redirects=True, timeout=20)
    assert answer.url.netloc == f"127.0.0.1:{port}".encode(), answer.url
    assert hashlib.sha256(answer.content).hexdigest() == artifact.sha256, answer.text[:300]
    return "the same bytes, fetched from the store by a client outside"


def _same(found: dict[str, str]) -> None:
    assert found == _kept["undisturbed"], "other bytes than those of the undisturbed job"


IN_TURN: list[tuple[str, Callable[[Stack], str]]] = [
    (FIRST, cold_start),
    (UNDISTURBED, one_job),
    ("kill the worker in the middle of a job", worker_killed),
    ("restart PostgreSQL and Redis in the middle of a job", servers_restarted),
    ("stop and start in the middle of a job", stopped_and_started),
    ("wrong setups", wrong_setups),
    ("back up, lose every volume, restore", saved_and_restored),
    ("profile tls", behind_tls),
    ("profile monitoring", watched),
    ("profile objects: redirected downloads", object_store),
]
