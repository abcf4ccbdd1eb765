"""The workshop of the worker's tests, with the real runner and a small real model."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from demo.model import make_qwen2_vl
from demo.rows import write_jsonl
from tests.worker.conftest import TENANT, Workshop, workshop  # noqa: F401 -- a fixture

BLOCKS = 3
OPTIONS = {"group_size": 32, "shared_rank": 4, "routed_rank": 4, "experts": 2, "important_channels": 4, "samples": 6}


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "small"
    make_qwen2_vl(directory, hidden=64, blocks=BLOCKS, intermediate=96, vision_depth=1, vision_width=32)
    return directory


@pytest.fixture
def foundry(workshop: Workshop, small_model: Path) -> Workshop:  # noqa: F811
    """A workshop that quantizes for real: ``add_real_job`` queues the same small job each time."""
    shutil.copytree(small_model, (workshop.settings.model_root or Path()) / "small")
    return workshop


def add_real_dataset(workshop: Workshop) -> str:  # noqa: F811
    rows = workshop.stage / "real.jsonl"
    write_jsonl(rows, 8)
    content = rows.read_bytes()
    workshop.storage.put("datasets/ds_real", rows)
    with workshop.connect() as connection:
        connection.execute(
            "INSERT INTO datasets (id, tenant, format, status, bytes, sha256, key, rows, images)"
            " VALUES ('ds_real', %s, 'jsonl', 'ready', %s, %s, 'datasets/ds_real', 8, 8)",
            (TENANT, len(content), hashlib.sha256(content).hexdigest()),
        )
    return "ds_real"
