"""Why a plan cannot be made, or a job not be run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    """``code``: as a job would fail with it; ``pointer``: JSON pointer into the body of a job, or empty."""

    code: str
    message: str
    pointer: str = ""


class Unreadable(Exception):
    """The model does not say what a plan needs to know; ``refusal`` says why."""

    def __init__(self, code: str, message: str, pointer: str = "/model/id") -> None:
        super().__init__(message)
        self.refusal = Refusal(code, message, pointer)


class HubUnavailable(Exception):
    """The hub did not answer in time, or with a fault; trying again may help."""
