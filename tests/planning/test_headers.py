"""Reading headers: of 145 GB in a moment, of damaged files with one clear word, and never more than was announced."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from quant_experts.planning.errors import Unreadable
from quant_experts.planning.local import read_local
from quant_experts.planning.plan import make_plan
from quant_experts.planning.recipe import Recipe
from quant_experts.planning.rows import unknown_rows
from tests.planning.big import write_72b

TWO_SECONDS = 2.0


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_72b(tmp_path_factory.mktemp("models") / "qwen2-vl-72b")


def test_a_72b_model_is_planned_in_less_than_two_seconds(big: Path) -> None:
    held = sum(path.stat().st_size for path in big.iterdir())
    on_disk = sum(path.stat().st_blocks * 512 for path in big.iterdir())
    assert held > 140e9
    assert on_disk < 10e6
    began = time.process_time()
    headers = read_local(big)
    plan = make_plan(headers, Recipe.of("qe"), unknown_rows(vision=True), from_hub=False)
    assert time.process_time() - began < TWO_SECONDS
    assert len(plan.shapes.blocks) == 80
    # 80 x (8192 x (8192 + 2048) + 8192 x 8192 + 3 x 8192 x 29568), by hand
    assert plan.shapes.weights == 80 * (8192 * 10240 + 8192**2 + 3 * 8192 * 29568)
    assert plan.size.is_exact
    assert 40e9 < plan.size.bytes_after_most < 60e9
    assert 4.125 < plan.size.bits_most < 6
    # The walk holds a block, not the model.
    assert plan.placements["cuda"].memory.device < 80e9
    assert not plan.refusals


def test_planning_loads_neither_torch_nor_the_rest_of_the_library(big: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from quant_experts.planning import hub, local, plan, rows\n"
        "h = local.read_local(Path(sys.argv[1]))\n"
        "r = rows.unknown_rows(vision=True)\n"
        "plan.make_plan(h, plan.Recipe.of('qe'), r, from_hub=False)\n"
        "ours = {n for n in sys.modules if n.startswith('quant_experts.')}\n"
        "ours -= {n for n in ours if n.split('.')[1] in ('planning', 'spec')}\n"
        "print(sorted(ours | {n.split('.')[0] for n in sys.modules} & {'torch', 'transformers', 'app'}))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(big)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def header(described: Any, *, length: int | None = None) -> bytes:
    text = described if isinstance(described, bytes) else json.dumps(described).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def entry(**changes: Any) -> dict[str, Any]:
    return {"w": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8], **changes}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a safetensors file"),
        (b"1234567", "not a safetensors file"),
        (header(entry(), length=2**63), "not a safetensors file"),
        (header(entry(), length=30_000_000), "not a safetensors file"),
        (header(entry(), length=5000), "truncated within its header"),
        (header(b"[]"), "not a JSON object"),
        (header(b"{" * 1000), "cannot be read"),
        (header(b'{"a":' * 20_000), "cannot be read"),
        (header(b"\xff\xfe{}"), "cannot be read"),
        (header({"w": 3}), "not described as the safetensors format demands"),
        (header({"w": {"dtype": "BF16"}}), "not described as the safetensors format demands"),
        (header(entry(dtype="F4")), "dtype 'F4', which is not supported"),
        (header(entry(shape=[2, 3])), "does not fill its bytes"),
        (header(entry(shape=[-2, -2])), "does not fill its bytes"),
        (header(entry(shape=[2.0, 2])), "does not fill its bytes"),
        (header(entry(shape=[True, 4])), "does not fill its bytes"),
        (header(entry(data_offsets=[0, 10**30])), "does not fill its bytes"),
    ],
)
def test_a_damaged_header_is_refused_by_name(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(Unreadable, match=message) as caught:
        read_local(tmp_path)
    assert "model.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no config.json"),
        ({"config.json": "{}"}, "neither model.safetensors nor"),
        ({"config.json": "{}", "pytorch_model.bin": ""}, "pickle weights only \\(pytorch_model.bin\\)"),
        ({"config.json": "[1]", "model.safetensors": ""}, "config.json is not a JSON object"),
        ({"config.json": "{}", "model.safetensors.index.json": "{}"}, "no weight_map"),
        ({"config.json": "{}", "model.safetensors.index.json": '{"weight_map": {"a": 1}}'}, "names 1"),
        ({"config.json": "{}", "model.safetensors.index.json": '{"weight_map": {"a": "../x.safetensors"}}'}, "names"),
        ({"config.json": "{}", "model.safetensors.index.json": '{"weight_map": {"a": "x.safetensors"}}'}, "is missing"),
    ],
)
def test_a_directory_that_is_no_model_is_refused(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(Unreadable, match=message):
        read_local(tmp_path)


def test_an_index_that_promises_too_much_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "a.safetensors").write_bytes(header(entry()) + bytes(8))
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"v": "a.safetensors"}}')
    with pytest.raises(Unreadable, match=r"says that a.safetensors holds v, but it does not"):
        read_local(tmp_path)
