"""A finished job by its name: stock ``transformers`` and ``hf`` on the other side, and nothing of ours."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.e2e.conftest import OPTIONS, Site
from tests.hub_client import HubClient

LOAD = """
    import torch
    from transformers import AutoModelForImageTextToText, AutoTokenizer
    model = AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=True).eval()
    tokens = AutoTokenizer.from_pretrained(name)("one two three", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        logits = model(input_ids=tokens).logits[0, -1]
    layer = model.model.language_model.layers[0].mlp.down_proj
    answer = {"finite": bool(logits.isfinite().all()), "layer": type(layer).__name__}
"""


def test_a_job_is_loaded_by_name_and_downloaded_by_alias(site: Site, dataset: str, tmp_path: Path) -> None:
    service = site.service
    job_id = service.submit("local/tiny", dataset, "W4A6", OPTIONS, alias="team/tiny-w4a6")["id"]
    assert list(service.events(job_id))[-1]["type"] == "job.succeeded"
    client = HubClient(
        f"{service.url}/hub", service.client.headers["authorization"].removeprefix("Bearer "), tmp_path / "client"
    )

    loaded = client.python(LOAD, name=f"qe/{job_id}")
    assert loaded == {"finite": True, "layer": "QuantizedLinear"}

    target = tmp_path / "checkpoint"
    client.hf("download", "team/tiny-w4a6", "--local-dir", str(target))
    client.hf("cache", "verify", "team/tiny-w4a6", "--local-dir", str(target), "--fail-on-missing-files")
    for artifact in service.client.get(f"/v1/jobs/{job_id}/artifacts").json()["data"]:
        content = (target / artifact["name"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == artifact["sha256"], artifact["name"]
