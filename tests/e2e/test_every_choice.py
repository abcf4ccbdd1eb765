"""Every family, every preset and every named scheme: one job over HTTP that succeeds, and whose checkpoint loads in a
fresh process that has transformers and nothing of ours.

Families, presets and schemes go round together, so that each is met at least once without trying every combination.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.contract.spec import METHODS, NAMED_SCHEMES
from tests.e2e.conftest import OPTIONS, Site
from tests.models import FAMILIES, SPEECH_FAMILIES, TEXT_FAMILIES, make_model
from tests.models_speech import audio_row
from tests.rows import text_row, write_rows

pytestmark = pytest.mark.slow

CHOICES = [
    (family, method, scheme)
    for _, family, method, scheme in zip(
        range(max(len(FAMILIES), len(METHODS))),
        itertools.cycle(FAMILIES),
        itertools.cycle(METHODS),
        itertools.cycle(NAMED_SCHEMES),
        strict=False,
    )
] + [("whisper", "qe", "W4A8")]
EXPORTED = CHOICES[0]
LOAD = """
import json, sys
sys.modules["quant_experts"] = None  # any import of it now fails
import torch, transformers
from transformers import AutoConfig
transformers.logging.set_verbosity_error()
for directory in sys.argv[1:]:
    auto_class = next(iter(json.load(open(f"{directory}/config.json"))["auto_map"]))
    model = getattr(transformers, auto_class).from_pretrained(directory, trust_remote_code=True).eval()
    kinds = {type(module).__name__ for module in model.modules()}
    with torch.no_grad():
        tokens = torch.arange(3, 19).unsqueeze(0)
        more = {"input_features": torch.zeros(1, model.config.num_mel_bins, 2 * model.config.max_source_positions,
                dtype=model.dtype)} if hasattr(model.config, "num_mel_bins") else {}
        names = {"decoder_input_ids": tokens} if more else {"input_ids": tokens}
        logits = model(**names, **more).logits
    print(json.dumps({"directory": directory, "quantized": "QuantizedLinear" in kinds,
                      "finite": bool(torch.isfinite(logits).all())}))
"""


@pytest.fixture(scope="module")
def jobs(site: Site, dataset: str, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], str]:
    """All jobs, queued at once. Choice → job id."""
    rows = write_rows(tmp_path_factory.mktemp("rows") / "text.jsonl", map(text_row, range(8)))
    text = str(site.service.upload(rows)["id"])
    speech = str(site.service.upload(write_rows(rows.with_name("speech.jsonl"), map(audio_row, range(8))))["id"])
    submitted = {}
    for family, method, scheme in CHOICES:
        name = f"every-{family}".replace("_", "-")
        if not (site.models / name).exists():
            make_model(family, site.models / name, hidden=64)
        rows_of = text if family in TEXT_FAMILIES else speech if family in SPEECH_FAMILIES else dataset
        more = {"exports": ["dequantized"]} if (family, method, scheme) == EXPORTED else {}
        job = site.service.submit(f"local/{name}", rows_of, scheme, OPTIONS, method=method, **more)
        submitted[family, method, scheme] = str(job["id"])
    return submitted


@pytest.mark.parametrize("choice", CHOICES, ids="-".join)
def test_the_job_succeeds(site: Site, jobs: dict[tuple[str, str, str], str], choice: tuple[str, str, str]) -> None:
    for _ in site.service.events(jobs[choice]):
        pass
    job = site.service.job(jobs[choice])
    assert job["status"] == "succeeded", job["error"]
    family, method, scheme = choice
    report = site.service.report(jobs[choice])
    assert (report["method"], report["scheme"]) == (method, scheme)
    assert report["blocks"], family
    planned = {name: job["plan"][name] for name in ("bytes_after", "effective_bits")}
    written = {name: report["size"][name] for name in planned}
    warnings = [said for block in report["blocks"] for group in block["groups"] for said in group["warnings"]]
    if any("are too few for" in said for said in warnings):  # the plan's one exception: fewer experts are stored
        assert all(planned[name] > written[name] for name in planned)
    else:
        assert planned == written


def test_a_job_with_an_export_has_its_files_and_says_what_it_lost(
    site: Site, jobs: dict[tuple[str, str, str], str]
) -> None:
    for _ in site.service.events(jobs[EXPORTED]):
        pass
    [export] = site.service.job(jobs[EXPORTED])["summary"]["exports"]
    assert (export["format"], export["problem"], export["loaded"]) == ("dequantized", None, True)
    assert any("A" in loss for loss in export["losses"])
    files = site.service.api.jobs.get(jobs[EXPORTED]).artifacts()
    inside = [file for file in files if file.name.startswith("exports/dequantized/")]
    assert sum(file.bytes for file in inside) == export["bytes"]
    assert {"config.json", "model.safetensors.index.json"} <= {
        file.name.removeprefix("exports/dequantized/") for file in inside
    }


def test_a_job_that_quantizes_the_vision_tower_too_counts_all_of_its_blocks(
    site: Site, dataset: str, jobs: dict[tuple[str, str, str], str]
) -> None:
    options = {**OPTIONS, "vision": "quantize"}
    job_id = str(site.service.submit("local/every-qwen2-vl", dataset, "W4A8", options)["id"])
    jobs["qwen2_vl", "vision", "W4A8"] = job_id
    for _ in site.service.events(job_id):
        pass
    job = site.service.job(job_id)
    assert job["status"] == "succeeded", job["error"]
    report = site.service.report(job_id)
    stacks = [block["stack"] for block in report["blocks"]]
    assert stacks == ["vision", "vision", "language model", "language model"]
    assert (job["progress"]["blocks_done"], job["progress"]["blocks_total"]) == (4, 4)
    assert any("costs more accuracy" in warning for warning in report["warnings"])


def test_every_checkpoint_loads_where_nothing_of_ours_is(
    site: Site, jobs: dict[tuple[str, str, str], str], tmp_path: Path
) -> None:
    directories = []
    for job_id in jobs.values():
        directories.append(tmp_path / job_id)
        directories[-1].mkdir()
        site.service.download(job_id, directories[-1])
    done = subprocess.run([sys.executable, "-c", LOAD, *map(str, directories)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    loaded: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [entry["directory"] for entry in loaded] == list(map(str, directories))
    assert all(entry["quantized"] and entry["finite"] for entry in loaded), loaded
