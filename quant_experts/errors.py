"""The errors that a user's input can cause, as one family of exceptions with stable codes.

Each message says what is wrong, where, and what to do. A service stores the code, and a script matches it.
"""

from __future__ import annotations


class QuantExpertsError(Exception):
    """Base of all errors whose cause is the input and not the program."""

    code = "error"


def one_line(error: BaseException, most: int = 200) -> str:
    """What ``error`` says, on one line of at most ``most`` characters; its type when it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


class UnsupportedModel(QuantExpertsError):
    """The walk does not support the architecture."""

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
    """Digests, tensors or logits of a written checkpoint are wrong."""

    code = "invalid_checkpoint"


class DiskFull(QuantExpertsError):
    """There is no room for what the run writes; what is finished so far is kept."""

    code = "out_of_disk"


class Stopped(QuantExpertsError):
    """The caller asked to stop; what is finished so far is on disk and a later run resumes from it."""

    code = "stopped"
