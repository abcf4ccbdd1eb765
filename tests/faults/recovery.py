"""How long a killed worker's block waits until it runs again elsewhere."""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from typing import Any

from tests.faults.campaign import Say
from tests.faults.cluster import running_cluster
from tests.services import wait_until

BLOCK_SECONDS = 1.0


def recovery_times(
    *, seed: int, say: Say, kills: int, lease: float, beat: float, self_kill: float, grace: float
) -> dict[str, Any]:
    """SIGKILL of a Celery worker in the middle of a block, ``kills`` times; seconds until it is computed again."""
    draw = random.Random(seed)
    seconds: list[float] = []
    again: list[int] = []
    with (
        running_cluster(workers=2, lease=lease, beat=beat, self_kill=self_kill, grace=grace) as cluster,
        cluster.paced(BLOCK_SECONDS),
    ):
        for number in range(kills):
            job_id = cluster.submit()
            block = draw.randrange(4)
            sign = cluster.stage / f"at-{block}"
            sign.unlink(missing_ok=True)
            wait_until(sign.exists, seconds=60, what=f"block {block}")
            time.sleep(draw.uniform(0.1, 0.8) * BLOCK_SECONDS)
            for each in cluster.stage.glob("at-*"):
                each.unlink()
            worker = cluster.job(job_id)["worker"].partition("@")[0]
            child = cluster.parts[worker].child
            assert child is not None
            os.kill(child.pid, signal.SIGKILL)
            killed = time.time()
            wait_until(sign.exists, seconds=60 + 2 * lease, what=f"block {block} elsewhere")
            seconds.append(sign.stat().st_mtime - killed)
            again.append(1 + block - min(int(each.name[3:]) for each in cluster.stage.glob("at-*")))
            say(f"kill {number + 1:3} seed {seed}: {worker} in block {block}; it runs again after {seconds[-1]:.2f} s")
            cluster.revive(ready=True)
            cluster.wait_ended([job_id])
        violations = cluster.violations(reclaim=True)
        interval = cluster.settings.keeper_interval
    return {
        "seed": seed,
        "lease": lease,
        "beat": beat,
        "grace": grace,
        "keeper_interval": interval,
        "kills": kills,
        "median": round(statistics.median(seconds), 2),
        "worst": round(max(seconds), 2),
        "most_blocks_computed_again": max(again),
        "violations": [str(violation) for violation in violations],
    }
