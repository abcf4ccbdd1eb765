"""SIGKILL at every crash point of the service; `make faults` adds every other victim, and the real runner."""

from __future__ import annotations

import pytest

from core import crash_points
from tests.faults.cluster import running_cluster
from tests.faults.kill_matrix import STANDIN_POINTS, strike

OTHERS = [("upload.after", "runner"), ("layer.before_commit", "worker"), ("spawn.after", "keeper")]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whoever_dies_at_any_point_nothing_is_lost_and_nothing_happens_twice() -> None:
    with running_cluster(lease=2.0, beat=0.2, self_kill=1.4, grace=0.3) as cluster:
        strikes = [strike(cluster, point) for point in STANDIN_POINTS]
        strikes += [strike(cluster, point, victim) for point, victim in OTHERS]
        cluster.wait_ended()
        assert all(each.pid is not None for each in strikes), [str(each) for each in strikes]
        assert {row["status"] for row in cluster.rows("SELECT status FROM jobs")} == {"succeeded"}
        assert cluster.violations(reclaim=True) == []
        reached = {path.name.removeprefix("reached-") for path in cluster.crash_points.glob("reached-*")}
    assert reached == crash_points.NAMES.keys() - crash_points.LIBRARY.keys() - crash_points.PUSHER.keys()
