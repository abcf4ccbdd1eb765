"""How well a model reads boards: teacher-forced logits of answers, and exact matches with their confidence intervals.

An answer counts when every one of its tokens, the end included, is the model's first choice after the right ones
before it. That is exactly when greedy generation writes the answer, at the cost of one forward.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.digits.boards import Question

BATCH = 60
Z = 1.96
"""Of a 95 % interval."""


@dataclass(frozen=True)
class Batch:
    """``inputs``: of the model, padded on the right. ``targets``: (rows, tokens - 1) int64, the next token.
    ``answers``: (rows, tokens - 1) bool, positions whose next token belongs to the answer or ends it. ``texts``: the
    same for every token of text behind the image."""

    inputs: dict[str, Tensor]
    targets: Tensor
    answers: Tensor
    texts: Tensor


def encode(processor: Any, questions: Sequence[Question]) -> Batch:
    """Model inputs of whole conversations, answers included."""
    chats = [
        [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.question}]},
            {"role": "assistant", "content": question.answer},
        ]
        for question in questions
    ]
    texts = [processor.apply_chat_template(chat, tokenize=False) for chat in chats]
    images = [question.image for question in questions]
    encoded = dict(processor(text=texts, images=images, return_tensors="pt", padding=True, padding_side="right"))
    ids, mask = encoded["input_ids"], encoded["attention_mask"].bool()
    tokenizer = processor.tokenizer
    opening = len(tokenizer("<|im_start|>assistant\n")["input_ids"])
    position = torch.arange(ids.shape[1])
    # The last turn begins at the last <|im_start|> and ends with <|im_end|>, behind which a line break is left out.
    first = (position * (ids == tokenizer.convert_tokens_to_ids("<|im_start|>"))).amax(1, keepdim=True) + opening
    last = (position * (ids == tokenizer.convert_tokens_to_ids("<|im_end|>"))).amax(1, keepdim=True)
    seen = (position * (ids == processor.image_token_id)).amax(1, keepdim=True)
    answers = (position >= first) & (position <= last) & mask
    behind = (position > seen) & mask
    return Batch(encoded, ids[:, 1:], answers[:, 1:], behind[:, 1:])


@torch.no_grad()
def answer_logits(model: Any, processor: Any, questions: Sequence[Question]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each batch: logits (n, vocabulary) float32 and targets (n,) of its answer tokens, and the row (n,) of each
    within ``questions``."""
    for start in range(0, len(questions), BATCH):
        batch = encode(processor, questions[start : start + BATCH])
        logits = model(**batch.inputs, use_cache=False).logits[:, :-1]
        rows = batch.answers.nonzero()[:, 0] + start
        yield logits[batch.answers].float(), batch.targets[batch.answers], rows


def wilson(hits: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    share, spread = hits / count, Z * Z / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(middle - half, 0.0), min(middle + half, 1.0)


@dataclass(frozen=True)
class Accuracy:
    hits: int
    rows: int

    @property
    def share(self) -> float:
        return self.hits / self.rows

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.hits, self.rows)


def exact_matches(logits: Tensor, targets: Tensor, rows: Tensor, count: int) -> Tensor:
    """(count,) bool: rows whose answer tokens are all the first choice."""
    wrong = torch.zeros(count).index_add_(0, rows, (logits.argmax(-1) != targets).float())
    return wrong == 0


def by_task(questions: Sequence[Question], right: Tensor) -> dict[str, Accuracy]:
    """right: (questions,) bool. Task → accuracy, and ``all``."""
    tasks = list(dict.fromkeys(question.task for question in questions))
    found = {
        task: [bool(hit) for question, hit in zip(questions, right, strict=True) if question.task == task]
        for task in tasks
    }
    found["all"] = [bool(hit) for hit in right]
    return {task: Accuracy(sum(hits), len(hits)) for task, hits in found.items()}


def task_accuracy(model: Any, processor: Any, questions: Sequence[Question]) -> Mapping[str, Accuracy]:
    """Share of answers that greedy generation gets exactly right, by task and over all."""
    parts = list(answer_logits(model, processor, questions))
    logits, targets, rows = (torch.cat(part) for part in zip(*parts, strict=True))
    return by_task(questions, exact_matches(logits, targets, rows, len(questions)))
