"""Tokens of a dataset's rows as a small table."""

from __future__ import annotations

from collections.abc import Iterator

from quant_experts.client.views.datasets import TokensView

SAID = {
    "tokenizer": "counted by its tokenizer",
    "processor": "as its processor cuts them",
    "estimate": "estimated",
}


def token_lines(tokens: TokensView) -> Iterator[str]:
    whose = "no model in particular" if tokens.model is None else tokens.model
    at = f" at {tokens.commit[:12]}" if tokens.commit else ""
    yield f"{'tokens':<12} {'least':>9} {'median':>9} {'most':>9} {'all rows':>12}   of {whose}{at}"
    for name, one, how in (
        ("  text", tokens.text, SAID.get(tokens.text_by, tokens.text_by)),
        ("  images", tokens.image, SAID.get(tokens.images_by, tokens.images_by)),
        ("  together", tokens.row, ""),
    ):
        if one is not None:
            numbers = f"{one.least:>9,.0f} {one.median:>9,.0f} {one.most:>9,.0f} {one.total:>12,.0f}"
            yield f"{name:<12} {numbers}   {how}".rstrip()
    over = f"{tokens.rows_over:,} of {tokens.rows:,} rows" if tokens.rows_over else "no row"
    yield f"{'':<12} {over} longer than the {tokens.limit:,} tokens that a job takes of one"
    if tokens.note:
        yield f"{'':<12} {tokens.note}"
