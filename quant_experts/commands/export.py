"""``qe export``: a checkpoint for programs that have nothing of ours."""

from __future__ import annotations

from pathlib import Path

import click

from quant_experts.spec.exports import EXPORT_FORMATS


@click.command("export", short_help="Write a checkpoint for vLLM or plain transformers, with nothing of ours.")
@click.argument("checkpoint", metavar="OUT", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--to", "name", type=click.Choice(EXPORT_FORMATS), required=True, help="The format.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="A new directory.")
@click.option("--device", default="cpu", show_default=True, help="Where to load it, as a check.")
def command(checkpoint: Path, name: str, output: Path, device: str) -> None:
    """Write the checkpoint OUT again in a format that engines load with nothing of ours.

    compressed-tensors: the same packed integers, for vLLM, SGLang and transformers. For methods without smoothing and
    experts, such as gptq and fast.

    dequantized: weights in the model's own dtype, with smoothing and shared experts folded in. Anything loads it; it is
    as large as the original model.

    What the export has not that the checkpoint has is printed, and stands in the export's README.md. It is loaded in a
    fresh process before the directory gets its name.
    """
    from quant_experts.export import FORMATS, export
    from quant_experts.planning.number_text import size_text

    result = export(checkpoint, name, output, device=device)
    click.echo(f"{result.directory}: {size_text(result.bytes)} in {len(result.files)} files")
    for loss in result.losses:
        click.echo(f"not in it: {loss}")
    if result.loaded:
        click.echo("it loads in a fresh process, and its logits are finite")
    else:
        click.echo(f"it was not loaded here: the package {FORMATS[name].needs} is not installed")
    click.echo(f"opens with: {FORMATS[name].opens_with}")
