"""Train the small model from scratch on CPU and write its repository with the figures of the run.

    OMP_NUM_THREADS=1 python -m benchmarks.digits.train

Half of the questions ask for a dense caption of the board; AdamW with a one-cycle schedule. The loss is that of the
answers, plus a tenth of that of the questions' own words, so that the whole text is something the model has learned.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.digits import REPOSITORY
from benchmarks.digits.boards import TASKS, draw_question, held_out_questions
from benchmarks.digits.model import make_model, make_tokenizer, save_repository
from benchmarks.digits.reading import Batch, encode, task_accuracy
from quant_experts.calibration.processor import load_processor
from quant_experts.seeding import stable_seed

BATCH = 32
LEARNING_RATE = 8e-4
QUESTION_WEIGHT = 0.1


def loss_of(model: Any, batch: Batch) -> Tensor:
    logits = model(**batch.inputs, use_cache=False).logits[:, :-1].float()
    losses = F.cross_entropy(logits[batch.texts], batch.targets[batch.texts], reduction="none")
    weights = torch.where(batch.answers[batch.texts], 1.0, QUESTION_WEIGHT)
    return (losses * weights).sum() / weights.sum()


def train(directory: Path, *, steps: int, seed: int, report_every: int = 200) -> dict[str, Any]:
    """Returns what it printed: losses, seconds, accuracy per task on held-out digits."""
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed=seed)
    save_repository(make_model(tokenizer, seed=seed), tokenizer, directory)  # the processor is read from files
    processor = load_processor(directory, model.config)
    random = np.random.default_rng(stable_seed(seed, "digits", "training"))
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    checked = held_out_questions(20, seed=1)
    started, losses = time.monotonic(), []
    model.train()
    for step in range(1, steps + 1):
        loss = loss_of(model, encode(processor, [draw_question("train", random) for _ in range(BATCH)]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % report_every == 0:
            seconds, mean = time.monotonic() - started, sum(losses[-report_every:]) / report_every
            model.eval()
            accuracy = {task: round(found.share, 2) for task, found in task_accuracy(model, processor, checked).items()}
            model.train()
            print(f"step {step}  loss {mean:.4f}  {seconds:.0f} s  {accuracy}", flush=True)
    seconds = time.monotonic() - started
    model.eval()
    save_repository(model, tokenizer, directory)
    return {
        "command": "python -m benchmarks.digits.train " + " ".join(sys.argv[1:]),
        "steps": steps,
        "batch": BATCH,
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "final_loss": round(sum(losses[-50:]) / len(losses[-50:]), 4),
        "accuracy_on_held_out_digits": measure(model, processor),
    }


def measure(model: Any, processor: Any, *, per_task: int = 200) -> dict[str, Any]:
    """Of the model as it is stored, in bfloat16."""
    found = task_accuracy(model, processor, held_out_questions(per_task))
    return {
        task: {"share": round(a.share, 4), "interval": [round(x, 4) for x in a.interval], "rows": a.rows}
        for task, a in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=REPOSITORY)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"training on {len(TASKS)} tasks, {arguments.steps} steps of {BATCH}")
    metrics = train(arguments.output, steps=arguments.steps, seed=arguments.seed)
    text = json.dumps(metrics, indent=2)
    (arguments.output / "metrics.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
