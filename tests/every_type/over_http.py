"""python -m tests.every_type.over_http [TYPE …]: types with their real processors, from the upload to a reply.

Each is a job of an embedded service (``qe serve``): rows with images uploaded, W4A8, the checkpoint downloaded. Then a
process with transformers and nothing of ours loads all of them with ``trust_remote_code``, processor and model, and
lets each reply to a picture. Writes benchmarks/results/images_over_http.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers

from demo.rows import write_jsonl
from demo.service import Service, running_service
from tests.e2e.conftest import OPTIONS
from tests.every_type.with_images import FAMILIES, make_with_images

PAGE = Path("benchmarks/results/images_over_http.md")
REPLY = """
import base64, io, json, sys
sys.modules["quant_experts"] = None  # any import of it now fails
import torch, transformers
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
transformers.logging.set_verbosity_error()
row = json.loads(open(sys.argv[1]).readline())
question = row["messages"][0]
url = next(part["image"] for part in question["content"] if part["type"] == "image")
picture = Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1])))
for directory in sys.argv[2:]:
    try:
        processor = AutoProcessor.from_pretrained(directory, trust_remote_code=True)
        model = AutoModelForImageTextToText.from_pretrained(directory, trust_remote_code=True).eval()
        text = processor.apply_chat_template([question], add_generation_prompt=True)
        inputs = processor(text=[text], images=[[picture]], return_tensors="pt")
        with torch.no_grad():
            new = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        reply = f"{new.shape[1] - inputs['input_ids'].shape[1]} tokens"
    except Exception as error:
        reply = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    print("reply: " + json.dumps([directory, type(processor).__name__, reply]), flush=True)
"""


def main(kinds: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="qe-http-") as name:
        directory = Path(name)
        rows = directory / "rows.jsonl"
        write_jsonl(rows, 8)
        for kind in kinds:
            make_with_images(kind, directory / "models" / kind.replace("_", "-"))
        with running_service(directory) as service:
            found = dict(_jobs(service, kinds, rows, directory))
        for checkpoint, processor, reply in _replies(rows, [each["directory"] for each in found.values()]):
            found[Path(checkpoint).name].update(processor=processor, reply=reply)
    PAGE.write_text("\n".join(_page(found)))


def _jobs(service: Service, kinds: list[str], rows: Path, directory: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    dataset = str(service.upload(rows)["id"])
    ids = {
        kind: str(service.submit(f"local/{kind.replace('_', '-')}", dataset, "W4A8", OPTIONS)["id"]) for kind in kinds
    }
    for kind, job_id in ids.items():
        for _ in service.events(job_id):
            pass
        job, checkpoint = service.job(job_id), directory / "out" / kind
        checkpoint.mkdir(parents=True)
        found = {"directory": checkpoint, "job": job["status"], "error": job["error"]}
        if job["status"] == "succeeded":
            service.download(job_id, checkpoint)
            report = service.report(job_id)
            found["tokens"] = report["tokens_vision"]
            found["planned"] = job["plan"]["bytes_after"] == report["size"]["bytes_after"]
        print(kind, found, flush=True)
        yield kind, found


def _replies(rows: Path, checkpoints: list[Path]) -> Iterator[list[str]]:
    command = [sys.executable, "-c", REPLY, str(rows), *map(str, checkpoints)]
    done = subprocess.run(command, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith("reply: "):
            yield json.loads(line.removeprefix("reply: "))


def _page(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield from (
        "# Types with their processors, over HTTP",
        "",
        "    python -m tests.every_type.over_http",
        "",
        "Tiny seeded models with the processor, image tokens and a chat template of their type: eight rows with a "
        "picture uploaded, a job W4A8 of method `qe`, the checkpoint downloaded; a process with transformers "
        f"{transformers.__version__} and nothing of ours loads processor and model from it and replies to a picture. "
        "Without torchvision, as this machine has none.",
        "",
        "| type | processor | job | image tokens | plan exact | a reply in a fresh process |",
        "|---|---|---|---:|---|---|",
    )
    for kind, each in found.items():
        error = f": {each['error']}" if each["error"] else ""
        exact = "yes" if each.get("planned") else "–"
        yield (
            f"| `{kind}` | {each.get('processor', '–')} | {each['job']}{error} | {each.get('tokens', '–')} | {exact} | "
            f"{each.get('reply', '–')} |"
        )
    yield ""


if __name__ == "__main__":
    main(sys.argv[1:] or list(FAMILIES))
