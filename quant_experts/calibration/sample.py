"""The model inputs of one calibration row."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """The model inputs of one row.

    ``inputs``: from the processor, a batch of one. ``vision``: (tokens,) bool, the image placeholders. ``resized``:
    whether images were made smaller to fit. ``question``: the text before the row's last answer. ``reply``: number of
    tokens at the end that are this answer; 0 where the answer cannot be separated from the text before it.
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
        """(1, tokens) int64, of the tokens that the model predicts."""
        return self.inputs["input_ids" if "input_ids" in self.inputs else "decoder_input_ids"]


class TooLong(Exception):
    """The row does not fit and cannot be made to; it is skipped and counted."""
