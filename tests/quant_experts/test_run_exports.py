"""A run that was asked for exports leaves them in its checkpoint, or says why not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from quant_experts.checkpoint.verify import verify_checksums
from quant_experts.errors import InvalidCheckpoint, InvalidSpec
from quant_experts.export import formats
from quant_experts.progress import Event, Finished, PhaseStarted
from quant_experts.run.quantize import quantize
from quant_experts.spec.exports import EXPORT_FORMATS
from quant_experts.spec.specification import QuantizationSpec
from tests.models import make_model
from tests.planned import check_planned_disk, disk_peaks
from tests.rows import text_row, write_rows

FAST = QuantizationSpec.preset("fast", scheme="W4A16", samples=6)


def run(directory: Path, *exports: str, family: str = "llama", spec: QuantizationSpec = FAST) -> list[Event]:
    """The events of a run into ``directory``/out."""
    if not (directory / "model").exists():
        make_model(family, directory / "model", hidden=256)
        write_rows(directory / "rows.jsonl", map(text_row, range(6)))
    events: list[Event] = []
    quantize(
        model=directory / "model",
        calibration=directory / "rows.jsonl",
        output=directory / "out",
        work=directory / "work",
        spec=spec,
        exports=exports,
        on_event=events.append,
    )
    return events


def test_exports_are_folders_of_the_checkpoint_within_the_planned_disk(tmp_path: Path) -> None:
    with disk_peaks(tmp_path) as peaks:
        events = run(tmp_path, *EXPORT_FORMATS)

    [finished] = [event for event in events if isinstance(event, Finished)]
    phases = [event.phase for event in events if isinstance(event, PhaseStarted)]
    assert phases[-3:] == ["verifying", "exporting", "publishing"]
    assert [(each.format, each.problem, each.loaded) for each in finished.exports] == [
        (name, None, True) for name in EXPORT_FORMATS
    ]
    on_disk = {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    assert {file.name for file in finished.files} == on_disk
    for name, each in zip(EXPORT_FORMATS, finished.exports, strict=True):
        files = [file for file in finished.files if file.name.startswith(f"exports/{name}/")]
        assert each.bytes == sum(file.bytes for file in files)
        config = json.loads((tmp_path / "out" / "exports" / name / "config.json").read_text())
        assert config.get("quantization_config", {}).get("quant_method") == {"dequantized": None}.get(name, name)
    assert verify_checksums(tmp_path / "out") == len(on_disk) - 1 - len(EXPORT_FORMATS)  # the lists list not themselves
    peak = {"exporting": peaks["exporting"]}
    check_planned_disk(peak, tmp_path / "model", tmp_path / "work", FAST, phases={*peak}, exports=EXPORT_FORMATS)

    (tmp_path / "out" / "exports" / "dequantized" / "README.md").write_text("another")
    with pytest.raises(InvalidCheckpoint, match=r"README\.md has changed"):
        verify_checksums(tmp_path / "out")


def test_what_a_format_has_no_place_for_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    balanced = QuantizationSpec.preset("balanced", scheme="W4A8", samples=6)
    with pytest.raises(InvalidSpec, match="smoothing and experts, for which compressed-tensors has no place"):
        run(tmp_path, "compressed-tensors", spec=balanced)
    with pytest.raises(InvalidSpec, match="export 'gguf': choose compressed-tensors, dequantized"):
        run(tmp_path, "gguf")
    assert not (tmp_path / "work" / "calls.json").exists()


def test_an_export_that_fails_does_not_take_the_checkpoint_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: object) -> list[str]:
        raise InvalidSpec("there is no place for it")

    refusing = replace(formats.FORMATS["dequantized"], losses=refuse)
    monkeypatch.setattr(formats, "FORMATS", {**formats.FORMATS, "dequantized": refusing})
    monkeypatch.setattr("quant_experts.export.write.FORMATS", formats.FORMATS)

    [finished] = [event for event in run(tmp_path, *EXPORT_FORMATS) if isinstance(event, Finished)]

    assert [(each.format, each.problem) for each in finished.exports] == [
        ("compressed-tensors", None),
        ("dequantized", "there is no place for it"),
    ]
    assert sorted(path.name for path in (tmp_path / "out" / "exports").iterdir()) == ["compressed-tensors"]
    assert verify_checksums(tmp_path / "out") > 0
