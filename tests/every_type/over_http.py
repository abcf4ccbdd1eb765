"""python -m tests.every_type.over_http [TYPE …]: types with their real processors, from the upload to a reply.

Each is a job of an embedded service (``qe serve``): rows with images uploaded, W4A8, the checkpoint downloaded. Then a
process with transformers and nothing of ours loads all of them with ``trust_remote_code``, processor and model, and
lets each reply to a picture. Writes benchmarks/results/images_over_http.md.
"""

from __future__ import annotations

import importlib
import importlib.util
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
from quant_experts.client import ClientError
from tests.e2e.conftest import OPTIONS
from tests.every_type.with_images import FAMILIES, make_with_images
from tests.models import VISION_FAMILIES, make_model
from tests.models_video import SETTINGS, make_video_model
from tests.rows import video_row

PAGE = Path("benchmarks/results/images_over_http.md")
REPLY = """
import base64, io, json, sys
sys.modules["quant_experts"] = None  # any import of it now fails
import numpy as np
import torch, transformers
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
transformers.logging.set_verbosity_error()
def picture(url):
    return Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1]))).convert("RGB")
def media(question):
    part = question["content"][0]
    if part["type"] == "image":
        return {"images": [[picture(part["image"])]]}
    frames = np.stack([np.asarray(picture(frame)) for frame in part["video"]])
    metadata = {"total_num_frames": len(frames), "fps": part["fps"], "frames_indices": list(range(len(frames)))}
    return {"videos": [frames], "video_metadata": [metadata], "do_sample_frames": False}
for line in sys.stdin:
    directory, rows = json.loads(line)
    processor = None
    replies = []
    try:
        processor = AutoProcessor.from_pretrained(directory, trust_remote_code=True)
        model = AutoModelForImageTextToText.from_pretrained(directory, trust_remote_code=True).eval()
        for row in rows:
            question = row["messages"][0]
            text = processor.apply_chat_template([question], add_generation_prompt=True)
            inputs = processor(text=[text], return_tensors="pt", **media(question))
            if model.config.model_type == "kimi_k25":  # its tower takes pixels as they are
                inputs = inputs.to(model.dtype)
            with torch.no_grad():
                new = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
            replies.append(f"{new.shape[1] - inputs['input_ids'].shape[1]} tokens")
    except Exception as error:
        replies.append(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    print("reply: " + json.dumps([directory, type(processor).__name__, " and ".join(replies)]), flush=True)
"""
HAS_TORCHVISION = importlib.util.find_spec("torchvision") is not None
KINDS = (*VISION_FAMILIES, *FAMILIES)
PICTURES, FILMS = "pictures.jsonl", "films.jsonl"


def is_filmed(kind: str) -> bool:
    """Whether the type's rows have videos too."""
    return HAS_TORCHVISION and kind in SETTINGS


def missing(kind: str) -> str | None:
    """A package that the type's processor needs and that is not installed."""
    needed = FAMILIES[kind].needs if kind in FAMILIES else None
    return needed if needed and importlib.util.find_spec(needed) is None else None


def make(kind: str, directory: Path) -> None:
    if is_filmed(kind):
        make_video_model(kind, directory)
    elif kind in FAMILIES:
        make_with_images(kind, directory)
    else:
        make_model(kind, directory)


def main(kinds: list[str]) -> None:
    found: dict[str, dict[str, Any]] = {
        kind: {"job": f"not run: its processor needs {package}", "error": None}
        for kind in kinds
        if (package := missing(kind)) is not None
    }
    run = [kind for kind in kinds if kind not in found]
    with tempfile.TemporaryDirectory(prefix="qe-http-") as name:
        directory = Path(name)
        write_jsonl(directory / PICTURES, 8)
        pictures = (directory / PICTURES).read_text().splitlines()
        films = [json.dumps(video_row(index)) for index in range(4)]
        (directory / FILMS).write_text("\n".join([*pictures[:4], *films]) + "\n")
        for kind in run:
            make(kind, directory / "models" / kind.replace("_", "-"))
        with running_service(directory) as service:
            found |= _jobs(service, run, directory)
        asked = {
            str(found[kind]["directory"]): [json.loads(each) for each in (pictures[0], *films[: is_filmed(kind)])]
            for kind in run
        }
        for checkpoint, processor, reply in _replies(asked):
            found[Path(checkpoint).name].update(processor=processor, reply=reply)
    PAGE.write_text("\n".join(_page(_rows_of(PAGE) | {kind: _row(kind, found[kind]) for kind in kinds})))


def _jobs(service: Service, kinds: list[str], directory: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    datasets = {name: str(service.upload(directory / name)["id"]) for name in (PICTURES, FILMS)}
    ids = {}
    for kind in kinds:
        dataset = datasets[FILMS if is_filmed(kind) else PICTURES]
        try:
            ids[kind] = str(service.submit(f"local/{kind.replace('_', '-')}", dataset, "W4A8", OPTIONS)["id"])
        except ClientError as error:
            print(kind, error, flush=True)
            yield kind, {"directory": directory / "out" / kind, "job": "refused", "error": str(error)}
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


def _replies(asked: dict[str, list[Any]]) -> Iterator[list[str]]:
    """``asked``: checkpoint → rows whose first message it is to answer."""
    lines = "".join(json.dumps(each) + "\n" for each in asked.items())
    done = subprocess.run([sys.executable, "-c", REPLY], input=lines, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith("reply: "):
            yield json.loads(line.removeprefix("reply: "))


def _rows_of(page: Path) -> dict[str, str]:
    """Type → its row in the page, of an earlier run."""
    lines = page.read_text().splitlines() if page.exists() else []
    return {line.split("`")[1]: line for line in lines if line.startswith("| `")}


def _page(rows: dict[str, str]) -> Iterator[str]:
    yield from (
        "# Types with their processors, over HTTP",
        "",
        "    python -m tests.every_type.over_http",
        "",
        "Tiny seeded models with the processor, image tokens and a chat template of their type: eight rows with a "
        "picture uploaded, or four with a picture and four with a video of four frames; a job W4A8 of method `qe`, the "
        f"checkpoint downloaded; a process with transformers {transformers.__version__} and nothing of ours loads "
        "processor and model from it and replies to a picture, and to a video. "
        "Types that a run leaves out keep their row. "
        f"{_torchvision()}",
        "",
        "| type | processor | rows | job | vision tokens | plan exact | replies in a fresh process |",
        "|---|---|---|---|---:|---|---|",
    )
    yield from (rows[kind] for kind in KINDS if kind in rows)
    yield ""


def _torchvision() -> str:
    if not HAS_TORCHVISION:
        return "Without torchvision."
    torchvision = importlib.import_module("torchvision")
    alone = "" if torchvision.extension._has_ops() else ", of which the Python part alone loads beside this torch"
    return f"With torchvision {torchvision.__version__}{alone}."


def _row(kind: str, found: dict[str, Any]) -> str:
    error = f": {found['error']}" if found["error"] else ""
    cells = (
        f"`{kind}`",
        found.get("processor", "–"),
        "pictures and videos" if is_filmed(kind) else "pictures",
        found["job"] + error,
        str(found.get("tokens", "–")),
        "yes" if found.get("planned") else "–",
        found.get("reply", "–"),
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main(sys.argv[1:] or list(KINDS))
