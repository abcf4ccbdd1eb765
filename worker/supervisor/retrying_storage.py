"""Storage as a supervisor uses it: passing faults are retried, lasting ones become ``StorageFailed``.

A job may have computed for hours when its files are stored; one dropped connection must not fail it.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from pathlib import Path

from core.contract.errors import FailureCode
from core.storage import Storage
from quant_experts.files import NO_SPACE

logger = logging.getLogger(__name__)

LASTING = NO_SPACE | {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
"""Errors that a retry does not cure."""
WAITS = (0.5, 2.0, 8.0, 20.0)


class StorageFailed(Exception):
    """The store did not take or give a file; ``code`` is what the job fails with."""

    def __init__(self, code: FailureCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class RetryingStorage:
    """``wait(seconds)`` sleeps between two tries and raises when the job is not to go on."""

    def __init__(self, storage: Storage, wait: Callable[[float], None]) -> None:
        self._storage = storage
        self._wait = wait

    def put(self, key: str, source: Path) -> None:
        """Raises StorageFailed."""
        self._with_retries("store", key, lambda: self._storage.put(key, source))

    def fetch(self, key: str, target: Path) -> None:
        """Raises StorageFailed or ObjectMissing."""
        self._with_retries("read", key, lambda: self._storage.fetch(key, target))

    def delete(self, key: str) -> None:
        """Never fails: what stays is swept when the job has ended."""
        try:
            self._storage.delete(key)
        except OSError as error:
            logger.warning("storage: could not delete %s: %s", key, error)

    def _with_retries(self, what: str, key: str, call: Callable[[], None]) -> None:
        waits = list(WAITS)
        while True:
            try:
                return call()
            except FileNotFoundError:  # of our own disk: the store says ObjectMissing
                raise
            except OSError as error:
                if error.errno in NO_SPACE:
                    message = f"no space left to {what} {key}: {error.strerror}; free some, then retry the job"
                    raise StorageFailed(FailureCode.OUT_OF_DISK, message) from error
                if error.errno in LASTING or not waits:
                    reason = error.strerror or str(error) or type(error).__name__
                    message = f"the storage could not {what} {key}: {reason}; when it works again, retry the job"
                    raise StorageFailed(FailureCode.STORAGE_UNAVAILABLE, message) from error
                logger.warning("storage: could not %s %s, trying again: %s", what, key, error)
                self._wait(waits.pop(0))
