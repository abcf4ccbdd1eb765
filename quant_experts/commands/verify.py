"""``qe verify``: is this checkpoint whole, and does it load?"""

from __future__ import annotations

from pathlib import Path

import click


@click.command("verify", short_help="Check digests, load in a fresh process, look at the logits.")
@click.argument("directory", metavar="OUT", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--device", default="cpu", show_default=True, help="Where to load it.")
def command(directory: Path, device: str) -> None:
    """Prove that the checkpoint OUT is whole and loads.

    Compares every file with SHA256SUMS, reads every header, then loads it in a fresh process that has nothing but
    transformers, and checks that its logits are finite.
    """
    from quant_experts.checkpoint.read import read_contents
    from quant_experts.checkpoint.verify import verify_checksums, verify_in_fresh_process

    click.echo(f"{verify_checksums(directory)} files match their digests")
    contents = read_contents(directory)
    click.echo(f"{contents.tensors} tensors in {contents.shards} shard(s), {len(contents.groups)} input groups")
    verify_in_fresh_process(directory, device=device)
    click.echo("it loads in a fresh process, and its logits are finite")
