"""A runner that computes hashes instead of a model: the same protocol, files, resume and signals, in milliseconds.

    python standin.py STAGE job.json

The directory STAGE directs it, so that a test can wait for a moment and act in it:
``pid`` is written by the runner · ``at-N`` says that block N is about to begin · while ``hold-N`` exists it waits
there · ``crash-N`` is removed and answered with SIGKILL to itself · ``fail``, ``garbage``, ``noise``, ``environment``,
``job``, ``child`` are seen at the start · while ``deaf`` exists a request to stop is not heard · ``pace`` holds the
seconds that a block takes · with ``stacks`` the blocks are of two. A job whose split is ``poison`` kills it each time.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from worker.runner import protocol

BLOCKS = 4
STACKS = [
    {"stack": "vision", "index": 0},
    {"stack": "vision", "part": "projector"},
    {"stack": "language model", "index": 0},
    {"stack": "language model", "index": 1},
]
heard = b""
closed = False


def main(stage: Path, job_file: Path) -> None:
    job = protocol.RunnerJob.model_validate_json(job_file.read_bytes())
    work, output = Path(job.work), Path(job.output)
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def say(message: protocol.Line) -> None:
        channel.write(protocol.encode(message))
        channel.flush()

    (stage / "pid").write_text(str(os.getpid()))
    if (stage / "environment").exists():
        (stage / "environment").write_text(json.dumps(dict(os.environ)))
    if (stage / "job").exists():
        (stage / "job").write_bytes(job_file.read_bytes())
    if (stage / "noise").exists():
        print("a library that talks too much")
    if (stage / "garbage").exists():
        channel.write(b"this is not json\n")
        channel.flush()
    if (stage / "child").exists():
        child = subprocess.Popen(["sleep", "600"])
        (stage / "child").write_text(str(child.pid))
    if (stage / "fail").exists():
        code, message = (stage / "fail").read_text().split(" ", 1)
        say(protocol.ErrorLine(code=code, message=message))
        return

    if job.split == "poison":
        os.kill(os.getpid(), signal.SIGKILL)

    say(protocol.PhaseLine(phase="preparing"))
    say(protocol.PhaseLine(phase="calibrating", total=2))
    say(protocol.AdvancedLine(phase="calibrating", done=2, total=2))
    say(protocol.ForecastLine(done=10.0, left=30.0))
    say(protocol.PhaseLine(phase="fitting", total=BLOCKS))
    chain = hashlib.sha256(Path(job.calibration).read_bytes()).hexdigest()
    finished = resumable(work)
    for block in range(BLOCKS):
        tensors, state = work / "blocks" / f"{block:05}.bin", work / "chain" / f"{block:05}.bin"
        resuming = block < finished
        if not resuming:
            (stage / f"at-{block}").touch()
            while (stage / f"hold-{block}").exists() and not stop_asked():
                time.sleep(0.01)
            linger(stage)
            if stop_asked():
                say(protocol.StoppedLine())
                return
            if (stage / f"crash-{block}").exists():
                (stage / f"crash-{block}").unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            for path in (tensors, state):
                path.parent.mkdir(exist_ok=True)
            # What a block gives depends on all before it, as hidden states do.
            chain = hashlib.sha256(f"{chain}{block}".encode()).hexdigest()
            tensors.write_text(f"block {block}: {chain}")
            state.write_text(chain)
        elif state.is_file():
            chain = state.read_text()
        files = [tensors, *([state] if state.is_file() else [])]
        say(
            protocol.BlockLine(
                block=block,
                blocks=BLOCKS,
                seconds=0.5,
                seconds_by_phase={"fit": 0.5},
                groups=[group(block)],
                files=[described(path, work) for path in files],
                superseded=[f"chain/{block - 2:05}.bin"] if block >= 2 else [],
                resumed=resuming,
                **(STACKS[block] if (stage / "stacks").exists() else {}),
            )
        )
        wait_stored(block)
    say(protocol.PhaseLine(phase="packing"))
    output.mkdir()
    (output / "model.safetensors").write_text("".join((work / f"blocks/{b:05}.bin").read_text() for b in range(BLOCKS)))
    report = {
        "quality": {"kl": 0.25},
        "size": {"effective_bits": 4.5},
        "blocks": [{"groups": [group(0)]}],
        "baseline": {"kl": 0.5},
        "calibration": {"verdict": "thin"},
        "images": {"verdict": "keeps_looking", "swapped": {"full": 2.0, "quantized": 1.8}},
        "acceptance": acceptance(job.accept_if),
    }
    (output / "quality_report.json").write_text(json.dumps(report))
    say(protocol.FinishedLine(output=str(output), files=[described(path, output) for path in sorted(output.iterdir())]))


def resumable(work: Path) -> int:
    """Blocks of the longest prefix that is whole and ends in a hidden state to go on from."""
    whole = 0
    for block in range(BLOCKS):
        if not (work / "blocks" / f"{block:05}.bin").is_file():
            break
        if (work / "chain" / f"{block:05}.bin").is_file():
            whole = block + 1
    return whole


def linger(stage: Path) -> None:
    """Be busy for as long as a block takes."""
    seconds = float((stage / "pace").read_text()) if (stage / "pace").exists() else 0.0
    end = time.monotonic() + seconds
    while time.monotonic() < end and not stop_asked():
        time.sleep(0.01)


def stop_asked() -> bool:
    return hear() and (closed or protocol.STOP in heard)


def wait_stored(block: int) -> None:
    while hear() and not stop_asked() and protocol.stored(block) not in heard:
        select.select([0], [], [], 1.0)


def hear() -> bool:
    """Take in what the supervisor has said; False when the stage wants us deaf."""
    global heard, closed
    if (Path(sys.argv[1]) / "deaf").exists():
        return False
    while not closed and select.select([0], [], [], 0)[0]:
        said = os.read(0, 4096)
        heard, closed = heard + said, said == b""
    return True


def acceptance(limits: dict[str, float] | None) -> dict[str, object] | None:
    if limits is None:
        return None
    if limits.get("max_kl", 1.0) >= 0.25:
        return {"limits": limits, "verdict": "accepted", "missed": []}
    return {"limits": limits, "verdict": "rejected", "missed": ["KL is 0.25, over the limit"]}


def group(block: int) -> dict[str, object]:
    return {"name": f"layers.{block}.qkv", "error": {"base": 0.4, "shared": 0.2, "routed": 0.1}}


def described(path: Path, root: Path) -> protocol.File:
    content = path.read_bytes()
    return protocol.File(
        name=path.relative_to(root).as_posix(), bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
