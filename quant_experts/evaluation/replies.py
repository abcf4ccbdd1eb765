"""The answers of both models to held-out rows, for people to read beside the figures.

The walk never holds a whole model, so nothing is generated. At each position of the row's own answer stands the token
that a model finds most likely after the tokens before it.
"""

from __future__ import annotations

from pathlib import Path

import torch

from quant_experts.calibration.captured_inputs import CapturedInputs
from quant_experts.calibration.processor import load_tokenizer
from quant_experts.evaluation.next_token import last_hidden_states, log_probabilities
from quant_experts.model.blueprint import Blueprint
from quant_experts.report.data import Reply

ROWS = 4
MOST_TOKENS = 64
"""Of an answer, from its beginning."""


@torch.no_grad()
def compare_replies(blueprint: Blueprint, inputs: CapturedInputs, work: Path) -> list[Reply]:
    """Of the first held-out rows with an answer; none for models without a tokenizer of text.

    Raises NumericalFailure naming the row when a logit is not finite.
    """
    rows = [row for row in inputs.held_out if row.reply][:ROWS]
    if not rows:
        return []
    tokenizer = load_tokenizer(blueprint.directory)
    replies = []
    with last_hidden_states(blueprint, inputs, work) as states_of:
        for row in rows:
            count = min(row.reply, MOST_TOKENS)
            tokens = {"answer": inputs.input_ids(row)[-row.reply :][:count]}
            for stream in ("full", "quantized"):
                # The state before a token is the one that predicts it.
                states = states_of(row, stream)[-row.reply - 1 : -1][:count]
                tokens[stream] = log_probabilities(blueprint, states, row).argmax(-1).cpu()
            words = {name: tokenizer.decode(ids, skip_special_tokens=True).strip() for name, ids in tokens.items()}
            agreement = float((tokens["full"] == tokens["quantized"]).float().mean())
            replies.append(Reply(row=row.number, question=row.question, agreement=agreement, **words))
    return replies
