"""``qe buckets``: the keys of your own buckets, to which jobs are pushed."""

from __future__ import annotations

import sys

import click

from quant_experts.client import BucketView
from quant_experts.commands.display.dates import to_the_second
from quant_experts.commands.display.printable import printable
from quant_experts.commands.service_client import connected, json_option, print_json, url_option


@click.group("buckets", short_help="Keys of buckets to which jobs are pushed.")
def command() -> None:
    """The keys of your own buckets, for qe push --to s3://bucket/prefix. They take a key with keys:admin."""


@command.command("set", short_help="Set or replace the key of a bucket.")
@click.argument("name", metavar="BUCKET")
@click.option("--access-key-id", required=True, metavar="ID")
@click.option("--endpoint-url", metavar="URL", help="https://…  [default: Amazon's]")
@click.option("--region", metavar="NAME")
@click.option("--path-style", is_flag=True, help="The bucket's name goes into the path.")
@json_option("All but the secret as one JSON object on stdout.")
@url_option
def set_bucket(
    *,
    name: str,
    access_key_id: str,
    endpoint_url: str | None,
    region: str | None,
    path_style: bool,
    as_json: bool,
    url: str | None,
) -> None:
    """Set or replace the key of BUCKET. Its secret is asked for, or read from stdin: an argument would be seen by
    others."""
    secret = click.prompt("Secret", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()
    if not secret.strip():
        raise click.UsageError("no secret: write it to stdin, as in qe buckets set BUCKET … < file")
    with connected(url) as client:
        bucket = client.set_bucket(
            name,
            access_key_id=access_key_id,
            secret_access_key=secret.strip(),
            endpoint_url=endpoint_url,
            region=region,
            path_style=path_style,
        )
        _show(bucket, as_json)


@command.command("list", short_help="List buckets.")
@json_option("One JSON object per bucket and line.")
@url_option
def list_buckets(*, as_json: bool, url: str | None) -> None:
    """List the buckets that you have a key for. Their secrets are never shown."""
    with connected(url) as client:
        for bucket in client.buckets().data:
            _show(bucket, as_json)


@command.command("delete", short_help="Forget the key of a bucket.")
@click.argument("name", metavar="BUCKET")
@url_option
def delete(*, name: str, url: str | None) -> None:
    """Forget the key of BUCKET. What was pushed stays there."""
    with connected(url) as client:
        client.delete_bucket(name)
        click.echo(f"{name} forgotten")


def _show(bucket: BucketView, as_json: bool) -> None:
    if as_json:
        print_json(bucket)
    else:
        where = bucket.endpoint_url or "Amazon"
        click.echo(printable(f"{bucket.name} {bucket.access_key_id} {where} {to_the_second(bucket.set_at)}"))
