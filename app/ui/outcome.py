"""The result of a job as one sentence, and a Python snippet that uses it."""

from __future__ import annotations

from app.jobs.schemas import JobView
from quant_experts.planning.number_text import number, percent, size_text

SNIPPET = """\
from huggingface_hub import snapshot_download
from transformers import AutoModelForImageTextToText  # of a text model: AutoModelForCausalLM

path = snapshot_download("{repository}", endpoint="{base}/hub", token="…")  # an API key that may read jobs
model = AutoModelForImageTextToText.from_pretrained(path, trust_remote_code=True)"""


def sentence(job: JobView) -> str:
    """Size, agreement and duration; empty without figures."""
    summary = job.summary or {}
    before, after = summary.get("bytes_before"), summary.get("bytes_after")
    agreement, kl = summary.get("top1_agreement"), summary.get("kl")
    if not before or after is None or agreement is None or kl is None:
        return ""
    share = after / before
    size = f"{percent(share)} of the original's size" if share <= 1 else f"{number(share)} times the original's size"
    took = f", made in {_duration(job)}" if _duration(job) else ""
    same = f"it picks the same next token {percent(agreement)} of the time (KL {number(kl)})"
    return f"{size_text(after)}, {size}; {same}{took}."


def _duration(job: JobView) -> str:
    if job.started_at is None or job.finished_at is None:
        return ""
    seconds = (job.finished_at - job.started_at).total_seconds()
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def snippet(job: JobView, *, base: str) -> str:
    return SNIPPET.format(repository=f"qe/{job.id}", base=base)
