"""A storm among neighbours that trouble each other: one tenant floods, one worker is sick, one is old, runners stall,
webhooks, datasets and jobs are deleted as jobs end, and two keepers look after all of it.

What must hold besides the invariants is in ``MEANING``; ``judged`` decides it from what was seen.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import psycopg

from tests.faults.campaign import (
    BLOCK_SECONDS,
    PATIENCE,
    WAIT_FOR_VICTIM,
    Clients,
    Say,
    Storm,
    figures_of,
    rage,
    schedule,
)
from tests.faults.cluster import Cluster, running_cluster
from tests.faults.process_table import state

MEANING = {
    "N1": "a sick worker stops by itself, and takes nothing after that",
    "N2": "an old worker takes no job that it does not understand",
    "N3": "a runner that has stalled is ended",
    "N4": "no job fails because something that it refers to was deleted",
    "N5": "a tenant that floods leaves a third of the claims, and more, to the other one",
    "N6": "a webhook is sent one message at a time, however many keepers there are",
}
STALL_SECONDS = 5.0
STALLED_MOST = 45.0
"""Seconds until a stopped runner must have ended: the stall, the supervisor's look, outages in between."""
FAIR_SHARE = 1 / 3
FLOOD = 24
"""Jobs of the loud tenant that wait at any time."""
OLDER = {"method": "qe", "options": {"method_version": 1}}
"""Of a job that old workers understand."""
LOOK_SECONDS = 0.2
TROUBLES = (httpx.TransportError, psycopg.OperationalError)


@dataclass
class Seen:
    """What ``judged`` needs."""

    sick_stopped: int = 0
    """Looks at the ledger that found the sick worker stopped."""
    taken_when_stopped: int = 0
    newer_of_old: list[str] = field(default_factory=list)
    """Jobs of newer specs that the old worker took."""
    old_attempts: int = 0
    stalled: int = 0
    still_stalled: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    deleted: Counter[str] = field(default_factory=Counter)
    claims: dict[str, int] = field(default_factory=dict)
    """By tenant, while both had jobs that waited."""
    messages: int = 0
    at_once: list[str] = field(default_factory=list)
    """Webhooks that were sent a message while another was under way."""


def judged(seen: Seen) -> list[str]:
    """Every violation, and what did not happen and should have, so that nothing was shown."""
    found = []
    if not seen.sick_stopped:
        found.append("N1: the sick worker never stopped")
    if seen.taken_when_stopped:
        found.append(f"N1: the sick worker took {seen.taken_when_stopped} jobs after it had stopped")
    found += [f"N2: the old worker took {job_id}" for job_id in seen.newer_of_old]
    if not seen.old_attempts:
        found.append("N2: the old worker took nothing at all")
    if not seen.stalled:
        found.append("N3: no runner was stalled")
    found += [f"N3: {runner} was still there after {STALLED_MOST:g} s" for runner in seen.still_stalled]
    found += [f"N4: {line}" for line in seen.failed]
    found += [f"N4: nothing was deleted of {kind}" for kind in ("webhook", "dataset", "job") if not seen.deleted[kind]]
    quiet, loud = seen.claims.get("default", 0), seen.claims.get("loud", 0)
    if not loud or quiet / (quiet + loud) < FAIR_SHARE:
        found.append(f"N5: {quiet} claims of the quiet tenant, {loud} of the loud one")
    found += [f"N6: webhook {webhook} was sent two messages at once" for webhook in seen.at_once]
    if not seen.messages:
        found.append("N6: no message arrived")
    return found


class Receiver:
    """Takes the messages of webhooks, and notes when two of one are under way at once."""

    def __init__(self, seen: Seen) -> None:
        lock, under_way = threading.Lock(), Counter[str]()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                with lock:
                    seen.messages += 1
                    under_way[self.path] += 1
                    if under_way[self.path] > 1:
                        seen.at_once.append(self.path)
                time.sleep(0.02)
                with lock:
                    under_way[self.path] -= 1
                with contextlib.suppress(OSError):
                    self.send_response(204)
                    self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@contextlib.contextmanager
def _at_the_same_time(*lives: Callable[[threading.Event], None]) -> Iterator[None]:
    """Each in a thread, again and again until the end; servers that are away are waited for. Raises what one raised."""
    over, errors = threading.Event(), list[BaseException]()

    def live(once: Callable[[threading.Event], None]) -> None:
        while not over.is_set():
            try:
                once(over)
            except TROUBLES:
                over.wait(LOOK_SECONDS)
            except BaseException as error:
                errors.append(error)
                return

    threads = [threading.Thread(target=live, args=(once,), daemon=True) for once in lives]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(60)
    if errors:
        raise errors[0]


def _webhooks(cluster: Cluster, seen: Seen, hooks: str) -> Callable[[threading.Event], None]:
    """Webhooks come and go under all that is told."""
    numbers, living = itertools.count(), list[str]()

    def once(over: threading.Event) -> None:
        with cluster.client() as client:
            while not over.wait(0.1):
                made = client.post("/v1/webhooks", json={"url": f"{hooks}/{next(numbers)}"})
                if made.status_code == 201:
                    living.append(made.json()["id"])
                if len(living) > 3:
                    seen.deleted["webhook"] += client.delete(f"/v1/webhooks/{living.pop(0)}").status_code == 204

    return once


def _jobs_and_rows(cluster: Cluster, seen: Seen) -> Callable[[threading.Event], None]:
    numbers = itertools.count()

    def once(over: threading.Event) -> None:
        with cluster.client() as client:
            while not over.wait(1.0):
                _job_and_rows(client, seen, over, next(numbers))

    return once


def _job_and_rows(client: httpx.Client, seen: Seen, over: threading.Event, number: int) -> None:
    """A job on rows of its own: both are deleted as early as the service lets them go."""
    rows = b'{"messages": [{"role": "user", "content": "Number %d?"}]}\n' % number
    uploaded = client.post("/v1/datasets", files={"file": ("rows.jsonl", rows)})
    if uploaded.status_code != 201:
        return
    dataset = uploaded.json()["id"]
    body = {"model": {"id": "local/small"}, "calibration": {"dataset": dataset}, "scheme": "W4A6"}
    made = client.post("/v1/jobs", json=body)
    if made.status_code != 201:
        return
    todo = {"job": f"/v1/jobs/{made.json()['id']}", "dataset": f"/v1/datasets/{dataset}"}
    while todo and not over.wait(0.1):
        for kind, path in list(todo.items()):
            answer = client.delete(path).status_code
            seen.deleted[kind] += answer == 204
            if answer in (204, 404):
                del todo[kind]


def _flood(cluster: Cluster, seen: Seen) -> Callable[[threading.Event], None]:
    """The loud tenant keeps its queue full."""
    made = _answered(
        cluster, "/v1/keys", {"name": "loud", "tenant": "loud", "scopes": ["jobs:write", "datasets:write"]}
    )
    headers = {"Authorization": f"Bearer {made['key']}"}
    rows = {"file": ("rows.jsonl", b'{"messages": [{"role": "user", "content": "Which colour?"}]}\n')}
    dataset = httpx.post(f"{cluster.client().base_url}/v1/datasets", headers=headers, files=rows).json()["id"]
    body = {"model": {"id": "local/small"}, "calibration": {"dataset": dataset}, "scheme": "W4A6", **OLDER}

    def once(over: threading.Event) -> None:
        with cluster.client() as client:
            while not over.wait(LOOK_SECONDS):
                waiting = cluster.rows(
                    "SELECT tenant, count(*) AS jobs FROM jobs WHERE status = 'queued' GROUP BY tenant"
                )
                for _ in range(FLOOD - {row["tenant"]: row["jobs"] for row in waiting}.get("loud", 0)):
                    client.post("/v1/jobs", json=body, headers=headers)

    return once


def _answered(cluster: Cluster, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    with cluster.client() as client:
        answer = client.post(path, json=body)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found


def _looks(cluster: Cluster, seen: Seen, sick: str) -> Callable[[threading.Event], None]:
    """At the sick worker, whether it takes anything after it has stopped."""
    before: list[tuple[str | None, int]] = [(None, 0)]

    def once(over: threading.Event) -> None:
        while not over.wait(LOOK_SECONDS):
            (row,) = cluster.rows(
                "SELECT (SELECT state FROM workers WHERE id = %s) AS state, count(*) AS attempts FROM attempts"
                " WHERE worker = %s",
                sick,
                sick,
            )
            if before[0][0] == row["state"] == "stopped":
                seen.sick_stopped += 1
                seen.taken_when_stopped += row["attempts"] - before[0][1]
            before[0] = row["state"], row["attempts"]

    return once


def _stall(cluster: Cluster, storm: Storm, draw: random.Random, stalled: dict[int, tuple[str, float]]) -> None:
    deadline = time.monotonic() + WAIT_FOR_VICTIM
    while not (running := [each for each in cluster.runners() if each.pid not in stalled]):
        if time.monotonic() > deadline:
            return
        time.sleep(0.02)
        cluster.revive()
    chosen = draw.choice(running)
    cluster.send(chosen.pid, signal.SIGSTOP)
    stalled[chosen.pid] = (f"attempt {chosen.attempt} at {chosen.job_id}", time.monotonic())
    storm.did("stall runner", f"SIGSTOP of runner {chosen.pid}")


def storm_among_neighbours(
    *, seed: int, say: Say, jobs: int, kills: int, outages: int, stalls: int, workers: int, clients: int
) -> dict[str, Any]:
    """One whole campaign; figures and violations."""
    draw, seen, stalled = random.Random(seed), Seen(), dict[int, tuple[str, float]]()
    faults = schedule(draw, kills=kills, outages=outages) + ["stall"] * stalls
    draw.shuffle(faults)
    hooks = Receiver(seen)
    troubled = {"webhook_allow_http": True, "webhook_allow_private": True, "stall_seconds": STALL_SECONDS}
    with running_cluster(workers=workers, **troubled) as cluster, cluster.paced(BLOCK_SECONDS):
        cluster.add_part("keeper-2", [sys.executable, "-m", "worker.keeper"])
        old = cluster.add_worker(FAULTS_UNDERSTOOD="1")
        sick = cluster.add_worker(FAULTS_RUNNER="dies", QE_SICK_AFTER="3")
        cluster.wait_ready(old, sick)
        record = Storm(seed, say)
        flood = _flood(cluster, seen)
        lives = (
            _webhooks(cluster, seen, hooks.url),
            _jobs_and_rows(cluster, seen),
            flood,
            _looks(cluster, seen, f"{sick}@faults"),
        )
        began = cluster.rows("SELECT clock_timestamp() AS at")[0]["at"]
        with Clients(cluster, count=clients, jobs=jobs, specs=[{}, OLDER]) as people:
            with _at_the_same_time(*lives):
                rage(cluster, record, draw, faults, {"stall": lambda: _stall(cluster, record, draw, stalled)})
                say(f"the storm is over after {time.monotonic() - record.started:.0f} s")
                for sign in cluster.crash_points.glob("kill-*"):
                    sign.unlink()
                cluster.revive(ready=True)
                people.wait_begun()
            seen.claims = _claims(cluster, began)
            _end_the_flood(cluster)
            people.finish()
        cluster.wait_ended(seconds=PATIENCE)
        _look_back(cluster, seen, f"{old}@faults", stalled)
        violations = [str(violation) for violation in cluster.violations(reclaim=True)]
        figures = dict(figures_of(cluster))
    hooks.server.shutdown()
    return {
        "seed": seed,
        "seconds": round(time.monotonic() - record.started),
        "faults": dict(sorted(record.faults.items())),
        "kills": record.kills,
        "stalls": seen.stalled,
        "deleted": dict(sorted(seen.deleted.items())),
        "claims": seen.claims,
        "messages": seen.messages,
        "old_attempts": seen.old_attempts,
        "violations": violations + judged(seen),
        **figures,
    }


def _claims(cluster: Cluster, began: Any) -> dict[str, int]:
    rows = cluster.rows(
        "SELECT tenant, count(*) AS claims FROM attempts JOIN jobs ON jobs.id = job_id"
        " WHERE attempts.started_at > %s GROUP BY tenant",
        began,
    )
    return {row["tenant"]: row["claims"] for row in rows}


def _end_the_flood(cluster: Cluster) -> None:
    with cluster.connect() as connection:
        connection.execute("UPDATE jobs SET max_wait_s = 0 WHERE tenant = 'loud' AND status = 'queued'")


def _look_back(cluster: Cluster, seen: Seen, old: str, stalled: Mapping[int, tuple[str, float]]) -> None:
    taken = cluster.rows(
        "SELECT job_id, spec_version FROM attempts JOIN jobs ON jobs.id = job_id WHERE attempts.worker = %s", old
    )
    seen.old_attempts = len(taken)
    seen.newer_of_old = [row["job_id"] for row in taken if row["spec_version"] > 1]
    seen.stalled = len(stalled)
    for pid, (what, at) in stalled.items():
        while state(pid) not in "ZX" and time.monotonic() < at + STALLED_MOST:
            time.sleep(LOOK_SECONDS)
        if state(pid) not in "ZX":
            seen.still_stalled.append(what)
    seen.failed = [
        f"{row['id']} failed: {row['error']}"
        for row in cluster.rows("SELECT id, error FROM jobs WHERE status = 'failed' AND error->>'code' <> 'no_worker'")
    ]
