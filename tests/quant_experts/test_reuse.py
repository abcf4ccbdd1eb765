"""A run takes over another's language model calls when nothing before the blocks differs; its bytes stay the same."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from quant_experts.errors import Stopped
from quant_experts.files import file_digest
from quant_experts.progress import Advanced, Event, PhaseStarted
from quant_experts.run.quantize import quantize
from quant_experts.spec.specification import QuantizationSpec
from tests.models import make_model
from tests.rows import image_row, write_rows

FEW: dict[str, Any] = {"samples": 6, "reservoir": 128, "experts": 2, "shared_rank": 4, "routed_rank": 4}
CALLS = ("calls.safetensors", "calls.json")


class Walked:
    """A run up to the end of its walk."""

    def __init__(self, directory: Path, model: Path, rows: Path, *, calls_of: Path | None = None, **spec: Any) -> None:
        self.work = directory / "work"
        self.calibrated = 0
        walked = threading.Event()
        if calls_of is not None:
            self.work.mkdir(parents=True)
            for name in CALLS:
                shutil.copyfile(calls_of / name, self.work / name)

        def on_event(event: Event) -> None:
            self.calibrated += isinstance(event, Advanced) and event.phase == "calibrating"
            if isinstance(event, PhaseStarted) and event.phase == "evaluating":
                walked.set()

        options = {**FEW, **spec}
        with pytest.raises(Stopped, match="before packing"):
            quantize(
                model=model,
                calibration=rows,
                output=directory / "out",
                spec=QuantizationSpec.preset(options.pop("method", "qe"), **options),
                work=self.work,
                on_event=on_event,
                should_stop=walked.is_set,
            )

    @property
    def digests(self) -> dict[str, str]:
        files = sorted(self.work.rglob("*.safetensors"))
        return {path.relative_to(self.work).as_posix(): file_digest(path) for path in files}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("qwen2_vl", tmp_path_factory.mktemp("reuse") / "model")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", [image_row(i) for i in range(8)])


@pytest.fixture(scope="module")
def first(model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Walked:
    return Walked(tmp_path_factory.mktemp("first"), model, rows)


def test_another_method_on_the_same_calls_ends_with_the_bytes_of_a_run_of_its_own(
    first: Walked, model: Path, rows: Path, tmp_path: Path
) -> None:
    assert first.calibrated == 6
    other: dict[str, Any] = {"method": "gptq", "scheme": "W3A8"}
    alone = Walked(tmp_path / "alone", model, rows, **other)
    reusing = Walked(tmp_path / "reusing", model, rows, calls_of=first.work, **other)
    assert (alone.calibrated, reusing.calibrated) == (6, 0)
    assert reusing.digests == alone.digests
    assert set(first.digests) == set(alone.digests)
    assert first.digests["blocks/00000.safetensors"] != alone.digests["blocks/00000.safetensors"]


@pytest.mark.parametrize("changes", [{"seed": 1}, {"samples": 5}, {"holdout": 0.4}], ids=str)
def test_other_rows_are_calibrated_anew(
    first: Walked, model: Path, rows: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert Walked(tmp_path, model, rows, calls_of=first.work, method="rtn", **changes).calibrated > 0


def test_another_processor_is_calibrated_anew(first: Walked, model: Path, rows: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(model, tmp_path / "model")
    path = changed / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_mean": [0.1, 0.1, 0.1]}))
    assert Walked(tmp_path, changed, rows, calls_of=first.work, method="rtn").calibrated == 6


def test_damaged_calls_are_calibrated_anew(first: Walked, model: Path, rows: Path, tmp_path: Path) -> None:
    alone = Walked(tmp_path / "alone", model, rows, method="rtn")
    damaged = shutil.copytree(first.work, tmp_path / "copy")
    with (damaged / CALLS[0]).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x77")
    again = Walked(tmp_path / "again", model, rows, calls_of=damaged, method="rtn")
    assert again.calibrated == 6
    assert again.digests == alone.digests
