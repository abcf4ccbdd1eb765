"""``qe webhooks``: signed messages about jobs to a URL of yours."""

from __future__ import annotations

from itertools import islice
from typing import Literal, get_args

import click

from quant_experts.client import WebhookWithSecret
from quant_experts.commands.display.dates import to_the_second
from quant_experts.commands.display.printable import printable
from quant_experts.commands.service_client import connected, json_option, print_json, url_option

Format = Literal["standard", "slack", "teams"]
Status = Literal["pending", "delivered", "failed"]
EVENTS = ("job.started", "job.succeeded", "job.failed", "job.cancelled", "job.pushed", "job.push_failed")


@click.group("webhooks", short_help="Be told of jobs at a URL; what was delivered, and again.")
def command() -> None:
    """Signed messages about jobs (Standard Webhooks) to a URL of yours."""


@command.command("create", short_help="Tell a URL of jobs.")
@click.argument("address", metavar="ADDRESS")
@click.option("--event", "events", multiple=True, type=click.Choice(EVENTS), help="Repeatable.  [default: all ends]")
@click.option(
    "--format",
    "message_format",
    type=click.Choice(get_args(Format)),
    help="slack and teams send a line of text.  [default: standard]",
)
@click.option("--description", metavar="TEXT")
@json_option("The webhook with its secret as one JSON object on stdout.")
@url_option
def create(
    *,
    address: str,
    events: tuple[str, ...],
    message_format: Format | None,
    description: str | None,
    as_json: bool,
    url: str | None,
) -> None:
    """Tell ADDRESS (https://…) of jobs, and print the webhook's id and its secret, which is shown this once."""
    with connected(url) as client:
        webhook = client.webhooks.create(
            address, event_types=events or None, format=message_format, description=description
        )
        _with_secret(webhook, as_json)


@command.command("list", short_help="List webhooks.")
@json_option("One JSON object per webhook and line.")
@url_option
def list_webhooks(*, as_json: bool, url: str | None) -> None:
    """List webhooks, newest first."""
    with connected(url) as client:
        for webhook in client.webhooks.list():
            if as_json:
                print_json(webhook)
            else:
                why = f" ({webhook.disabled_reason})" if webhook.disabled_reason else ""
                form = "" if webhook.format == "standard" else f" {webhook.format}"
                click.echo(
                    printable(f"{webhook.id} {webhook.status}{why} {webhook.url} {','.join(webhook.event_types)}{form}")
                )


@command.command("rotate", short_help="A new secret.")
@click.argument("webhook_id", metavar="WEBHOOK")
@click.option("--keep", "keep_s", type=click.IntRange(0), metavar="S", help="Seconds both sign.  [default: a day]")
@json_option("The webhook with its new secret as one JSON object on stdout.")
@url_option
def rotate(*, webhook_id: str, keep_s: int | None, as_json: bool, url: str | None) -> None:
    """Give WEBHOOK a new secret and print it, this once. For a while the old one signs too."""
    with connected(url) as client:
        _with_secret(client.webhooks.rotate_secret(webhook_id, keep_previous_s=keep_s), as_json)


@command.command("deliveries", short_help="What was sent, and what came of it.")
@click.argument("webhook_id", metavar="WEBHOOK")
@click.option("--status", type=click.Choice(get_args(Status)))
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, metavar="N", help="Newest first.")
@json_option("One JSON object per message and line.")
@url_option
def deliveries(*, webhook_id: str, status: Status | None, limit: int, as_json: bool, url: str | None) -> None:
    """Messages to WEBHOOK, newest first."""
    with connected(url) as client:
        for each in islice(client.webhooks.deliveries(webhook_id, status=status), limit):
            if as_json:
                print_json(each)
            else:
                time = to_the_second(each.created_at)
                click.echo(f"{each.id} {time} {each.event_type} {each.status}, {each.attempts} attempts")


@command.command("redeliver", short_help="Send a message again.")
@click.argument("webhook_id", metavar="WEBHOOK")
@click.argument("delivery_id", metavar="DELIVERY")
@url_option
def redeliver(*, webhook_id: str, delivery_id: str, url: str | None) -> None:
    """Send DELIVERY to WEBHOOK again, under the same webhook-id."""
    with connected(url) as client:
        click.echo(f"{client.webhooks.redeliver(webhook_id, delivery_id).id} pending")


@command.command("ping", short_help="Send a test message.")
@click.argument("webhook_id", metavar="WEBHOOK")
@url_option
def ping(*, webhook_id: str, url: str | None) -> None:
    """Send WEBHOOK a webhook.ping and print the delivery's id."""
    with connected(url) as client:
        click.echo(client.webhooks.ping(webhook_id).id)


@command.command("delete", short_help="Remove webhooks with their deliveries.")
@click.argument("webhook_ids", metavar="WEBHOOK...", nargs=-1, required=True)
@url_option
def delete(*, webhook_ids: tuple[str, ...], url: str | None) -> None:
    """Remove every WEBHOOK with its deliveries, sent or not."""
    with connected(url) as client:
        for webhook_id in webhook_ids:
            client.webhooks.delete(webhook_id)
            click.echo(f"{webhook_id} deleted")


def _with_secret(webhook: WebhookWithSecret, as_json: bool) -> None:
    if as_json:
        print_json(webhook)
    else:
        click.echo(f"{webhook.id} {webhook.secret}")
        click.echo("The secret is not shown again.", err=True)
