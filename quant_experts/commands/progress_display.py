"""What a run looks like on a terminal: one live line; without a terminal, one plain line per step. All on stderr."""

from __future__ import annotations

from rich.console import Console

from quant_experts.commands.live_line import LiveLine, clock
from quant_experts.progress import Advanced, BlockFinished, Event, Finished, GroupFitted, Phase, PhaseStarted, Warned

TITLES: dict[Phase, str] = {
    "preparing": "checking the model",
    "calibrating": "reading samples",
    "fitting": "fitting",
    "packing": "writing the checkpoint",
    "verifying": "loading it in a fresh process",
    "evaluating": "comparing with full precision",
    "publishing": "publishing",
}


def block_name(block: int, stack: str | None, index: int | None, part: str | None) -> str:
    """``block 17``, or ``vision block 3`` and ``vision merger`` where the model has several stacks. A name is the index
    in the model, as in ``model.layers.17``; only counts begin at 1."""
    if stack is None:
        return f"block {block}"
    if index is None:
        return f"{stack} {part}" if part else f"{stack}, behind its blocks"
    return f"{stack} block {index}"


def blocks_counted(done: int, blocks: int) -> str:
    """``18 of 28 blocks``."""
    return f"{done} of {blocks} blocks"


def say(text: str) -> None:
    """A line of the result, on stdout, as it is."""
    Console(highlight=False, soft_wrap=True, markup=False, emoji=False).print(text)


class ProgressDisplay(LiveLine):
    """A context manager whose ``on_event`` a run calls.

    While fitting it shows n of N blocks, the block and group in hand, the mean held-out error so far and the time left,
    taken from the blocks that were computed in this run.
    """

    def __init__(self) -> None:
        super().__init__("starting")
        self._errors: list[float] = []
        self._seconds: list[float] = []
        self._blocks = 0
        self._done = 0

    def note(self, text: str) -> None:
        """Something to read that stays on the screen."""
        self.keep(f"qe: {text}")

    def on_event(self, event: Event) -> None:
        match event:
            case PhaseStarted(phase, total):
                self.show(TITLES[phase], done=0, total=total, detail="")
                self._blocks = total or 0 if phase == "fitting" else self._blocks
                self.plain(TITLES[phase])
            case Advanced(phase, done, total):
                self.show(TITLES[phase], done=done, total=total, detail=f"{done} of {total}")
            case GroupFitted(block, blocks, group, stack, index, part):
                self._errors.append(group.error.routed)
                short = ".".join(group.name.split(".")[-2:])
                where = f"{block_name(block, stack, index, part)} · {short}"
                self.show(
                    blocks_counted(self._done, blocks),
                    done=self._done,
                    total=blocks,
                    detail=f"{where} · error so far {self._mean_error():.3%}{self._time_left(blocks)}",
                )
            case BlockFinished():
                self._finish(event)
            case Warned(message):
                self.keep(f"note: {message}")  # the run's warnings are listed at its end, grouped
            case Finished(_, files):
                self.plain(f"{len(files)} files, {sum(file.bytes for file in files):,} bytes")

    def _finish(self, event: BlockFinished) -> None:
        self._done += 1
        if event.resumed:
            self._errors += [group.error.routed for group in event.groups]
        else:
            self._seconds.append(event.seconds)
        detail = f"error so far {self._mean_error():.3%}{self._time_left(event.blocks)}"
        counted = blocks_counted(self._done, event.blocks)
        name = block_name(event.block, event.stack, event.index, event.part)
        self.show(counted, done=self._done, total=event.blocks, detail=f"{name} · {detail}")
        how = "found finished" if event.resumed else f"{event.seconds:.1f} s"
        self.plain(f"{counted} · {name} · {how} · {detail}")

    def _mean_error(self) -> float:
        return sum(self._errors) / max(1, len(self._errors))

    def _time_left(self, blocks: int) -> str:
        if not self._seconds:
            return ""
        left = sum(self._seconds) / len(self._seconds) * (blocks - self._done)
        return f" · about {clock(left)} left"
