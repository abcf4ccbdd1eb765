"""Hundreds of jobs under hundreds of faults, with the stand-in runner; the sequence of faults follows from a seed.

Which fault comes next, how long after the last, and which of the living it hits are drawn from the seed. Process ids
and the moment within a transaction are the machine's, so the same seed gives the same storm, not the same instant.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import psycopg

from core import crash_points
from tests.faults.cluster import Cluster, running_cluster

KILLS = {"runner": 45, "supervisor": 25, "worker": 8, "keeper": 8, "api": 6}
"""Weights of the victims: those that compute most, and those whose restart takes long least."""
POINTS = [
    *(name for name in crash_points.SUPERVISOR),
    "reap.before_commit",
    "reap.after_commit",
    "create.before_commit",
    "notify.before",
]
AT_A_POINT = 0.3
"""Share of the kills that happen at a crash point, when somebody comes there; the others strike at once."""
MEAN_PAUSE = 0.2
LONGEST_OUTAGE = 2.0
BLOCK_SECONDS = 0.1
WAIT_FOR_VICTIM = 10.0
WAIT_FOR_SIGNS = 15.0
PATIENCE = 900.0

Say = Callable[[str], None]


@dataclass
class Storm:
    """What was done to the cluster, in order."""

    seed: int
    say: Say
    faults: Counter[str] = field(default_factory=Counter)
    """``kill runner``, ``postgres SIGQUIT`` and so on → how often."""
    log: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    @property
    def kills(self) -> int:
        return sum(count for name, count in self.faults.items() if name.startswith("kill"))

    def outages(self, server: str) -> int:
        return sum(count for name, count in self.faults.items() if name.startswith(server))

    def did(self, kind: str, what: str) -> None:
        self.faults[kind] += 1
        line = f"fault {len(self.log) + 1:4} seed {self.seed} +{time.monotonic() - self.started:7.1f} s  {what}"
        self.log.append(line)
        self.say(line)


def schedule(draw: random.Random, *, kills: int, outages: int) -> list[str]:
    """The faults of a storm by name, shuffled: a victim, a crash point, or a server."""
    at_points = round(kills * AT_A_POINT)
    faults = draw.choices(list(KILLS), weights=list(KILLS.values()), k=kills - at_points)
    faults += draw.choices(POINTS, k=at_points)
    faults += ["postgres", "redis"] * outages
    draw.shuffle(faults)
    return faults


def rage(
    cluster: Cluster,
    storm: Storm,
    draw: random.Random,
    faults: list[str],
    others: Mapping[str, Callable[[], None]] = {},
) -> None:
    """Inject every fault, and start again what died, until the list is used up. ``others``: faults of the caller's."""
    signs: set[str] = set()
    for fault in faults:
        time.sleep(draw.expovariate(1 / MEAN_PAUSE))
        if fault in others:
            others[fault]()
        elif fault in ("postgres", "redis"):
            _outage(cluster, storm, draw, fault)
        elif fault in POINTS:
            (cluster.crash_points / f"kill-{fault}").touch()
            signs.add(fault)
        else:
            _kill(cluster, storm, draw, fault)
        _obeyed(cluster, storm, signs)
        with contextlib.suppress(psycopg.OperationalError):
            cluster.revive()
    deadline = time.monotonic() + WAIT_FOR_SIGNS
    while signs and time.monotonic() < deadline:
        time.sleep(0.1)
        _obeyed(cluster, storm, signs)
        cluster.revive()


def _kill(cluster: Cluster, storm: Storm, draw: random.Random, victim: str) -> None:
    deadline = time.monotonic() + WAIT_FOR_VICTIM
    while not (pids := cluster.victims(victim)) and time.monotonic() < deadline:
        time.sleep(0.02)
        cluster.revive()
    if pids:
        pid = draw.choice(pids)
        cluster.send(pid)
        storm.did(f"kill {victim}", f"SIGKILL of {victim} {pid}")


def _obeyed(cluster: Cluster, storm: Storm, signs: set[str]) -> None:
    """Note the crash points at which somebody has died since."""
    for point in [point for point in signs if not (cluster.crash_points / f"kill-{point}").exists()]:
        signs.remove(point)
        storm.did(f"kill at a point of {_owner(point)}", f"SIGKILL at {point}")


def _owner(point: str) -> str:
    return "api" if point in crash_points.API else "keeper" if point in crash_points.KEEPER else "supervisor"


def _outage(cluster: Cluster, storm: Storm, draw: random.Random, server: str) -> None:
    seconds = draw.uniform(0.1, LONGEST_OUTAGE)
    number = draw.choice((signal.SIGKILL, signal.SIGQUIT, signal.SIGINT)) if server == "postgres" else signal.SIGKILL
    cluster.stop_server(server, number)
    storm.did(f"{server} down ({number.name})", f"{server} ended by {number.name}, away for {seconds:.2f} s")
    time.sleep(seconds)


class Clients:
    """People with jobs: each creates one, looks at it until it has ended, and creates the next.

    Every fifth sends its request twice at once under one key, every fifteenth cancels the job and retries it.
    ``specs``: what the jobs ask for, in turn.
    """

    def __init__(self, cluster: Cluster, *, count: int, jobs: int, specs: Sequence[Mapping[str, Any]] = ({},)) -> None:
        self._cluster = cluster
        self._specs = specs
        self._begun = 0
        self._numbers = itertools.count()
        self._jobs = jobs
        self._over = threading.Event()
        self.errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._live, daemon=True) for _ in range(count)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(300)

    def wait_begun(self) -> None:
        """Until the last job that was asked for has been begun, or a client failed."""
        self._wait(lambda: self._begun >= self._jobs or bool(self.errors))

    def finish(self) -> None:
        """No further job beyond the number that was asked for; wait for those under way."""
        self._over.set()
        self._wait(lambda: not any(thread.is_alive() for thread in self._threads))
        if self.errors:
            raise self.errors[0]

    def _wait(self, condition: Callable[[], bool]) -> None:
        """A process removes the sign of a crash point before it kills itself. On a busy machine it may do so after
        everything else was started again."""
        while not condition():
            with contextlib.suppress(psycopg.OperationalError):
                self._cluster.revive()
            time.sleep(0.1)

    def _live(self) -> None:
        try:
            while (number := next(self._numbers)) < self._jobs or not self._over.is_set():
                self._one_job(number)
        except BaseException as error:
            self.errors.append(error)

    def _one_job(self, number: int) -> None:
        self._begun = max(self._begun, number)
        wanted = {"key": f"job-{number}", "seconds": PATIENCE, **self._specs[number % len(self._specs)]}
        if number % 5 == 0:
            twin = threading.Thread(target=self._cluster.submit, kwargs=wanted, daemon=True)
            twin.start()
            job_id = self._cluster.submit(**wanted)
            twin.join()
        else:
            job_id = self._cluster.submit(**wanted)
        if number % 15 == 7:
            self._ask(job_id, "cancel")
            self._until_ended(job_id)
            self._ask(job_id, "retry")
        self._until_ended(job_id)

    def _ask(self, job_id: str, what: str) -> None:
        """Until answered: 409 says that the job's state does not allow it any more."""
        while True:
            with contextlib.suppress(httpx.TransportError), self._cluster.client() as client:
                if client.post(f"/v1/jobs/{job_id}/{what}").status_code in (200, 409):
                    return
            time.sleep(0.2)

    def _until_ended(self, job_id: str) -> None:
        self._cluster.wait_ended([job_id], seconds=PATIENCE)


def storm(
    *, seed: int, say: Say, jobs: int, kills: int, outages: int, workers: int, clients: int, **settings: Any
) -> dict[str, Any]:
    """One whole campaign; figures and violations."""
    draw = random.Random(seed)
    faults = schedule(draw, kills=kills, outages=outages)
    with running_cluster(workers=workers, **settings) as cluster, cluster.paced(BLOCK_SECONDS):
        record = Storm(seed, say)
        with Clients(cluster, count=clients, jobs=jobs) as people:
            rage(cluster, record, draw, faults)
            say(f"the storm is over after {time.monotonic() - record.started:.0f} s; everything is started again")
            for sign in cluster.crash_points.glob("kill-*"):
                sign.unlink()
            cluster.revive(ready=True)
            people.finish()
        cluster.wait_ended(seconds=PATIENCE)
        violations = cluster.violations(reclaim=True)
        figures = dict(figures_of(cluster))
    return {
        "seed": seed,
        "seconds": round(time.monotonic() - record.started),
        "faults": dict(sorted(record.faults.items())),
        "kills": record.kills,
        "database_outages": record.outages("postgres"),
        "broker_outages": record.outages("redis"),
        "violations": [str(violation) for violation in violations],
        **figures,
    }


def figures_of(cluster: Cluster) -> Iterator[tuple[str, Any]]:
    one = cluster.rows(
        "SELECT count(*) AS jobs, count(*) FILTER (WHERE status = 'succeeded') AS succeeded,"
        " count(*) FILTER (WHERE attempt > 1) AS disturbed, coalesce(sum(attempt), 0)::int AS attempts,"
        " max(attempt) AS most_attempts FROM jobs"
    )[0]
    yield from one.items()
    yield (
        "outcomes",
        {
            row["outcome"]: row["times"]
            for row in cluster.rows("SELECT outcome, count(*) AS times FROM attempts GROUP BY 1 ORDER BY 2 DESC")
        },
    )
    yield "answered_creations", len(cluster.accepted)
    # Blocks in the ledger when an attempt began, against the block at which it went on.
    yield (
        "computed_again",
        cluster.rows(
            "SELECT coalesce(max(greatest(before - resumed, 0)), 0)::int AS blocks FROM ("
            " SELECT a.resumed_from_block AS resumed, (SELECT count(*) FROM events e WHERE e.job_id = a.job_id"
            "  AND e.type = 'job.block' AND e.created_at < a.started_at) AS before FROM attempts a"
            " WHERE a.blocks_done > 0 OR a.outcome = 'succeeded') each"
        )[0]["blocks"],
    )
