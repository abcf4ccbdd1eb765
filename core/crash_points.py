"""Named points at which a process can be told to die, so that a test pulls the plug exactly there.

Nothing happens unless ``QE_CRASH_POINTS`` names a directory, which no service sets. The first process that reaches NAME
and finds a file ``kill-NAME`` there removes it and kills itself with SIGKILL; with ``stop-NAME`` it stops itself with
SIGSTOP. A number N in the file means the Nth time that NAME is reached. ``reached-NAME`` and ``stopped-NAME`` hold the
id of the last process that reached NAME or stopped there.
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
    "notify.before": "a job is committed and answered, and no worker was notified",
    "dataset.stored": "an upload's bytes are in storage and no row names them",
}
PUSHER = {
    "push.taken": "a push is taken, and nothing of it has been sent",
    "push.file_there": "a file of a push is at its destination, others may not be",
    "push.uploaded": "a push is complete at its destination, and the ledger does not know",
    "push.before_commit": "the end of a push and its event are in a transaction still open",
}
"""Reached in the keeper while it pushes."""
NAMES = {**LIBRARY, **SUPERVISOR, **KEEPER, **PUSHER, **API}


def enabled() -> bool:
    """Whether this process looks for such files."""
    return VARIABLE in os.environ


def reach(name: str) -> None:
    """This process has come to ``name``, one of NAMES."""
    if VARIABLE in os.environ:
        _obey(Path(os.environ[VARIABLE]), name)


def _obey(directory: Path, name: str) -> None:
    assert name in NAMES, f"crash point {name!r} is not listed"
    (directory / f"reached-{name}").write_text(str(os.getpid()))
    if _taken(directory / f"stop-{name}"):
        (directory / f"stopped-{name}").write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)
    if _taken(directory / f"kill-{name}"):
        os.kill(os.getpid(), signal.SIGKILL)


def _taken(file: Path) -> bool:
    """Whether the file is there and means this pass; it is removed then. Of several processes one gets it."""
    try:
        count = int(file.read_text() or 1)
        if count > 1:
            file.write_text(str(count - 1))
            return False
        file.unlink()
    except FileNotFoundError:
        return False
    return True
