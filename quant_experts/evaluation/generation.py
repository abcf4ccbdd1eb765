"""Greedy replies of a whole model: of the original, or of a finished checkpoint as it is served.

A reply is a few hundred passes through all blocks, so nothing is streamed from disk here: the model is in memory as a
whole, in its own dtype, and plans count it. Rows go one by one, without padding, as everywhere in a run.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from quant_experts.calibration.collate import Sample
from quant_experts.errors import one_line
from quant_experts.evaluation.task_rows import TaskRows
from quant_experts.model.blueprint import Blueprint, load
from quant_experts.model.tensor_file import write_text
from quant_experts.planning.number_text import size_text
from quant_experts.progress import ShouldStop, stop_if

SILENCE = 30.0
"""Seconds within a reply after which the run says that it lives."""
PROC, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
GENERATION_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    OSError,
    ImportError,
    MemoryError,
)
"""What ``generate`` was seen to raise in models that it does not suit, and what a lack of memory raises."""


class NotGenerated(Exception):
    """The replies cannot be made on this machine or with this model. The message says why and what to do."""


@dataclass(frozen=True)
class Generated:
    """``tokens``: of the reply, without the one that ends it. ``ended``: whether the model ended it itself."""

    tokens: tuple[int, ...]
    ended: bool


@dataclass(frozen=True)
class Ends:
    """Tokens that end a reply, and the one that would fill up shorter rows. Both models use those of the original."""

    ends: tuple[int, ...]
    filler: int

    @classmethod
    def of(cls, directory: Path, config: Any, tokenizer: Any) -> Ends:
        """Of generation_config.json, the configuration and the tokenizer together."""
        settings: Any = None
        with contextlib.suppress(OSError, ValueError, TypeError):
            settings = GenerationConfig.from_pretrained(directory, local_files_only=True)
        named = [getattr(holder, "eos_token_id", None) for holder in (settings, config.get_text_config(), tokenizer)]
        ends = {each for ids in named for each in (ids if isinstance(ids, list) else [ids]) if each is not None}
        filler = getattr(tokenizer, "pad_token_id", None)
        return cls(tuple(sorted(ends)), filler if filler is not None else min(ends, default=0))


@contextmanager
def original_model(blueprint: Blueprint) -> Iterator[Any]:
    """The model of ``blueprint`` with all of its weights. Raises NotGenerated when there is no memory for it."""
    model = blueprint.model
    check_room(sum(tensor.nbytes for tensor in model.state_dict().values()), blueprint.device, "the original")
    for name, _ in (*model.named_children(), *model.named_parameters(recurse=False)):
        load(blueprint, name)
    try:
        yield model
    finally:
        model.to("meta")


@contextmanager
def finished_model(directory: Path, device: torch.device) -> Iterator[Any]:
    """The checkpoint in ``directory``, loaded by its own loader. Raises NotGenerated when there is no memory for it."""
    check_room(sum(file.stat().st_size for file in directory.glob("*.safetensors")), device, "the checkpoint")
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    kind = getattr(transformers, next(iter(config["auto_map"])))
    yield kind.from_pretrained(directory, dtype="auto", local_files_only=True).to(device).eval()


def check_room(needed: int, device: torch.device, what: str) -> None:
    """Raises NotGenerated when fewer than ``needed`` bytes are free, where the system tells."""
    free = free_bytes(device)
    if free is not None and free < needed:
        advice = "; say original false to score the checkpoint alone" if what == "the original" else ""
        raise NotGenerated(
            f"generating with {what} takes {size_text(needed)} for its weights alone, and {size_text(free)} of "
            f"{'device memory' if device.type == 'cuda' else 'memory'} are free{advice}"
        )


def free_bytes(device: torch.device) -> int | None:
    """Of the device; of the CPU what Linux says is available, within the limit of the control group."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free: list[int] = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        line = next(line for line in PROC.read_text().splitlines() if line.startswith("MemAvailable:"))
        free.append(1024 * int(line.split()[1]))
    with contextlib.suppress(OSError, ValueError, KeyError):
        cached = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())["inactive_file"]
        used = int((CGROUP / "memory.current").read_text()) - int(cached)
        free.append(int((CGROUP / "memory.max").read_text()) - used)
    return min(free, default=None)


def generate(model: Any, prompt: Sample, *, most: int, ends: Ends, on_token: Callable[[], bool]) -> Generated:
    """The likeliest token each time, at most ``most``; penalties of the model's own generation config are left out.

    ``on_token``: called behind each token; True ends the reply.
    """
    device, dtype = model.device, model.dtype
    inputs = {
        name: tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
        for name, tensor in prompt.inputs.items()
    }
    model.generation_config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=most,
        eos_token_id=list(ends.ends) or None,
        pad_token_id=ends.filler,
    )
    with torch.inference_mode():
        tokens = model.generate(**inputs, stopping_criteria=StoppingCriteriaList([_AfterToken(on_token)]))
    reply = tokens[0, inputs["input_ids"].shape[1] :].tolist()
    has_ended = bool(reply) and reply[-1] in ends.ends
    return Generated(tuple(reply[:-1] if has_ended else reply), has_ended)


class _AfterToken(StoppingCriteria):  # type: ignore[misc]  # transformers has no types
    def __init__(self, on_token: Callable[[], bool]) -> None:
        self._on_token = on_token

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._on_token(), device=input_ids.device)


@dataclass(frozen=True)
class ReplyFile:
    """The replies of one model so far, in the work directory: a run that was killed goes on behind the last one.

    ``key``: replies that were made under another one do not count.
    """

    path: Path
    key: str

    def read(self) -> list[Generated]:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content["key"] == self.key:
                return [Generated(tuple(each["tokens"]), bool(each["ended"])) for each in content["replies"]]
        return []

    def write(self, replies: Sequence[Generated]) -> None:
        write_text(self.path, json.dumps({"key": self.key, "replies": [asdict(each) for each in replies]}))


def generate_all(
    open_model: Callable[[], contextlib.AbstractContextManager[Any]],
    task: TaskRows,
    kept: ReplyFile,
    *,
    most: int,
    ends: Ends,
    should_stop: ShouldStop,
    on_reply: Callable[[int], None],
) -> list[Generated]:
    """A reply for every row; the model is opened only when one is missing. ``on_reply``: gets how many there are, also
    every while within a long reply, so that whoever follows the run sees that it lives.

    Raises NotGenerated, Stopped.
    """
    replies = kept.read()
    on_reply(len(replies))
    if len(replies) == len(task.rows):
        return replies
    said_at = time.monotonic()

    def on_token() -> bool:
        nonlocal said_at
        if time.monotonic() - said_at > SILENCE:
            said_at = time.monotonic()
            on_reply(len(replies))
        return should_stop()

    with contextlib.ExitStack() as opened:
        with _explained():
            model = opened.enter_context(open_model())
        for row in task.rows[len(replies) :]:
            with _explained():
                reply = generate(model, task.prompt(row), most=most, ends=ends, on_token=on_token)
            stop_if(should_stop, "while replies are generated; a later run goes on from there")
            replies.append(reply)
            kept.write(replies)
            on_reply(len(replies))
    return replies


@contextmanager
def _explained() -> Iterator[None]:
    """Raises NotGenerated for what a model that does not generate here raises."""
    try:
        yield
    except GENERATION_ERRORS as error:
        raise NotGenerated(f"{type(error).__name__}: {one_line(error)}") from error
