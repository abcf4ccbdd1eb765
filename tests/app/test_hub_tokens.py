"""A tenant's own hub token is kept sealed, shown to nobody, and used for that tenant alone."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest

from core.secret import HUB_TOKENS, Seal
from core.settings import Settings
from tests.app.conftest import Api, client_of, job_body, ok, problem, started
from tests.app.test_client_cli import Qe, network, qe  # noqa: F401 -- fixtures
from tests.app.test_keys import make_key
from tests.planning.big import write_72b
from tests.planning.directory_hub import directory_hub

TOKEN, ANOTHER = "hf_ofthetenant", "hf_another"
PLANNED = job_body(model={"id": "acme/big", "revision": "main"}, calibration={"dataset": "acme/rows"})


async def test_a_token_is_set_replaced_and_deleted_and_never_shown(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    assert ok(await api.client.get("/v1/hub-token")) == {"source": "none", "set_at": None}
    answers = [await api.client.put("/v1/hub-token", json={"token": token}) for token in (TOKEN, ANOTHER)]
    answers.append(await api.client.get("/v1/hub-token"))
    assert [ok(answer)["source"] for answer in answers] == ["tenant"] * 3
    ((tenant, sealed, _),) = api.execute("SELECT * FROM hub_tokens")
    assert Seal(str(api.settings.hub_key), purpose=HUB_TOKENS).open(sealed, row=tenant) == ANOTHER
    entries = ok(await api.client.get("/v1/audit"))["data"]
    assert [entry["action"] for entry in entries] == ["hub_token.set", "hub_token.set"]
    refused = await api.client.put("/v1/hub-token", json={"token": f"{TOKEN} with a space"})
    problem(refused, 422, "invalid-request")
    said = [answer.text for answer in [*answers, refused]] + [caplog.text, json.dumps(entries), sealed]
    assert not [text for text in said if TOKEN in text or ANOTHER in text]
    for _ in range(2):
        assert ok(await api.client.delete("/v1/hub-token"))["source"] == "none"
    assert len(ok(await api.client.get("/v1/audit"))["data"]) == 3


async def test_a_plan_asks_the_hub_with_the_token_of_its_tenant(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_72b(tmp_path / "big")
    async with started(settings.model_copy(update={"hub_token": "hf_ofall"})) as api:
        other = (await make_key(api, scopes=["jobs:write"], tenant="other"))["key"]
        ok(await api.client.put("/v1/hub-token", json={"token": TOKEN}))
        for client, token in ((api.client, TOKEN), (client_of(api.app, other), "hf_ofall")):
            with directory_hub(**dict.fromkeys(("models/acme/big", "datasets/acme/rows"), tmp_path / "big")) as hub:
                monkeypatch.setenv("HF_ENDPOINT", hub.url)
                ok(await client.post("/v1/jobs:plan", json=PLANNED))
            assert hub.tokens - {None} == {f"Bearer {token}"}  # the hub's client asks for other things without one


async def test_what_another_key_sealed_is_not_replaced_by_the_token_of_all(api: Api, settings: Settings) -> None:
    ok(await api.client.put("/v1/hub-token", json={"token": TOKEN}))
    for changed in ("k" * 33, None):
        async with started(settings.model_copy(update={"hub_token": "hf_ofall", "hub_key": changed})) as later:
            problem(await later.client.post("/v1/jobs:plan", json=PLANNED), 409, "hub-token-unreadable")
            if changed is None:
                problem(await later.client.put("/v1/hub-token", json={"token": TOKEN}), 409, "no-hub-tokens")


async def test_the_command_reads_the_token_from_stdin(
    qe: Qe,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{TOKEN}\n"))
    code, out, err = await qe("hub-token", "set")
    assert (code, out.startswith("your own, set "), TOKEN in out + err) == (0, True, False)
    assert (await qe("hub-token", "delete"))[1].startswith("none")
    assert (await qe("hub-token", "set"))[0] == 2
    assert json.loads((await qe("hub-token", "show", "--json"))[1]) == {"source": "none", "set_at": None}
