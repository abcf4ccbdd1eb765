"""The formats in which a webhook may have its messages."""

from __future__ import annotations

from enum import StrEnum


class WebhookFormat(StrEnum):
    STANDARD = "standard"
    """Signed JSON of Standard Webhooks."""
    SLACK = "slack"
    """A line of text for an incoming webhook of Slack."""
    TEAMS = "teams"
    """A line of text in an Adaptive Card, for a workflow of Teams."""
