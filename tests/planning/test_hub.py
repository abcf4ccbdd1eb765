"""Headers from a hub: at a pinned commit, by ranges, within a time; the client is the real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from quant_experts.planning.errors import HubUnavailable, Unreadable
from quant_experts.planning.hub import read_hub, resolve_dataset
from quant_experts.planning.local import read_local
from tests.models import make_model
from tests.planning.big import write_72b
from tests.planning.directory_hub import DirectoryHub, directory_hub
from tests.quant_experts.test_hub import COMMIT


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("models")
    return make_model("qwen2_vl", directory / "tiny"), write_72b(directory / "big")


@pytest.fixture
def hub(models: tuple[Path, Path]) -> Iterator[DirectoryHub]:
    tiny, big = models
    with directory_hub(**{"models/team/tiny": tiny, "models/team/big": big, "datasets/team/rows": tiny}) as hub:
        yield hub


def test_a_hub_model_reads_as_the_same_model_on_disk(hub: DirectoryHub, models: tuple[Path, Path]) -> None:
    found, local = read_hub("team/tiny", revision="main", token=None, endpoint=hub.url), read_local(models[0])
    assert (found.commit, local.commit) == (COMMIT, None)
    assert (dict(found.tensors), found.config, found.processor) == (dict(local.tensors), local.config, local.processor)
    assert found.processor["size"]
    assert hub.tokens == {None}


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_of_145_gigabytes_only_the_headers_travel(hub: DirectoryHub, knows_ranges: bool) -> None:
    hub.knows_ranges = knows_ranges
    headers = read_hub("team/big", revision=None, token="hf_secret", endpoint=hub.url)
    assert headers.bytes > 140e9
    # A server that ignores the range is hung up on; what is under way then is in its buffers.
    assert hub.sent < headers.files * (200_000 if knows_ranges else 8_000_000)
    assert hub.tokens == {"Bearer hf_secret"}


@pytest.mark.parametrize(
    ("repository", "revision", "message", "pointer"),
    [
        ("team/absent", None, "is not on the hub", "/model/id"),
        ("team/tiny", "gone", "no such branch, tag or commit", "/model/revision"),
    ],
)
def test_what_is_not_there_is_said(
    hub: DirectoryHub, repository: str, revision: str | None, message: str, pointer: str
) -> None:
    with pytest.raises(Unreadable, match=message) as caught:
        read_hub(repository, revision=revision, token=None, endpoint=hub.url)
    assert (caught.value.refusal.code, caught.value.refusal.pointer) == ("model_not_found", pointer)


def test_a_hub_that_stalls_is_given_up(hub: DirectoryHub) -> None:
    hub.stalled.set()
    with pytest.raises(HubUnavailable):
        read_hub("team/tiny", revision=None, token=None, endpoint=hub.url, seconds=0.3)


def test_a_hub_out_of_reach_is_worth_a_retry() -> None:
    with pytest.raises(HubUnavailable):
        read_hub("team/tiny", revision=None, token=None, endpoint="http://127.0.0.1:9", seconds=5)


def test_a_dataset_is_resolved_to_its_commit(hub: DirectoryHub) -> None:
    assert resolve_dataset("team/rows", token=None, endpoint=hub.url) == COMMIT
    with pytest.raises(Unreadable, match="is not on the hub") as caught:
        resolve_dataset("team/absent", token=None, endpoint=hub.url)
    assert caught.value.refusal.code == "dataset_not_found"
