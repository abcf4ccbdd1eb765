"""The main job from end to end, as a user would do it: serve, upload, submit, follow, download, check, load, generate.

    python -m demo                                       # the small Qwen2-VL that was trained here to read digits
    python -m demo --model Qwen/Qwen2-VL-2B-Instruct     # a hub model, where there is a network

Leaves ``demo-output/summary.json``. The exit code is 0 only if every step held.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.digits import REPOSITORY
from benchmarks.digits.boards import Question, held_out_questions
from demo.loading import Reply, generate_in_fresh_process
from demo.rows import write_jsonl
from demo.service import Service, running_service
from quant_experts.client import ClientError
from quant_experts.commands.display.live_line import time_left

LOCAL_MODEL = "local/digits-qwen2-vl"
LOCAL_OPTIONS = {"group_size": 64, "shared_rank": 8, "routed_rank": 8, "experts": 4, "important_channels": 8}
"""In proportion to the small model's width: 8 of 192 where the defaults are made for 32 of some thousand."""

ASKED = ("caption", "digit", "colour", "sum")
"""Tasks of ``benchmarks.digits.boards``; a hub model is asked the same, and may answer as it likes."""

LABELS = {"error_base": "error of the integers alone; the experts carry the important columns"}

console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default=LOCAL_MODEL, help="a hub id; by default the small Qwen2-VL of benchmarks/digits"
    )
    parser.add_argument("--rows", type=int, default=64, help="calibration rows to make (at least 64)")
    parser.add_argument("--scheme", default="W4A6")
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Also where a shell started us with SIGINT ignored: the service must be stopped on the way out.
        signal.signal(number, signal.default_int_handler)
    try:
        run(arguments)
    except KeyboardInterrupt:
        console.print("\nstopped; nothing is left running")
        return 130
    except (DemoFailed, ClientError) as failure:
        console.print(f"[red]the demo failed:[/] {failure}")
        return 1
    return 0


class DemoFailed(Exception):
    """A step did not hold; the message says which."""


def run(arguments: argparse.Namespace) -> None:
    output: Path = arguments.output.resolve()
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    began = time.monotonic()

    rows = output / "calibration.jsonl"
    write_jsonl(rows, max(64, arguments.rows))
    step(f"calibration: {max(64, arguments.rows)} rows of image, question and answer in {rows.name}")
    local = output / "models" / LOCAL_MODEL.removeprefix("local/")
    if arguments.model == LOCAL_MODEL:
        shutil.copytree(REPOSITORY, local)
        step(f"model: a small Qwen2-VL that has learned to read handwritten digits, in models/{local.name}")

    with running_service(output) as service:
        step(f"service: {service.url} (PostgreSQL, Redis, API, Celery worker, keeper)")
        dataset = service.upload(rows)
        step(f"uploaded: {dataset['id']}, {dataset['rows']} rows, sha256 {dataset['sha256'][:12]}…")
        job = service.submit(arguments.model, dataset["id"], arguments.scheme, _options(arguments.model))
        step(f"submitted: {job['id']}, {arguments.scheme}")
        job = follow(service, job["id"])
        checkpoint = output / "checkpoint"
        artifacts = service.download(job["id"], checkpoint)
        report = service.report(job["id"])
    check_digests(checkpoint, artifacts)
    megabytes = sum(artifact["bytes"] for artifact in artifacts) / 1e6
    step(f"downloaded: {len(artifacts)} files, {megabytes:.1f} MB, every digest as announced")

    questions = [question for task in ASKED for question in held_out_questions(1) if question.task == task]
    asked = output / "questions.jsonl"
    asked.write_text("".join(json.dumps(question.row()) + "\n" for question in questions), encoding="utf-8")
    replies, again = (generate_in_fresh_process(checkpoint, asked, with_package=flag) for flag in (True, False))
    check_replies(replies, again)
    step("loaded twice in fresh processes (with the package, and with trust_remote_code alone): the same replies")
    original = generate_in_fresh_process(local, asked, with_package=True) if local.is_dir() else None
    show_replies(questions, replies, original)

    table = summarise(report, seconds=time.monotonic() - began)
    show(table)
    summary = {
        "job_id": job["id"],
        "status": job["status"],
        "artifacts": {artifact["name"]: artifact["sha256"] for artifact in artifacts},
        "replies": [{"question": reply.question, "reply": reply.text} for reply in replies],
        "table": table,
    }
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    step(f"summary: {output / 'summary.json'}")


def follow(service: Service, job_id: str) -> dict[str, Any]:
    """Print the job's events as they come; return the finished job. Raises DemoFailed unless it succeeded."""
    for event in service.events(job_id):
        data = event["data"]
        match event["type"]:
            case "job.phase":
                left = f" · {time_left(data['eta_seconds'])}" if data.get("eta_seconds") is not None else ""
                console.print(f"  [dim]{data['phase']}{left}[/]")
            case "job.block":
                errors = data["error"]
                shown = (
                    f"error {errors['shared']:.3%} with the shared expert, {errors['routed']:.3%} with the routed ones"
                )
                console.print(f"  block {data['block'] + 1} of {data['blocks']}: {data['seconds']:.1f} s, {shown}")
            case "job.warning":
                console.print(f"  [yellow]{data['message']}[/]")
    job = service.job(job_id)
    if job["status"] != "succeeded":
        raise DemoFailed(f"job {job_id} ended {job['status']}: {job['error']}")
    step("job succeeded")
    return job


def check_digests(directory: Path, artifacts: list[dict[str, Any]]) -> None:
    for artifact in artifacts:
        digest = hashlib.sha256((directory / artifact["name"]).read_bytes()).hexdigest()
        if digest != artifact["sha256"]:
            raise DemoFailed(f"{artifact['name']}: sha256 is {digest}, the service announced {artifact['sha256']}")


def check_replies(with_package: list[Reply], without_package: list[Reply]) -> None:
    for one, other in zip(with_package, without_package, strict=True):
        if not one.tokens:
            raise DemoFailed(f"the loaded checkpoint generated nothing to {one.question!r}")
        if one.tokens != other.tokens:
            raise DemoFailed(f"the two ways of loading answer differently: {one.text!r}, {other.text!r}")


def show_replies(questions: list[Question], replies: list[Reply], original: list[Reply] | None) -> None:
    """``original``: of the model before quantization, where it is at hand."""
    table = Table(title="Questions about boards of digits that calibration never saw", title_justify="left")
    for column in ("question", "right", *(["before"] if original else []), "quantized"):
        table.add_column(column)
    for number, (question, reply) in enumerate(zip(questions, replies, strict=True)):
        before = [original[number].text] if original else []
        table.add_row(question.question, question.answer, *before, reply.text)
    console.print(table)


def summarise(report: dict[str, Any], *, seconds: float) -> dict[str, float]:
    """The figures of the closing table; errors are means over the input groups, held-out rows."""
    groups = [group for block in report["blocks"] for group in block["groups"]]

    def mean_error(stage: str) -> float:
        return float(sum(group["error"][stage] for group in groups) / len(groups))

    return {
        # Without its experts the base lacks the important columns, which they carry; so this is no method's error.
        "error_base": mean_error("base"),
        "error_with_shared_expert": mean_error("shared"),
        "error_with_routed_experts": mean_error("routed"),
        "kl": report["quality"]["kl"],
        "top1_agreement": report["quality"]["top1_agreement"],
        "effective_bits": report["size"]["effective_bits"],
        "bytes_before": report["size"]["bytes_before"],
        "bytes_after": report["size"]["bytes_after"],
        "seconds_quantization": report["seconds"],
        "seconds_demo": round(seconds, 1),
    }


def show(figures: dict[str, float]) -> None:
    table = Table(title="Quant Experts, held-out rows", title_justify="left")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for key, value in figures.items():
        name = LABELS.get(key, key)
        shown = (
            f"{value:.3%}" if key.startswith("error") else f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
        )
        table.add_row(name.replace("_", " "), shown)
    console.print(table)


def step(text: str) -> None:
    console.print(f"[green]✓[/] {text}")


def _options(model: str) -> dict[str, Any]:
    return LOCAL_OPTIONS if model == LOCAL_MODEL else {}


if __name__ == "__main__":
    sys.exit(main())
