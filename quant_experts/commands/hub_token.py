"""``qe hub-token``: a tenant's own token for the Hugging Face Hub."""

from __future__ import annotations

import sys

import click

from quant_experts.client import HubTokenView
from quant_experts.commands.service_client import connected, json_option, print_json, url_option

SAYS = {
    "tenant": "your own, set {}",
    "service": "the service's, which all tenants without one share",
    "none": "none: only public models and datasets are fetched",
}


@click.group("hub-token", short_help="Your own token for gated and private models.")
def command() -> None:
    """The token that your models and datasets are fetched from the hub with. It takes a key with keys:admin."""


@command.command("show", short_help="Whose token is used.")
@json_option("All of it as one JSON object on stdout.")
@url_option
def show(*, as_json: bool, url: str | None) -> None:
    """Say whose token is used. The token itself is never shown."""
    with connected(url) as client:
        _show(client.hub_token(), as_json)


@command.command("set", short_help="Set or replace your own.")
@json_option("All of it as one JSON object on stdout.")
@url_option
def set_token(*, as_json: bool, url: str | None) -> None:
    """Set or replace your own token. It is asked for, or read from stdin: an argument would be seen by others."""
    token = click.prompt("Token", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()
    if not token.strip():
        raise click.UsageError("no token: write it to stdin, as in qe hub-token set < file")
    with connected(url) as client:
        _show(client.set_hub_token(token.strip()), as_json)


@command.command("delete", short_help="Forget your own.")
@json_option("All of it as one JSON object on stdout.")
@url_option
def delete(*, as_json: bool, url: str | None) -> None:
    """Forget your own token; the service's is used again, if it has one."""
    with connected(url) as client:
        _show(client.delete_hub_token(), as_json)


def _show(token: HubTokenView, as_json: bool) -> None:
    if as_json:
        print_json(token)
        return
    when = f"{token.set_at:%Y-%m-%d %H:%M} UTC" if token.set_at else ""
    click.echo(SAYS.get(token.source, token.source).format(when))
