"""Advice for a failed job: one sentence per failure code."""

from __future__ import annotations

from core.contract.errors import FailureCode

ADVICE: dict[str, str] = {
    FailureCode.UNSUPPORTED_MODEL: (
        "Choose a model of a family that the service knows; a plan says it before a job is made."
    ),
    FailureCode.INVALID_MODEL: "Mend the model's files or name another revision, and fork the job with it.",
    FailureCode.MODEL_NOT_FOUND: (
        "Look at the model's id and revision, and whether the worker may read it; fork the job with what is right."
    ),
    FailureCode.MODEL_UNAVAILABLE: (
        "Retry when the hub answers. If it refuses, whoever runs the service looks at the workers' hub token."
    ),
    FailureCode.INVALID_CALIBRATION: (
        "Mend the rows that it names, upload them as a new dataset, and fork the job with that."
    ),
    FailureCode.DATASET_NOT_FOUND: "Upload the rows again, and fork the job with the new dataset.",
    FailureCode.INVALID_SPEC: "Fork the job, and change what it names.",
    FailureCode.NUMERICAL_FAILURE: (
        "Fork the job with other rows, another seed or more bits; the block's error shows where it began."
    ),
    FailureCode.INVALID_CHECKPOINT: (
        "The files were not what they should be, and nothing was published. Fork the job; if it happens "
        "again, report it."
    ),
    FailureCode.OUT_OF_MEMORY: (
        "Retry on a larger worker, or fork the job with fewer rows. A plan says how much memory it takes."
    ),
    FailureCode.OUT_OF_DISK: "Retry when the worker's disk has room; a plan says how much it takes.",
    FailureCode.STORAGE_UNAVAILABLE: "Retry when the store works again; finished blocks are kept.",
    FailureCode.TIMEOUT: "Retry: it goes on after the last finished block. Or make it again with a longer timeout_s.",
    FailureCode.NO_WORKER: (
        "Retry when workers are there that can take it, or fork the job with a longer wait, a smaller model or another "
        "class of device."
    ),
    FailureCode.NO_PROGRESS: (
        "Look at the attempts below and at the worker's log; retry when the cause is gone. Finished blocks are kept."
    ),
    FailureCode.INTERNAL: "A fault of the service. Retry once; if it comes back, report it with the id of the job.",
}


def advice(code: str) -> str:
    """Empty for an unknown code."""
    return ADVICE.get(code, "")
