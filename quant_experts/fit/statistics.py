"""The statistics of each input group, collected in one pass over the calibration tokens (method.md, section 3).

They are a second moment, counts per channel and a seeded sample of tokens. None grows with the number of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant_experts.errors import NumericalFailure
from quant_experts.seeding import generator

CHUNK = 4096
"""Tokens scored at a time: bounds the (tokens, d) float32 temporaries whatever the caller's batch is."""

MINORITY_SHARE = 0.25
"""Share of the reservoir that the rarer modality gets at least, as far as it has tokens: a caption of 30 tokens beside
1200 image tokens would otherwise leave too few text tokens to cluster."""


@dataclass(frozen=True)
class Observation:
    """The statistics of one input group. T tokens seen, R tokens kept, d input channels.

    ``second_moment``: (d, d) float32, sum over tokens of x xᵀ.
    ``mean_abs``, ``max_abs``: (d,) float32 of |x| over tokens.
    ``counts``: (d,) int64, m_c: tokens that have channel c among their important ones; also by modality, and of the
    first half of the rows alone.
    ``tokens_kept``: (R, d) float32, a uniform sample within each modality, in order of arrival; ``kept_vision``: (R,)
    bool.
    """

    name: str
    tokens: int
    tokens_vision: int
    second_moment: Tensor
    mean_abs: Tensor
    max_abs: Tensor
    counts: Tensor
    counts_vision: Tensor
    counts_text: Tensor
    counts_first_half: Tensor
    tokens_kept: Tensor
    kept_vision: Tensor


def channel_importance(weight: Tensor) -> Tensor:
    """w_c: mean over rows of |W[:, c]|. weight: (out, d), the stacked weights of the group; returns (d,) float32."""
    return weight.abs().mean(0, dtype=torch.float32)


def important_channels(x: Tensor, importance: Tensor, k: int) -> Tensor:
    """C_t as a mask: the k channels of each token with the largest |x_c| w_c.

    x: (tokens, d); importance: (d,); returns (tokens, d) bool. A channel that contributes exactly nothing is never
    important, so a row may hold fewer than k.
    """
    channels, is_counted = _top_channels(x.float().abs(), importance.to(x.device), k)
    return torch.zeros(x.shape, dtype=torch.bool, device=x.device).scatter_(-1, channels, is_counted)


def _top_channels(magnitude: Tensor, importance: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Indices of the k channels with the largest score, (tokens, k) int64, and which of them contribute anything."""
    top, channels = (magnitude * importance).topk(min(k, magnitude.shape[-1]), dim=-1)
    return channels, top > 0


class GroupStatistics:
    """Accumulates an ``Observation``. Call ``update`` with real tokens only, never with padding."""

    def __init__(
        self,
        name: str,
        width: int,
        importance: Tensor,
        *,
        important_channels: int,
        reservoir: int,
        seed: int,
        device: torch.device | str,
    ) -> None:
        self._name = name
        self._k = important_channels
        self._device = torch.device(device)
        self._importance = importance.to(self._device, torch.float32)
        self._tokens = 0
        self._tokens_vision = 0
        self._second_moment = torch.zeros(width, width, dtype=torch.float32, device=self._device)
        # float64: a float32 running sum of 10^5 equal terms is off in the fourth digit.
        self._sum_abs = torch.zeros(width, dtype=torch.float64, device=self._device)
        self._max_abs = torch.zeros(width, dtype=torch.float32, device=self._device)
        self._counts_vision = torch.zeros(width, dtype=torch.int64, device=self._device)
        self._counts_text = torch.zeros(width, dtype=torch.int64, device=self._device)
        self._counts_first_half = torch.zeros(width, dtype=torch.int64, device=self._device)
        self._reservoir = TokenReservoir(reservoir, seed=seed, name=name)

    def update(self, x: Tensor, vision: Tensor, *, first_half: bool = True) -> None:
        """Take in tokens. x: (tokens, d) of any float dtype; vision: (tokens,) bool.

        ``first_half``: which half of the rows they belong to, for the agreement between halves.
        Raises NumericalFailure, naming the group, when a value is not finite.
        """
        x = x.to(self._device)
        vision = vision.to(self._device)
        for start in range(0, x.shape[0], CHUNK):
            self._accumulate(x[start : start + CHUNK].float(), vision[start : start + CHUNK], first_half)
        self._reservoir.update(x, vision)

    def _accumulate(self, x: Tensor, vision: Tensor, first_half: bool) -> None:
        magnitude = x.abs()
        largest = magnitude.amax(0)  # not finite where any value of the channel is not
        if not bool(torch.isfinite(largest).all()):
            bad = int((~torch.isfinite(x)).sum())
            raise NumericalFailure(
                f"input group {self._name}: {bad} of {x.numel()} input values are not finite near token {self._tokens};"
                " the model overflows on this calibration data (try bfloat16 or float32 weights)"
            )
        self._tokens += x.shape[0]
        self._tokens_vision += int(vision.sum())
        self._second_moment.addmm_(x.T, x)
        self._sum_abs += magnitude.sum(0, dtype=torch.float64)
        self._max_abs = torch.maximum(self._max_abs, largest)
        channels, is_counted = _top_channels(magnitude, self._importance, self._k)
        for counts, tokens in ((self._counts_vision, vision), (self._counts_text, ~vision)):
            counts.scatter_add_(0, channels[tokens].flatten(), is_counted[tokens].flatten().long())
        if first_half:
            self._counts_first_half.scatter_add_(0, channels.flatten(), is_counted.flatten().long())

    def finish(self) -> Observation:
        """The statistics of all tokens so far. Raises NumericalFailure when there were none or the sums overflowed."""
        if self._tokens == 0:
            raise NumericalFailure(f"input group {self._name}: no calibration token reached it")
        if not bool(torch.isfinite(self._second_moment).all()):
            raise NumericalFailure(f"input group {self._name}: the second moment of its inputs overflows float32")
        sample, kept_vision = self._reservoir.finish()
        return Observation(
            name=self._name,
            tokens=self._tokens,
            tokens_vision=self._tokens_vision,
            second_moment=self._second_moment,
            mean_abs=(self._sum_abs / self._tokens).float(),
            max_abs=self._max_abs,
            counts=self._counts_vision + self._counts_text,
            counts_vision=self._counts_vision,
            counts_text=self._counts_text,
            counts_first_half=self._counts_first_half,
            tokens_kept=sample.float(),
            kept_vision=kept_vision,
        )


class TokenReservoir:
    """A seeded sample of at most ``capacity`` tokens, uniform within each modality.

    Each token draws a key; the tokens with the largest keys stay. Which tokens stay depends on (seed, name) and on the
    sequence of updates, on nothing else.
    """

    def __init__(self, capacity: int, *, seed: int, name: str) -> None:
        self._capacity = capacity
        self._vision = _Stratum(capacity, generator(seed, name, "reservoir", "vision"))
        self._text = _Stratum(capacity, generator(seed, name, "reservoir", "text"))

    def update(self, x: Tensor, vision: Tensor) -> None:
        """x: (tokens, d), kept in its own dtype and device; vision: (tokens,) bool."""
        start = self._vision.seen + self._text.seen
        arrival = torch.arange(start, start + x.shape[0])
        vision_at = vision.cpu()
        for stratum, is_member in ((self._vision, vision_at), (self._text, ~vision_at)):
            index = is_member.nonzero().flatten()
            if len(index):
                stratum.update(x, index, arrival[index])

    def finish(self) -> tuple[Tensor, Tensor]:
        """Tokens (R, d) in order of arrival and their modality (R,) bool, R ≤ capacity.

        Modalities share the capacity in proportion to the tokens seen, the rarer one at least ``MINORITY_SHARE``.
        Raises ValueError when no token was ever given.
        """
        from_vision, from_text = self._shares()
        parts = [(stratum, count) for stratum, count in ((self._vision, from_vision), (self._text, from_text)) if count]
        if not parts:
            raise ValueError("the reservoir has received no token")
        sample = [stratum.largest(count) for stratum, count in parts]
        tokens = torch.cat([rows for rows, _ in sample])
        arrival = torch.cat([order for _, order in sample])
        modality = torch.cat([torch.full((count,), stratum is self._vision) for stratum, count in parts])
        order = arrival.argsort()
        return tokens[order.to(tokens.device)], modality[order].to(tokens.device)

    def _shares(self) -> tuple[int, int]:
        vision, text = self._vision.seen, self._text.seen
        if vision + text <= self._capacity:
            return vision, text
        minority = min(vision, text)
        share = max(round(self._capacity * minority / (vision + text)), round(self._capacity * MINORITY_SHARE))
        for_minority = min(minority, share)
        rest = self._capacity - for_minority
        return (for_minority, rest) if vision <= text else (rest, for_minority)


class _Stratum:
    """The tokens of one modality with the ``capacity`` largest keys."""

    def __init__(self, capacity: int, source: torch.Generator) -> None:
        self.seen = 0
        self._capacity = capacity
        self._source = source
        self._keys = torch.empty(0, dtype=torch.float64)
        self._arrival = torch.empty(0, dtype=torch.int64)
        self._rows: Tensor | None = None
        """Row i holds the token of key i; rows beyond the keys are room to grow."""

    def update(self, x: Tensor, index: Tensor, arrival: Tensor) -> None:
        """Offer the rows ``index`` of x; only those that stay are copied."""
        self.seen += len(index)
        count = len(self._keys)
        keys = torch.cat([self._keys, torch.rand(len(index), generator=self._source, dtype=torch.float64)])
        stay = torch.zeros(len(keys), dtype=torch.bool)
        stay[keys.topk(min(self._capacity, len(keys))).indices] = True
        new_tokens = stay[count:].nonzero().flatten()
        # A new token takes the place of one that it displaces; only while there is room, a new place.
        free_places = (~stay[:count]).nonzero().flatten()
        place = torch.cat([free_places, torch.arange(count, count + len(new_tokens) - len(free_places))])
        growth = len(new_tokens) - len(free_places)
        self._keys = torch.cat([self._keys, self._keys.new_empty(growth)])
        self._arrival = torch.cat([self._arrival, self._arrival.new_empty(growth)])
        self._keys[place] = keys[count:][new_tokens]
        self._arrival[place] = arrival[new_tokens]
        rows = self._with_room(x, len(self._keys))
        rows[place.to(x.device)] = x[index[new_tokens].to(x.device)]

    def _with_room(self, x: Tensor, count: int) -> Tensor:
        """The buffer, at least ``count`` rows long; it doubles, so that filling it does not copy each token n times."""
        if self._rows is None or len(self._rows) < count:
            length = min(self._capacity, max(count, 2 * (0 if self._rows is None else len(self._rows))))
            larger = torch.empty(length, x.shape[1], dtype=x.dtype, device=x.device)
            if self._rows is not None:
                larger[: len(self._rows)] = self._rows
            self._rows = larger
        return self._rows

    def largest(self, count: int) -> tuple[Tensor, Tensor]:
        """Rows and arrival numbers of the ``count`` tokens with the largest keys."""
        assert self._rows is not None
        index = self._keys.topk(count).indices
        return self._rows[index.to(self._rows.device)], self._arrival[index]
