"""Everything that a user's input can get wrong, as one family of exceptions with stable codes.

Each message names what is wrong, where, and what to do. The code is what a service stores and a script matches.
"""

from __future__ import annotations


class QuantExpertsError(Exception):
    """Base of all errors that the input, not the program, is responsible for."""

    code = "error"


def one_line(error: BaseException, most: int = 200) -> str:
    """What ``error`` says, on one line of at most ``most`` characters; its type when it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


class UnsupportedModel(QuantExpertsError):
    """The architecture is not one that the walk knows."""

    code = "unsupported_model"


class InvalidModel(QuantExpertsError):
    """Files are missing, truncated, not safetensors, or do not fit the configuration."""

    code = "invalid_model"


class InvalidCalibration(QuantExpertsError):
    """A calibration row cannot be used; the message names the row."""

    code = "invalid_calibration"


class InvalidSpec(QuantExpertsError):
    """The options cannot be applied to this model, for example a group size that does not divide a width."""

    code = "invalid_spec"


class NumericalFailure(QuantExpertsError):
    """A value is not finite or a factorisation fails after damping; the message names the input group."""

    code = "numerical_failure"


class InvalidCheckpoint(QuantExpertsError):
    """A written checkpoint does not hold what it promises: digests, tensors or logits."""

    code = "invalid_checkpoint"


class DiskFull(QuantExpertsError):
    """There is no room for what the run writes; what is finished so far is kept."""

    code = "out_of_disk"


class Stopped(QuantExpertsError):
    """The caller asked to stop; what is finished so far is on disk and a later run resumes from it."""

    code = "stopped"
