"""``qe usage`` and ``qe keys`` against the real API."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from quant_experts.client import Client, Forbidden
from tests.app.conftest import Api
from tests.app.cutting import Cuts
from tests.app.test_client import run
from tests.app.test_client_cli import Qe, network, qe, submitted  # noqa: F401 -- fixtures


async def test_usage_is_a_table_with_its_sums_and_the_limits(qe: Qe, api: Api) -> None:  # noqa: F811
    done, _ = await submitted(qe), await submitted(qe)
    api.start(done)
    api.execute(
        "INSERT INTO attempts (job_id, attempt, worker, device, started_at, ended_at) VALUES"
        " (%s, 1, 'w', 'NVIDIA H100', this_month, this_month + interval '3725 seconds')".replace(
            "this_month", "date_trunc('month', clock_timestamp())"
        ),
        [done],
    )
    api.execute("UPDATE jobs SET artifact_bytes = 2500000 WHERE id = %s", [done])
    api.end(done, "succeeded")
    api.execute("INSERT INTO tenant_limits (tenant, max_queued_jobs, max_running_jobs) VALUES ('default', 7, 3)")
    code, out, err = await qe("usage", "--by", "month")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].split() == [
        "month", "created", "succeeded", "failed", "cancelled", "workers", "h:m:s", "GPUs", "h:m:s", "bytes", "added"
    ]  # fmt: skip
    month = datetime.now(UTC).strftime("%Y-%m")
    assert lines[-5].split() == [month, "2", "1", "0", "0", "1:02:05", "1:02:05", "2.38", "MiB"]
    assert lines[-4].split() == ["total", "2", "1", "0", "0", "1:02:05", "1:02:05", "2.38", "MiB"]
    assert lines[-3].startswith("stored: 2.38 MiB of 1 TiB ")
    assert lines[-2] == "jobs now: 1 of 7 queued, 0 of 3 running"
    assert json.loads((await qe("usage", "--by", "month", "--json"))[1])["by"] == "month"
    said = json.loads((await qe("usage", "--json"))[1])
    assert (said["by"], said["limits"]["running_jobs"], said["stored"]["total"]) == ("day", 3, 2_500_000)


async def test_usage_looks_at_the_span_that_is_asked_for(qe: Qe, network: Cuts) -> None:  # noqa: F811
    await submitted(qe)
    code, out, err = await qe("usage", "--since", "2024-01-01", "--until", "2024-03-01T12:00+02:00", "--json")
    assert code == 0, err
    said = json.loads(out)
    since, until = (datetime.fromisoformat(said[end]) for end in ("since", "until"))
    assert (since, until) == (datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 3, 1, 10, tzinfo=UTC))
    assert said["periods"] == []
    code, _, err = await qe("usage", "--since", "yesterday")
    assert (code, "write 2026-11-01" in err, err.count("\n")) == (2, True, 1)


async def test_keys_are_made_listed_rotated_and_revoked(qe: Qe, api: Api, network: Cuts) -> None:  # noqa: F811
    code, out, err = await qe("keys", "create", ":m:[red]", "--scope", "jobs:read", "--expires-in", "30")
    key_id, key = out.split()
    assert (code, key.startswith("qe_"), "not shown again" in err) == (0, True, True)
    days = api.execute("SELECT extract(day FROM expires_at - created_at) FROM api_keys")[0][0]
    assert days in (29, 30)
    code, out, err = await qe("keys", "rotate", key_id, "--keep", "60", "--json")
    assert code == 0, err
    new = json.loads(out)
    for each in (key, new["key"]):
        with Client(network.url, each) as client:
            assert await run(lambda client=client: list(client.jobs.list())) == []  # type: ignore[misc]
    code, out, _ = await qe("keys", "list")
    rows = [line.split() for line in out.splitlines()]
    assert [row[0] for row in rows] == ["key", new["id"], key_id]
    assert rows[2][1:4] == [":m:[red]", "valid", "until"]
    assert (await qe("keys", "revoke", key_id, new["id"]))[1] == f"{key_id} revoked\n{new['id']} revoked\n"
    listed = (await qe("keys", "list", "--json"))[1].splitlines()
    assert [json.loads(line)["revoked_at"] is None for line in listed] == [False, False]
    code, _, err = await qe("keys", "create", "x", "--scope", "jobs:fly")
    assert (code, "/scopes/0" in err) == (1, True)
    code, _, err = await qe("keys", "rotate", key_id)
    assert (code, "conflict" in err) == (1, True)


async def test_keys_of_another_tenant_are_the_bootstrap_keys_to_make(qe: Qe, network: Cuts) -> None:  # noqa: F811
    code, out, err = await qe("keys", "create", "theirs", "--scope", "keys:admin", "--tenant", "acme", "--json")
    assert code == 0, err
    made = json.loads(out)
    assert made["tenant"] == "acme"
    assert (await qe("keys", "list"))[1].count("\n") == 1
    assert [line.split()[0] for line in (await qe("keys", "list", "--tenant", "acme"))[1].splitlines()][1:] == [
        made["id"]
    ]
    assert (await qe("keys", "revoke", made["id"]))[0] == 1
    code, out, _ = await qe("keys", "rotate", made["id"], "--tenant", "acme", "--json")
    assert (code, json.loads(out)["tenant"]) == (0, "acme")
    with Client(network.url, json.loads(out)["key"]) as theirs:
        assert made["id"] in await run(lambda: [key.id for key in theirs.keys.list()])
        with pytest.raises(Forbidden):
            await run(lambda: list(theirs.keys.list(tenant="default")))
    assert (await qe("keys", "revoke", made["id"], "--tenant", "acme"))[1] == f"{made['id']} revoked\n"
