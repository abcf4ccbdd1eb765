"""The Hub protocol, as stock clients speak it and as it is on the wire."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.app.conftest import BOOTSTRAP_KEY, Api, ok, problem, served
from tests.hub_client import HubClient

WEIGHTS = random.Random(0).randbytes(3_000_001)
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": WEIGHTS,
    "templates/deep/chat.jinja": b"{{ messages }}",
    "templates/tool.jinja": b"{{ tools }}",
}


async def finished(api: Api, tmp_path: Path, files: dict[str, bytes] = FILES, **spec: Any) -> str:
    job_id: str = (await api.create_job(**spec))["id"]
    api.start(job_id)
    for name, content in files.items():
        api.publish(job_id, name, content, tmp_path)
    api.end(job_id, "succeeded")
    return job_id


async def key_of(api: Api, **body: Any) -> str:
    return str(ok(await api.client.post("/v1/keys", json={"name": "x", "scopes": ["jobs:read"], **body}), 201)["key"])


@dataclass(frozen=True)
class Hub:
    """A finished job behind a real socket, and clients of it."""

    api: Api
    wire: httpx.AsyncClient
    job_id: str
    home: Path

    @property
    def repository(self) -> str:
        return f"qe/{self.job_id}"

    def client(self, token: str | None = BOOTSTRAP_KEY, home: str = "home") -> HubClient:
        return HubClient(str(self.wire.base_url.join("/hub")), token, self.home / home)

    async def python(self, source: str, *, token: str | None = BOOTSTRAP_KEY, **values: Any) -> Any:
        """Every token has a cache of its own: what one client has downloaded it does not ask for again."""
        client = self.client(token, home=f"home-{token}")
        return await asyncio.to_thread(client.python, source, **values)

    async def sha(self, repository: str | None = None) -> str:
        return str(ok(await self.wire.get(f"/hub/api/models/{repository or self.repository}"))["sha"])


@pytest.fixture
async def hub(api: Api, tmp_path: Path) -> AsyncIterator[Hub]:
    job_id = await finished(api, tmp_path, alias="team/tiny-w4a6")
    async with served(api) as wire:
        yield Hub(api, wire, job_id, tmp_path)


async def test_the_stock_client_reads_everything_about_a_job(hub: Hub) -> None:
    answer = await hub.python(
        """
        from huggingface_hub import HfApi
        api = HfApi()
        info = api.model_info(repo, files_metadata=True)
        tree = list(api.list_repo_tree(repo, recursive=True, expand=True))
        refs = api.list_repo_refs(repo)
        paths = api.get_paths_info(repo, ["config.json", "templates", "absent"])
        answer = {
            "id": info.id, "sha": info.sha, "private": info.private, "base": info.card_data.base_model,
            "siblings": {s.rfilename: [s.size, s.lfs.sha256] for s in info.siblings},
            "files": api.list_repo_files(repo),
            "at the commit": api.model_info(repo, revision=info.sha).sha,
            "root": [type(e).__name__ + " " + e.path for e in api.list_repo_tree(repo)],
            "folder": [e.path for e in api.list_repo_tree(repo, "templates")],
            "all": [e.path for e in tree], "last": tree[0].last_commit.oid,
            "repos": [api.repo_exists(repo), api.repo_exists("qe/job_" + "0" * 32)],
            "file exists": [api.file_exists(repo, "config.json"), api.file_exists(repo, "x")],
            "revisions": [api.revision_exists(repo, info.sha), api.revision_exists(repo, "v9")],
            "paths": [p.path for p in paths],
            "branch": [refs.branches[0].name, refs.branches[0].target_commit], "tags": [t.name for t in refs.tags],
            "commits": [c.commit_id for c in api.list_repo_commits(repo)],
            "whoami": api.whoami()["name"],
        }
        """,
        repo=hub.repository,
    )
    sha = answer["sha"]
    assert answer == {
        "id": hub.repository,
        "sha": await hub.sha(),
        "private": True,
        "base": "acme/tiny-vl",
        "siblings": {name: [len(data), hashlib.sha256(data).hexdigest()] for name, data in FILES.items()},
        "files": sorted(FILES),
        "at the commit": sha,
        "root": ["RepoFile config.json", "RepoFile model.safetensors", "RepoFolder templates"],
        "folder": ["templates/deep", "templates/tool.jinja"],
        "all": sorted([*FILES, "templates", "templates/deep"]),
        "last": sha,
        "repos": [True, False],
        "file exists": [True, False],
        "revisions": [True, False],
        "paths": ["config.json", "templates"],
        "branch": ["main", sha],
        "tags": [hub.job_id],
        "commits": [sha],
        "whoami": "default",
    }


async def test_an_export_is_a_revision_with_its_own_files(hub: Hub, tmp_path: Path) -> None:
    exported = {"config.json": b"{}", "model.safetensors": b"plain"}
    files = FILES | {f"exports/dequantized/{name}": content for name, content in exported.items()}
    repository = f"qe/{await finished(hub.api, tmp_path, files)}"
    answer = await hub.python(
        """
        from pathlib import Path
        from huggingface_hub import HfApi, snapshot_download
        api = HfApi()
        def content(revision):
            folder = Path(snapshot_download(repo, revision=revision))
            files = {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
            return {"files": files, "commit": folder.name == api.model_info(repo, revision=revision).sha}
        answer = {
            "main": content("main"), "export": content("dequantized"),
            "branches": [branch.name for branch in api.list_repo_refs(repo).branches],
            "without": [api.revision_exists(repo, "compressed-tensors"), api.revision_exists(plain, "dequantized")],
        }
        """,
        repo=repository,
        plain=hub.repository,
    )
    assert answer == {
        "main": {"files": {name: len(content) for name, content in FILES.items()}, "commit": True},
        "export": {"files": {name: len(content) for name, content in exported.items()}, "commit": True},
        "branches": ["main", "dequantized"],
        "without": [False, False],
    }


async def test_a_job_whose_files_were_deleted_says_so(hub: Hub) -> None:
    deleted = await hub.wire.delete(f"/v1/jobs/{hub.job_id}/artifacts")
    assert deleted.status_code == 204
    answer = await hub.wire.get(f"/hub/api/models/{hub.repository}")
    assert (answer.status_code, answer.headers["X-Error-Code"]) == (404, "RepoNotFound")
    assert "has no files any more" in answer.headers["X-Error-Message"]


async def test_a_snapshot_is_the_files_under_their_commit_and_verifies(hub: Hub) -> None:
    answer = await hub.python(
        """
        from pathlib import Path
        from huggingface_hub import HfApi, hf_hub_download, snapshot_download
        folder = Path(snapshot_download(repo))
        one = Path(hf_hub_download(repo, "templates/tool.jinja", revision=folder.name, local_dir="here"))
        check = HfApi().verify_repo_checksums(repo)
        answer = {
            "commit": folder.name,
            "files": {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()},
            "blobs": sorted(p.name for p in (folder.parent.parent / "blobs").iterdir()),
            "one": one.read_text(),
            "verified": [check.checked_count, check.mismatches, check.missing_paths, check.extra_paths],
        }
        """,
        repo=hub.repository,
    )
    assert answer["commit"] == await hub.sha()
    assert answer["files"] == {name: len(data) for name, data in FILES.items()}
    assert answer["blobs"] == sorted(hashlib.sha256(data).hexdigest() for data in FILES.values())
    assert answer["one"] == "{{ tools }}"
    assert answer["verified"] == [len(FILES), [], [], []]


async def test_hf_download_by_alias_brings_what_the_pattern_asks_for(hub: Hub) -> None:
    target = hub.home / "here"
    arguments = ("download", "team/tiny-w4a6", "--include", "*.safetensors", "--local-dir", str(target))
    await asyncio.to_thread(hub.client().hf, *arguments)
    assert (target / "model.safetensors").read_bytes() == WEIGHTS
    assert not (target / "config.json").exists()


async def test_a_download_that_broke_off_is_resumed_by_range(hub: Hub) -> None:
    answer = await hub.python(
        """
        import hashlib, huggingface_hub.file_download as download
        from pathlib import Path
        real, asked = download.http_get, []
        def half(url, temp_file, *, resume_size=0, **more):
            temp_file.write(Path(part).read_bytes())
            asked.append(temp_file.tell())
            return real(url, temp_file, resume_size=temp_file.tell(), **more)
        download.http_get = half
        path = download.hf_hub_download(repo, "model.safetensors")
        answer = [asked, hashlib.sha256(Path(path).read_bytes()).hexdigest()]
        """,
        repo=hub.repository,
        part=str(_file(hub.home / "half", WEIGHTS[:1_234_567])),
    )
    assert answer == [[1_234_567], hashlib.sha256(WEIGHTS).hexdigest()]
    metrics = (await hub.wire.get("/metrics")).text
    resolve = 'route="/hub/{namespace}/{name}/resolve/{revision}/{path:path}"'
    assert f'qe_http_requests_total{{method="GET",{resolve},status="206"}} 1.0' in metrics


async def test_what_is_missing_is_told_apart_as_the_client_knows_it(hub: Hub) -> None:
    stranger = await key_of(hub.api, tenant="other")
    source = """
        from huggingface_hub import HfApi, hf_hub_download, snapshot_download
        def name_of(call):
            try:
                return repr(call())
            except Exception as error:
                return type(error).__name__
        answer = [
            name_of(lambda: HfApi().model_info(repo)),
            name_of(lambda: hf_hub_download(repo, "config.json")),
            name_of(lambda: snapshot_download(repo)),
            name_of(lambda: hf_hub_download(repo, "absent.json")),
            name_of(lambda: hf_hub_download(repo, "config.json", revision="v9")),
        ]
        """
    mine = await hub.python(source, repo=hub.repository)
    assert mine[3:] == ["RemoteEntryNotFoundError", "RevisionNotFoundError"]
    assert await hub.python(source, repo=hub.repository, token=stranger) == ["RepositoryNotFoundError"] * 5
    assert await hub.python(source, repo="team/tiny-w4a6", token=stranger) == ["RepositoryNotFoundError"] * 5


async def test_a_missing_file_is_remembered_by_its_commit(hub: Hub) -> None:
    response = await hub.wire.head(f"/hub/{hub.repository}/resolve/main/processor_config.json")
    assert response.status_code == 404
    assert response.headers["x-error-code"] == "EntryNotFound"
    assert response.headers["x-repo-commit"] == await hub.sha()


@pytest.mark.parametrize(
    ("headers", "status", "code", "words"),
    [
        ({"Authorization": ""}, 401, "RepoNotFound", "HF_TOKEN"),
        ({"Authorization": "Bearer hf_wrong"}, 401, None, "Invalid credentials in Authorization header"),
    ],
)
async def test_a_token_that_is_none_is_said_in_the_clients_words(
    hub: Hub, headers: dict[str, str], status: int, code: str | None, words: str
) -> None:
    response = await hub.wire.get(f"/hub/api/models/{hub.repository}", headers=headers)
    assert (response.status_code, response.headers.get("x-error-code")) == (status, code)
    assert words in response.headers["x-error-message"]


async def test_a_key_without_the_scope_is_told_so(hub: Hub) -> None:
    key = await key_of(hub.api, scopes=["datasets:read"])
    response = await hub.wire.get(f"/hub/api/models/{hub.repository}", headers={"Authorization": f"Bearer {key}"})
    problem(response, 403, "missing-scope")
    assert "jobs:read" in response.headers["x-error-message"]


async def test_a_file_has_the_headers_of_the_protocol(hub: Hub) -> None:
    url = f"/hub/{hub.repository}/resolve/main/model.safetensors"
    head = await hub.wire.head(url)
    digest, sha = hashlib.sha256(WEIGHTS).hexdigest(), await hub.sha()
    assert head.status_code == 200
    assert head.headers["x-repo-commit"] == sha
    assert head.headers["etag"] == head.headers["x-linked-etag"] == f'"{digest}"'
    assert head.headers["x-linked-size"] == head.headers["content-length"] == str(len(WEIGHTS))
    assert "immutable" not in head.headers["cache-control"]
    assert "immutable" in (await hub.wire.head(url.replace("main", sha))).headers["cache-control"]
    part = await hub.wire.get(url, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, WEIGHTS[10:20])
    assert (await hub.wire.get(url, headers={"If-None-Match": head.headers["etag"]})).status_code == 304
    problem(await hub.wire.get(url, headers={"Range": "bytes=9999999-"}), 416, "range-not-satisfiable")


async def test_an_alias_follows_its_newest_job_and_keeps_the_older_commits(hub: Hub) -> None:
    first = await hub.sha("team/tiny-w4a6")
    newer = await finished(hub.api, hub.home, {"config.json": b"{}"}, alias="team/tiny-w4a6")
    second = await hub.sha("team/tiny-w4a6")
    assert first == await hub.sha() != second == await hub.sha(f"qe/{newer}")
    refs = ok(await hub.wire.get("/hub/api/models/team/tiny-w4a6/refs"))
    assert [tag["name"] for tag in refs["tags"]] == [newer, hub.job_id]
    for revision, content in (("main", b"{}"), (first, FILES["config.json"]), (hub.job_id, FILES["config.json"])):
        response = await hub.wire.get(f"/hub/team/tiny-w4a6/resolve/{revision}/config.json")
        assert response.content == content
    history = ok(await hub.wire.get(f"/hub/api/models/team/tiny-w4a6/commits/{first}"))
    assert [commit["id"] for commit in history] == [first]
    found = ok(await hub.wire.get("/v1/jobs", params={"alias": "team/tiny-w4a6"}))["data"]
    assert [job["id"] for job in found] == [newer, hub.job_id]


async def test_a_rejected_or_unfinished_job_does_not_move_the_alias(hub: Hub) -> None:
    before = await hub.sha("team/tiny-w4a6")
    rejected = await finished(hub.api, hub.home, {"a": b"1"}, alias="team/tiny-w4a6", accept_if={"max_kl": 0.1})
    hub.api.execute("UPDATE jobs SET verdict = 'rejected' WHERE id = %s", [rejected])
    running = (await hub.api.create_job(alias="team/tiny-w4a6"))["id"]
    hub.api.start(running)
    assert await hub.sha("team/tiny-w4a6") == before
    assert await hub.sha(f"qe/{rejected}")
    response = await hub.wire.get(f"/hub/api/models/qe/{running}")
    problem(response, 404, "not-found")
    assert response.headers["x-error-code"] == "RepoNotFound"
    assert f"{running} is running" in response.headers["x-error-message"]


async def test_two_tenants_may_have_the_same_alias(hub: Hub) -> None:
    key = await key_of(hub.api, tenant="other", scopes=["jobs:read", "jobs:write"])
    async with hub.api.as_key(key) as other:
        body = {"model": {"id": "acme/x"}, "calibration": {"dataset": "acme/rows"}, "scheme": "W4A8"}
        theirs = ok(await other.post("/v1/jobs", json={**body, "alias": "team/tiny-w4a6"}), 201)["id"]
        hub.api.start(theirs)
        hub.api.publish(theirs, "theirs.json", b"{}", hub.home)
        hub.api.end(theirs, "succeeded")
        siblings = ok(await other.get("/hub/api/models/team/tiny-w4a6"))["siblings"]
    assert [sibling["rfilename"] for sibling in siblings] == ["theirs.json"]
    assert await hub.sha("team/tiny-w4a6") == await hub.sha()


async def test_a_commit_is_named_by_the_files_alone(hub: Hub) -> None:
    again = await finished(hub.api, hub.home, dict(reversed(FILES.items())))
    other = await finished(hub.api, hub.home, {**FILES, "config.json": b"{}"})
    assert await hub.sha(f"qe/{again}") == await hub.sha() != await hub.sha(f"qe/{other}")
    lines = "\n".join(f"{name} {len(FILES[name])} {hashlib.sha256(FILES[name]).hexdigest()}" for name in sorted(FILES))
    assert await hub.sha() == hashlib.sha256(lines.encode()).hexdigest()[:40]


@pytest.mark.parametrize(
    ("alias", "words"),
    [
        ("qe/mine", "reserved"),
        ("API/x", "reserved"),
        ("team/a--b", "'--'"),
        ("team/a..b", "'..'"),
        ("team/a.git", "'.git'"),
        ("team", "write team/name"),
        ("team/model/x", "write team/name"),
        ("-team/x", "write team/name"),
        ("team/x.", "write team/name"),
        ("team/" + "x" * 92, "96"),
    ],
)
async def test_an_alias_that_no_client_could_ask_for_is_refused(api: Api, alias: str, words: str) -> None:
    body = {"model": {"id": "acme/x"}, "calibration": {"dataset": "acme/rows"}, "scheme": "W4A8", "alias": alias}
    refused = problem(await api.client.post("/v1/jobs", json=body), 422, "invalid-request")
    assert refused["errors"][0]["pointer"] == "/alias"
    assert words in refused["errors"][0]["detail"]


@pytest.mark.parametrize(
    "path",
    [
        "/hub/api/models/qe/job_x",
        "/hub/api/models/a%00b/c",
        "/hub/api/models/%C3%BC/%F0%9F%98%80",
        "/hub/api/models/x%0d%0aSet-Cookie:a/y",
        "/hub/{repo}/resolve/main/..%2f..%2fetc%2fpasswd",
        "/hub/{repo}/resolve/main/%0d%0aX: y",
        "/hub/{repo}/resolve/%00/config.json",
        "/hub/api/models/{repo}/tree/main/%ff%00",
        "/hub/api/datasets/{repo}",
        "/hub/api/agent-harnesses",
    ],
)
async def test_odd_names_are_only_names_that_are_not_there(hub: Hub, path: str) -> None:
    response = await hub.wire.get(path.format(repo=hub.repository))
    problem(response, 404, "not-found")
    assert "set-cookie" not in response.headers


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"["),
        ("application/json", b'{"paths": "config.json"}'),
        ("application/json", b'{"paths": [1]}'),
        ("application/json", b"[1]"),
        ("application/json", b"[" * 100_000),
        ("application/x-www-form-urlencoded", b"expand=true"),
        ("application/x-www-form-urlencoded", b"paths=\xff"),
        ("application/x-www-form-urlencoded", b"paths=x&" * 2000),
    ],
)
async def test_paths_that_are_none_are_refused(hub: Hub, content_type: str, body: bytes) -> None:
    url = f"/hub/api/models/{hub.repository}/paths-info/main"
    response = await hub.wire.post(url, content=body, headers={"Content-Type": content_type})
    problem(response, 400, "malformed-request")


async def test_paths_may_come_as_json(hub: Hub) -> None:
    url = f"/hub/api/models/{hub.repository}/paths-info/main"
    (entry,) = ok(await hub.wire.post(url, json={"paths": ["config.json"], "expand": True}))
    assert (entry["path"], entry["lastCommit"]["id"]) == ("config.json", await hub.sha())


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
