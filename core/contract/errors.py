"""Stable codes of failed jobs. ``GET /v1/jobs/{id}`` carries one in ``error.code``; scripts match on them."""

from __future__ import annotations

from enum import StrEnum


class FailureCode(StrEnum):
    UNSUPPORTED_MODEL = "unsupported_model"
    INVALID_MODEL = "invalid_model"
    MODEL_NOT_FOUND = "model_not_found"
    MODEL_UNAVAILABLE = "model_unavailable"
    """The hub did not answer or refused; worth a retry."""
    INVALID_CALIBRATION = "invalid_calibration"
    DATASET_NOT_FOUND = "dataset_not_found"
    INVALID_SPEC = "invalid_spec"
    NUMERICAL_FAILURE = "numerical_failure"
    INVALID_CHECKPOINT = "invalid_checkpoint"
    OUT_OF_MEMORY = "out_of_memory"
    OUT_OF_DISK = "out_of_disk"
    STORAGE_UNAVAILABLE = "storage_unavailable"
    """The store of datasets, blocks and artifacts did not take or give a file; worth a retry when it works again."""
    TIMEOUT = "timeout"
    NO_WORKER = "no_worker"
    """No worker took it within its ``max_wait_s``."""
    NO_PROGRESS = "no_progress"
    """``QE_BARREN_ATTEMPTS`` attempts in a row ended without a new block."""
    INTERNAL = "internal"
    """A fault of ours; the message carries what the log needs."""

    @classmethod
    def of(cls, text: str) -> FailureCode:
        """The code that another process wrote; INTERNAL for one that is not known here."""
        try:
            return cls(text)
        except ValueError:
            return cls.INTERNAL


RETRYABLE = frozenset(
    {
        FailureCode.MODEL_UNAVAILABLE,
        FailureCode.OUT_OF_MEMORY,
        FailureCode.OUT_OF_DISK,
        FailureCode.STORAGE_UNAVAILABLE,
        FailureCode.TIMEOUT,
        FailureCode.NO_WORKER,
        FailureCode.NO_PROGRESS,
        FailureCode.INTERNAL,
    }
)
"""Failures that the same spec may survive on another try or a larger machine."""
