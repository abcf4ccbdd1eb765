"""What both models say to held-out rows, for people to read beside the figures.

The walk never has a whole model in memory, so nothing is generated: at each place of the row's own answer stands the
token that a model finds most likely after the words before it.
"""

from __future__ import annotations

from pathlib import Path

import torch

from quant_experts.calibration.captured_inputs import Calls
from quant_experts.calibration.processor import load_tokenizer
from quant_experts.evaluation.next_token import after_the_blocks, log_probabilities
from quant_experts.model.block_runner import block_glue
from quant_experts.model.blueprint import Blueprint
from quant_experts.report.data import Reply
from quant_experts.walk.resume_files import HiddenStates

ROWS = 4
MOST_TOKENS = 64
"""Of an answer, from its beginning."""


@torch.no_grad()
def compare_replies(blueprint: Blueprint, calls: Calls, work: Path) -> list[Reply]:
    """Of the first held-out rows with an answer; none for models without a tokenizer of text.

    Raises NumericalFailure naming the row when a logit is not finite.
    """
    wanted = [call for call in calls.held_out if call.reply][:ROWS]
    if not wanted:
        return []
    hidden = HiddenStates(work, calls, calls.first + blueprint.blocks)
    tokenizer = load_tokenizer(blueprint.directory)
    replies = []
    with after_the_blocks(blueprint), block_glue(blueprint.language_model, blueprint.blocks) as glue:
        for call in wanted:
            said = {}
            count = min(call.reply, MOST_TOKENS)
            for stream in ("full", "quantized"):
                states = hidden.of_stream(stream, call).to(blueprint.device)
                behind = glue.run(calls.arguments(call, blueprint.device, stream), states)[0]
                # The state before a token is the one that foretells it.
                places = behind[-call.reply - 1 : -1][:count]
                said[stream] = log_probabilities(blueprint, places, call).argmax(-1).cpu()
            answer = calls.input_ids(call)[-call.reply :][:count]
            words = [
                tokenizer.decode(tokens, skip_special_tokens=True).strip()
                for tokens in (answer, said["full"], said["quantized"])
            ]
            same = float((said["full"] == said["quantized"]).float().mean())
            replies.append(
                Reply(
                    row=call.number,
                    question=call.question,
                    answer=words[0],
                    full=words[1],
                    quantized=words[2],
                    agreement=same,
                )
            )
    return replies
