"""One tenant's things do not exist for another: on every route, in every query, and in the database itself."""

from __future__ import annotations

import ast
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import func, select

import app
from app.access.auth import Scope
from app.db.engine import tenant_session
from core.ledger.tables import Base, Job
from tests.app.conftest import Api, job_body, ok, problem
from tests.app.tenant_cases import COMPARISON, CREATES, LISTS, OBJECTS, Owned
from tests.services import Postgres, migrate

SOURCES = Path(app.__file__).parent
FILES = {"config.json": b"{}", "templates/chat.jinja": b"x", "quality_report.json": b"{}"}


@pytest.fixture
async def mine(api: Api, tmp_path: Path) -> Owned:
    """One of everything, of the bootstrap key's tenant."""
    dataset = ok(await api.client.post("/v1/datasets", **CREATES["POST /v1/datasets"]), 201)["id"]
    job: str = (await api.create_job(calibration={"dataset": dataset}))["id"]
    api.start(job)
    for name, content in FILES.items():
        api.publish(job, name, content, tmp_path)
    api.end(job, "succeeded")
    key = ok(await api.client.post("/v1/keys", json={"name": "k", "scopes": ["jobs:read"]}), 201)["id"]
    api.execute("INSERT INTO workers (id, host, device, job_id) VALUES ('w1', 'h', 'cpu', %s)", [job])
    webhook = ok(await api.client.post("/v1/webhooks", **CREATES["POST /v1/webhooks"]), 201)["id"]
    delivery = ok(await api.client.post(f"/v1/webhooks/{webhook}/ping"), 202)["id"]
    upload = ok(await api.client.post("/v1/datasets/uploads", **CREATES["POST /v1/datasets/uploads"]), 201)["id"]
    comparison = "cmp_" + "0" * 32  # without jobs, so that there is one job
    statement = "INSERT INTO comparisons (id, tenant, request) VALUES (%s, 'default', %s)"
    api.execute(statement, [comparison, json.dumps(COMPARISON)])
    plan = ok(await api.client.post("/v1/jobs:plan", **CREATES["POST /v1/jobs:plan"]))["digest"]
    push = "push_" + "0" * 32
    statement = (
        "INSERT INTO pushes (id, tenant, job_id, destination, status) VALUES (%s, 'default', %s, 'hub:a/b', 'waiting')"
    )
    api.execute(statement, [push, job])
    return Owned(
        push_id=push,
        job_id=job,
        dataset_id=dataset,
        key_id=key,
        webhook_id=webhook,
        delivery_id=delivery,
        upload_id=upload,
        comparison_id=comparison,
        digest=plan,
    )


async def key_of_another_tenant(api: Api) -> str:
    wanted = {"name": "theirs", "scopes": list(Scope), "tenant": "acme"}
    return str(ok(await api.client.post("/v1/keys", json=wanted), 201)["key"])


@pytest.mark.parametrize("route", OBJECTS)
async def test_a_thing_is_there_for_its_tenant_and_404_for_another(api: Api, mine: Owned, route: str) -> None:
    method = route.partition(" ")[0]
    path = mine.path(route, OBJECTS[route])
    body = {name: value for name, value in OBJECTS[route].items() if name in ("json", "files", "content")}
    async with api.as_key(await key_of_another_tenant(api)) as theirs:
        response = await theirs.request(method, path, **body)
        if method == "HEAD":
            assert response.status_code == 404
        else:
            problem(response, 404, "not-found")
    assert (await api.client.request(method, path, **body)).status_code != 404


@pytest.mark.parametrize("route", LISTS)
async def test_a_list_shows_nothing_of_another_tenant(api: Api, mine: Owned, route: str) -> None:
    async with api.as_key(await key_of_another_tenant(api)) as theirs:
        path = route.partition(" ")[2]
        for client, sees in ((api.client, True), (theirs, False)):
            text = (await client.get(path)).raise_for_status().text
            assert any(value in text for value in vars(mine).values()) == sees


async def test_a_job_cannot_name_another_tenants_dataset(api: Api, mine: Owned) -> None:
    async with api.as_key(await key_of_another_tenant(api)) as theirs:
        response = await theirs.post("/v1/jobs", json=job_body(calibration={"dataset": mine.dataset_id}))
        problem(response, 422, "dataset-not-found")


# -- the database itself ----------------------------------------------------------------------------------------------

TENANTS_TABLES = {
    name
    for name, table in Base.metadata.tables.items()
    if "tenant" in table.columns or any(key.column.table.name == "jobs" for key in table.foreign_keys)
}


async def test_a_query_that_forgets_the_tenant_finds_nothing_of_another(api: Api, mine: Owned) -> None:
    for tenant, found in (("default", [mine.job_id]), ("acme", []), ("", [])):
        async with tenant_session(api.service.sessions, lambda tenant=tenant: tenant) as session:  # type: ignore[misc]
            assert list(await session.scalars(select(Job.id))) == found, tenant
            for table in sorted(TENANTS_TABLES):
                rows = (await session.execute(select(Base.metadata.tables[table]))).all()
                assert not rows or tenant == "default", (table, tenant)


@pytest.mark.parametrize("tenant", ["it's", "a%sb", "a\\b", "'; ROLLBACK; --"])
async def test_a_tenants_name_is_taken_to_the_letter(api: Api, tenant: str) -> None:
    async with tenant_session(api.service.sessions, lambda: tenant) as session:
        assert await session.scalar(select(func.current_setting("app.tenant"))) == tenant


async def test_nobody_can_write_into_another_tenant(api: Api, mine: Owned) -> None:
    statements = (
        f"UPDATE jobs SET name = 'x' WHERE id = '{mine.job_id}'",
        f"DELETE FROM datasets WHERE id = '{mine.dataset_id}'",
    )
    async with tenant_session(api.service.sessions, lambda: "acme") as session:
        connection = await session.connection()
        for statement in statements:
            assert (await connection.exec_driver_sql(statement)).rowcount == 0
        with pytest.raises(Exception, match="row-level security"):
            await connection.exec_driver_sql(
                f"INSERT INTO events (job_id, seq, type) VALUES ('{mine.job_id}', 99, 'job.warning')"
            )


async def test_the_wall_stands_for_one_transaction_and_leaves_nothing_on_a_pooled_connection(api: Api) -> None:
    who = "SELECT current_user, current_setting('app.tenant', true)"
    async with tenant_session(api.service.sessions, lambda: "acme") as session:
        for _ in range(2):  # also in the transaction after a commit
            connection = await session.connection()
            assert (await connection.exec_driver_sql(who)).one() == ("qe_api", "acme")
            await session.commit()
    async with api.service.sessions() as session:
        assert (await (await session.connection()).exec_driver_sql(who)).one() == ("postgres", "")


def test_every_table_of_a_tenant_has_its_policy(database_url: str) -> None:
    """A new table needs in its migration: ALTER TABLE t ENABLE ROW LEVEL SECURITY, and
    CREATE POLICY tenant ON t TO qe_api USING (tenant = current_setting('app.tenant', true)).
    """
    with psycopg.connect(database_url) as connection:
        walled = connection.execute(
            "SELECT relname FROM pg_class JOIN pg_policy ON polrelid = pg_class.oid WHERE relrowsecurity"
            " AND polroles = ARRAY['qe_api'::regrole::oid] AND polcmd = '*' AND polpermissive"
        ).fetchall()
    assert {name for (name,) in walled} == TENANTS_TABLES
    assert set(Base.metadata.tables) - TENANTS_TABLES == {"workers", "service_secret"}, (
        "whose is the new table? Say it here"
    )


@pytest.fixture
def plain_owner(postgres: Postgres, empty_database_url: str) -> Iterator[str]:
    """The URL of the empty database for a login that owns it and may make roles."""
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as admin:
        database = psycopg.conninfo.conninfo_to_dict(empty_database_url)["dbname"]
        admin.execute("CREATE ROLE deployer LOGIN")
        admin.execute(f"ALTER DATABASE {database} OWNER TO deployer".encode())
        yield empty_database_url.replace("//postgres@", "//deployer@")
        admin.execute(f"ALTER DATABASE {database} OWNER TO postgres".encode())
        with psycopg.connect(empty_database_url, autocommit=True) as inside:
            inside.execute("DROP OWNED BY deployer CASCADE")
        admin.execute("DROP ROLE deployer")


def test_an_owner_without_the_right_is_told_what_to_ask_for_and_then_needs_no_more(
    postgres: Postgres, plain_owner: str
) -> None:
    with pytest.raises(Exception, match=r"GRANT qe_api TO deployer; then migrate again"):
        migrate(plain_owner)
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as admin:
        admin.execute("GRANT qe_api TO deployer")
    migrate(plain_owner)
    with psycopg.connect(plain_owner) as connection:
        connection.execute("SELECT set_config('role', 'qe_api', true)")
        assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (0,)


# -- the code ---------------------------------------------------------------------------------------------------------

VERBS = {"select", "update", "delete", "insert", "exists", "aliased", "get", "get_one", "select_from", "from_statement"}
EXCEPTIONS = {
    "access/auth.py identify_digest": "finds the key by its digest, before anybody's tenant is known",
    "access/auth.py is_valid": "looks at the caller's own key again",
    "access/auth.py _touch": "says of the key that was found that it was used",
    "audit/service.py NOTE": "writes the actor's tenant",
    "web/idempotency.py STORE": "writes the caller's tenant",
    "jobs/creation.py FIRST_EVENT": "of the job that was made just before it",
    "pushes/service.py ADD": "writes the actor's tenant",
    "plans/service.py store_plan": "writes the caller's tenant",
    "hub/queries.py _sha_of_files": "correlated to the jobs of the query around it, which is the tenant's",
    "system/queries.py workers_seen": "every worker; joins the tenant's jobs only",
    "system/queries.py unfinished_jobs": "sums over all tenants",
    "system/queries.py oldest_queued_seconds": "sums over all tenants",
}
MODELS = {
    mapper.class_.__name__
    for mapper in Base.registry.mappers
    if mapper.local_table.name in TENANTS_TABLES  # type: ignore[attr-defined]
}


def chain(call: ast.Call) -> Iterator[str]:
    """The names of the calls that ``select(x).where(y).limit(z)`` consists of."""
    node: ast.AST = call
    while isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        yield name
        node = node.func.value if isinstance(node.func, ast.Attribute) else node.func


def queries_without_tenancy(source: str) -> list[tuple[str, int]]:
    """(function or constant, line) of every query of a tenant's table that does not go through ``app.db.tenancy``."""
    tree = ast.parse(source)
    called = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name in MODELS
    }
    called |= MODELS
    found = []

    def look(node: ast.AST, function: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        elif isinstance(node, ast.Assign) and not function and isinstance(node.targets[0], ast.Name):
            function = node.targets[0].id  # a statement that is kept under a name
        if isinstance(node, ast.Call) and VERBS & set(chain(node)):
            named = {
                getattr(inner, "id", None) or getattr(inner, "attr", None)
                for inner in ast.walk(node)
                if isinstance(inner, ast.Name | ast.Attribute)
            }
            if named & called:
                found.append((function, node.lineno))
                return
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = node.value.replace("\n", " ").split(" ")
            pairs = set(itertools.pairwise(words))
            if pairs & {(verb, table) for verb in ("FROM", "INTO", "UPDATE", "JOIN") for table in TENANTS_TABLES}:
                found.append((function, node.lineno))
        for child in ast.iter_child_nodes(node):
            look(child, function)

    look(tree, "")
    return found


def test_every_query_of_a_tenants_table_goes_through_tenancy() -> None:
    found, used = [], set()
    for path in sorted(SOURCES.rglob("*.py")):
        name = path.relative_to(SOURCES).as_posix()
        for function, line in queries_without_tenancy(path.read_text()):
            excused = {f"{name} {function}"} & set(EXCEPTIONS)
            used |= excused
            if not excused and not name.startswith("contract/"):
                found.append(f"app/{name}:{line} in {function}: start the query with app.db.tenancy.owned or of_job")
    assert not found, "\n".join(found)
    assert used == set(EXCEPTIONS), f"exceptions that nothing needs: {set(EXCEPTIONS) - used}"


@pytest.mark.parametrize(
    "source",
    [
        "from core.ledger.tables import Job\nselect(Job).where(Job.id == 1)",
        "from core.ledger.tables import Job as J\nselect(J.id)",
        "from core.ledger import tables\nsession.execute(sa.delete(tables.Dataset))",
        "await session.get(Artifact, key)",
        "select(func.count()).select_from(FinishedBlock)",
        "mine = aliased(Job)",
        "select(func.max(age)).where(Job.status == 'queued')",
        'session.execute(text("SELECT id FROM jobs"))',
    ],
)
def test_the_lint_sees_a_query_without_tenancy(source: str) -> None:
    assert queries_without_tenancy(source)


@pytest.mark.parametrize("source", ["owned(Job, tenant).where(Job.id == 1)", "select(Worker)", "'rows FROM people'"])
def test_the_lint_lets_others_pass(source: str) -> None:
    assert not queries_without_tenancy(source)
