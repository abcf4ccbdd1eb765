"""``qe keys``: who may use a service, and for what."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from quant_experts.client import CreatedKey, KeyView
from quant_experts.commands.display.table import print_rows
from quant_experts.commands.options.dates import in_days
from quant_experts.commands.options.spec import Finite
from quant_experts.commands.service_client import connected, json_option, print_json, url_option

SCOPES = (
    "jobs:read",
    "jobs:write",
    "datasets:read",
    "datasets:write",
    "audit:read",
    "usage:read",
    "webhooks:read",
    "webhooks:write",
    "workers:read",
    "keys:admin",
)
"""Scopes that this version knows, for the help; the service checks them."""

tenant_option = click.option("--tenant", metavar="NAME", help="Another tenant; only the bootstrap key may name one.")


@click.group("keys", short_help="List, make, rotate and revoke API keys.")
def command() -> None:
    """API keys of your tenant. All of it takes a key with the scope keys:admin."""


@command.command("list", short_help="List keys.")
@tenant_option
@json_option("One JSON object per key and line.")
@url_option
def list_keys(*, tenant: str | None, as_json: bool, url: str | None) -> None:
    """List keys, newest first, with those that have ended. A key itself is never shown again."""
    with connected(url) as client:
        keys = list(client.keys.list(tenant=tenant))
    if as_json:
        for key in keys:
            print_json(key)
        return
    rows = [
        (key.id, key.name, _state(key), _day(key.last_used_at), _day(key.created_at), ", ".join(key.scopes))
        for key in keys
    ]
    print_rows(("key", "name", "state", "last used", "created", "scopes"), rows)


@command.command("create", short_help="Make a key.")
@click.argument("name", metavar="NAME")
@click.option(
    "--scope", "scopes", multiple=True, required=True, metavar="SCOPE", help=f"Repeatable: {', '.join(SCOPES)}."
)
@click.option("--expires-in", type=Finite(), metavar="DAYS", help="It opens nothing after that.")
@tenant_option
@json_option("The key with its record as one JSON object on stdout.")
@url_option
def create(
    *,
    name: str,
    scopes: tuple[str, ...],
    expires_in: float | None,
    tenant: str | None,
    as_json: bool,
    url: str | None,
) -> None:
    """Make a key that people call NAME and print its id and itself, which is shown this once."""
    expires_at = in_days(expires_in) if expires_in is not None else None
    with connected(url) as client:
        _show(client.keys.create(name=name, scopes=scopes, expires_at=expires_at, tenant=tenant), as_json)


@command.command("rotate", short_help="Another key in the place of one.")
@click.argument("key_id", metavar="KEY")
@click.option("--keep", "keep_s", type=click.IntRange(0), metavar="S", help="Seconds both open.  [default: a day]")
@tenant_option
@json_option("The new key with its record as one JSON object on stdout.")
@url_option
def rotate(*, key_id: str, keep_s: int | None, tenant: str | None, as_json: bool, url: str | None) -> None:
    """Print a new key, this once, that does what KEY does. For a while KEY opens the same."""
    with connected(url) as client:
        _show(client.keys.rotate(key_id, keep_previous_s=keep_s, tenant=tenant), as_json)


@command.command("revoke", short_help="End keys at once.")
@click.argument("key_ids", metavar="KEY...", nargs=-1, required=True)
@tenant_option
@url_option
def revoke(*, key_ids: tuple[str, ...], tenant: str | None, url: str | None) -> None:
    """End every KEY from the next request on."""
    with connected(url) as client:
        for key_id in key_ids:
            click.echo(f"{client.keys.revoke(key_id, tenant=tenant).id} revoked")


def _show(key: CreatedKey, as_json: bool) -> None:
    if as_json:
        print_json(key)
    else:
        click.echo(f"{key.id} {key.key}")
        click.echo("The key is not shown again.", err=True)


def _state(key: KeyView) -> str:
    if key.revoked_at is not None:
        return f"revoked {_day(key.revoked_at)}"
    if key.expires_at is None:
        return "valid"
    is_over = key.expires_at <= datetime.now(UTC)
    return f"{'ended' if is_over else 'valid until'} {key.expires_at:%Y-%m-%d %H:%M}"


def _day(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M}" if moment else "never"
