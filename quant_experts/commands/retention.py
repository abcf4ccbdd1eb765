"""``qe retention``: for how long a service keeps a tenant's things."""

from __future__ import annotations

import click

from quant_experts.commands.display.table import print_rows
from quant_experts.commands.service_client import connected, json_option, print_json, url_option

KINDS = {
    "jobs": "finished jobs with all that belongs to them",
    "events": "events of finished jobs but the last",
    "layers": "reports of finished jobs' blocks",
    "audit": "entries of the audit log",
    "deliveries": "finished deliveries of webhooks",
}


class Days(click.ParamType[int]):
    name = "days"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """0 for ``default``."""
        if isinstance(value, int):
            return value
        if value == "default":
            return 0
        if not isinstance(value, str) or not value.isdecimal() or int(value) == 0:
            self.fail(f"{value!r}: write a number of days from 1 on, or default", param, ctx)
        return int(value)


@click.command("retention", short_help="For how long things are kept.")
@click.option("--jobs", type=Days(), metavar="DAYS", help="Finished jobs; what an alias serves stays.")
@click.option("--events", type=Days(), metavar="DAYS", help="Events of finished jobs but the last.")
@click.option("--layers", type=Days(), metavar="DAYS", help="Reports of finished jobs' blocks.")
@click.option("--audit", type=Days(), metavar="DAYS", help="Entries of the audit log; at least 30.")
@click.option("--deliveries", type=Days(), metavar="DAYS", help="Finished deliveries of webhooks.")
@json_option("All of it as one JSON object on stdout.")
@url_option
def command(*, as_json: bool, url: str | None, **days_by_kind: int | None) -> None:
    """Show it, or change it: a number of DAYS, or "default" for the service's. What is older goes within minutes."""
    changes = {f"{kind}_days": days or None for kind, days in days_by_kind.items() if days is not None}
    with connected(url) as client:
        retention = client.set_retention(changes) if changes else client.retention()
    if as_json:
        print_json(retention)
        return
    rows = [
        (
            title,
            "until deleted" if (days := getattr(retention, f"{kind}_days")) is None else f"{days} days",
            "yours" if f"{kind}_days" in retention.own else "the service's",
        )
        for kind, title in KINDS.items()
    ]
    print_rows(("what", "kept", "whose setting"), rows)
