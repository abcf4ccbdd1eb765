"""Named points at which a process can be told to die, so that a test pulls the plug exactly there.

Nothing happens unless ``QE_CRASH_POINTS`` names a directory. In it a file ``kill-NAME`` is answered with SIGKILL by the
process that reaches NAME, and ``stop-NAME`` with SIGSTOP; the file is removed first, so that it happens once, and a
number in it lets that many passes less one go by. ``reached-NAME`` and ``stopped-NAME`` tell the last such process id.
No service sets the variable.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

VARIABLE = "QE_CRASH_POINTS"
LIBRARY = {
    "tensors.written": "a tensor file has its bytes, under its temporary name and not yet on the disk",
    "tensors.synced": "a tensor file is on the disk under its temporary name",
    "tensors.renamed": "a tensor file has its name",
    "chain.written": "a block's hidden states are durable, its tensors are not",
    "block.written": "a block's tensors are durable, the record that makes it finished is not",
    "block.finished": "a block is finished and nobody was told",
    "checkpoint.checked": "the checkpoint is whole and verified, under its hidden name",
    "checkpoint.named": "the checkpoint has its name and nobody was told",
}
"""Reached in the runner, by the library, which tells them to ``quant_experts.crash_points``."""
SUPERVISOR = {
    "claim.before_commit": "the job is claimed in a transaction that is still open",
    "claim.after_commit": "the job is claimed and nothing has been done for it",
    "spawn.before": "everything that the runner reads is there",
    "spawn.after": "the runner has been started",
    "upload.before": "a block was announced and none of its files is in storage",
    "upload.after": "a block's files are in storage and the ledger does not know",
    "layer.before_commit": "a block's row is in a transaction that is still open",
    "layer.after_commit": "a block's row is committed, superseded objects are still in storage",
    "artifact.uploaded": "an artifact is in storage, others may not be, no row names it",
    "artifacts.before_commit": "the rows of artifacts are in a transaction that has not ended the job",
    "end.before_commit": "the end of the job, its event and its webhook messages are in a transaction still open",
    "end.after_commit": "the job has ended and the scratch directory is still there",
}
KEEPER = {
    "reap.before_commit": "a job was taken from a silent worker in a transaction that is still open",
    "reap.after_commit": "a job was taken from a silent worker and no worker was notified",
    "sweep.before_commit": "block files are deleted from storage, and the rows still name them",
}
API = {
    "create.before_commit": "a job is created in a transaction that is still open",
    "bell.before": "a job is committed and answered, and no worker was notified",
    "dataset.stored": "an upload's bytes are in storage and no row names them",
}
NAMES = {**LIBRARY, **SUPERVISOR, **KEEPER, **API}


def enabled() -> bool:
    """Whether this process listens to a directory of signs."""
    return VARIABLE in os.environ


def reach(name: str) -> None:
    """This process has come to ``name``, one of NAMES."""
    if VARIABLE in os.environ:
        _obey(Path(os.environ[VARIABLE]), name)


def _obey(signs: Path, name: str) -> None:
    assert name in NAMES, f"crash point {name!r} is not listed"
    (signs / f"reached-{name}").write_text(str(os.getpid()))
    if _taken(signs / f"stop-{name}"):
        (signs / f"stopped-{name}").write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)
    if _taken(signs / f"kill-{name}"):
        os.kill(os.getpid(), signal.SIGKILL)


def _taken(sign: Path) -> bool:
    """Whether the sign is there for this pass, and no other process was quicker."""
    try:
        left = int(sign.read_text() or 1)
        if left > 1:
            sign.write_text(str(left - 1))
            return False
        sign.unlink()
    except FileNotFoundError:
        return False
    return True
