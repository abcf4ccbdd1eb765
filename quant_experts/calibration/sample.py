"""What a model is called with for one calibration row."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """What the model is called with for one row.

    ``inputs``: of the processor, batch of one; ``vision``: (tokens,) bool, the image placeholders; ``resized``: whether
    images were made smaller to fit. ``question``: the words before the row's last answer; ``reply``: how many tokens at
    the end are that answer, 0 where a row has none that can be told from what is before it.
    """

    row: int
    inputs: dict[str, Tensor]
    vision: Tensor
    resized: bool
    question: str = ""
    reply: int = 0

    @property
    def tokens(self) -> int:
        return int(self.vision.shape[0])

    @property
    def input_ids(self) -> Tensor:
        """(1, tokens) int64, of the tokens that the model foretells."""
        return self.inputs["input_ids" if "input_ids" in self.inputs else "decoder_input_ids"]


class TooLong(Exception):
    """The row does not fit and cannot be made to; it is skipped and counted."""
