"""The body of a message, in the format that its webhook asks for: Standard Webhooks' own, or a line in a chat.

Slack's incoming webhooks show ``text``; Teams' workflows ("When a Teams webhook request is received") show Adaptive
Cards and nothing else. Names and errors in a line come from models and users, so neither chat may read markup in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from core.contract.webhook_format import WebhookFormat
from core.ledger.outbox import PING

MOST_CHARACTERS = 2000
"""Of a line; Slack cuts a text at 4,000, and a card of Teams may have 28 KB."""
CARD = "application/vnd.microsoft.card.adaptive"
SLACK_MARKUP = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
"""What Slack reads mentions and links by, ``mrkdwn`` or not."""


def body_of(payload: Mapping[str, Any], *, form: str) -> bytes:
    """``payload`` as JSON, or as a chat's message with one line about it."""
    match WebhookFormat(form):
        case WebhookFormat.SLACK:
            document: Mapping[str, Any] = {"text": line_of(payload).translate(SLACK_MARKUP), "mrkdwn": False}
        case WebhookFormat.TEAMS:
            document = _card(line_of(payload))
        case WebhookFormat.STANDARD:
            document = payload
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def line_of(payload: Mapping[str, Any]) -> str:
    """``Job nightly succeeded: owner/model, W4A6, qe. KL 0.0123. job_…``"""
    kind, data = payload["type"], payload["data"]
    if kind == PING:
        return f"A test message of Quant Experts for webhook {data['webhook']}."
    job, event = data["job"], data["event"]
    name = f" {job['name']}" if job.get("name") else ""
    became = kind.removeprefix("job.").replace("push_failed", "could not be pushed")
    parts = [f"Job{name} {became}: {job['model']}, {job['scheme']}, {job['method']}."]
    error, summary = event.get("error") or {}, event.get("summary") or {}
    if "to" in event:  # of a push, whose error is a sentence
        parts.append(f"{event['to']}: {error or event.get('url')}")
    elif error:
        parts.append(f"{error.get('code')}: {error.get('message')}")
    if summary.get("verdict") == "rejected":
        parts.append("It misses its accept_if.")
    if isinstance(kl := summary.get("kl"), (int, float)):
        parts.append(f"KL {kl:.3g}.")
    parts.append(job["id"])
    line = " ".join(parts)
    return line if len(line) <= MOST_CHARACTERS else f"{line[: MOST_CHARACTERS - len(job['id']) - 2]}… {job['id']}"


def _card(line: str) -> dict[str, Any]:
    # A TextBlock would read Markdown, with links, in what a stranger's model is called; a TextRun reads none.
    run = {"type": "TextRun", "text": line}
    content = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.2",
        "body": [{"type": "RichTextBlock", "inlines": [run]}],
    }
    return {"type": "message", "attachments": [{"contentType": CARD, "contentUrl": None, "content": content}]}
