"""One embedded service for all end-to-end tests, as `qe serve` starts it, with a folder of local models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from demo.model import make_qwen2_vl
from demo.rows import write_jsonl
from demo.service import Service, running_service
from tests.collector import Collector, running_collector

OPTIONS = {"group_size": 32, "shared_rank": 4, "routed_rank": 4, "experts": 2, "important_channels": 4, "samples": 8}


@dataclass(frozen=True)
class Site:
    """A running service, the folder below which it finds ``local/…`` models, and calibration rows."""

    service: Service
    models: Path
    rows: Path
    collector: Collector
    """To which all of the service sends its spans."""


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("e2e")
    (directory / "models").mkdir()
    make_qwen2_vl(directory / "models" / "tiny", hidden=64, blocks=2, intermediate=96, vision_depth=1, vision_width=32)
    rows = directory / "rows.jsonl"
    write_jsonl(rows, 8)
    with running_collector() as collector, ExitStack() as running:
        with pytest.MonkeyPatch.context() as patch:  # for the service alone: it stays up while other files are tested
            for name, value in collector.environment.items():
                patch.setenv(name, value)
            service = running.enter_context(running_service(directory))
        yield Site(service, directory / "models", rows, collector)


@pytest.fixture(scope="session")
def dataset(site: Site) -> str:
    """The id of an uploaded dataset of eight rows."""
    return str(site.service.upload(site.rows)["id"])
