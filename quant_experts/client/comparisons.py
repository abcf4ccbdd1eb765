"""Comparisons: several ways to quantize one model, one table, and what nothing beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Required, TypedDict, TypeVar

from pydantic import PrivateAttr

from quant_experts.client.effects import Operation, Stream, last_of
from quant_experts.client.operation import Awaited, Blocking, Operations, bound, bound_entries, listing, operation
from quant_experts.client.polling import SILENCE, poll
from quant_experts.client.requests import comparisons as requests
from quant_experts.client.views.comparisons import ComparisonView
from quant_experts.client.views.datasets import DatasetView

C = TypeVar("C", bound="ComparisonOperations[Any]")
EVERY = 2.0
"""Seconds between two looks at a comparison that is waited for."""


class Candidate(TypedDict, total=False):
    """One way to quantize the model; ``options`` are laid over those of the comparison."""

    scheme: Required[str]
    method: str
    options: Mapping[str, Any]
    target: Mapping[str, Any]
    label: str


class ComparisonOperations(Operations, Generic[C]):
    """A comparison as it was when it was asked for, and what can be done with it."""

    id: str
    finished: bool

    @operation
    def refresh(self) -> Operation[C]:
        """The comparison as it is now."""
        return self._now()

    @listing
    def watch(self, *, every: float = EVERY, silence: float = SILENCE) -> Stream[C]:
        """It as it is now, and again each time that a job of it began or ended, until all have."""
        return self._changes(every, silence)

    @operation
    def wait(self, *, every: float = EVERY, silence: float = SILENCE) -> Operation[C]:
        """The finished comparison.

        Raises ApiError, or ConnectionFailed when the service was not heard of for ``silence`` seconds.
        """
        last = yield from last_of(self._changes(every, silence))
        assert last is not None
        return last

    @operation
    def cancel(self) -> Operation[C]:
        """Cancel every job of it that has not ended."""
        return bound(self, requests.cancel_comparison(self._kind(), self.id))

    @operation
    def delete(self) -> Operation[None]:
        """Cancel what has not ended and forget the comparison; its jobs stay."""
        return self._send(requests.delete_comparison(self.id))

    @operation
    def plot(self) -> Operation[str]:
        """Size against KL, with the frontier, as SVG."""
        return self._send(requests.comparison_plot(self.id))

    def _kind(self) -> type[C]:
        return type(self)  # type: ignore[return-value]

    def _now(self) -> Operation[C]:
        return bound(self, requests.get_comparison(self._kind(), self.id))

    def _changes(self, every: float, silence: float) -> Stream[C]:
        return poll(self._now, is_over=lambda comparison: comparison.finished, every=every, silence=silence)


class Comparison(ComparisonView, ComparisonOperations["Comparison"], Blocking):
    _transport: Any = PrivateAttr()


class AsyncComparison(ComparisonView, ComparisonOperations["AsyncComparison"], Awaited):
    _transport: Any = PrivateAttr()


class ComparisonsOperations(Operations, Generic[C]):
    _comparison: type[C]

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    @operation
    def create(
        self,
        *,
        model: str,
        calibration: str | DatasetView,
        candidates: Sequence[Candidate],
        revision: str | None = None,
        split: str | None = None,
        options: Mapping[str, Any] | None = None,
        evaluation: Mapping[str, Any] | None = None,
        accept_if: Mapping[str, Any] | None = None,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        timeout_s: int | None = None,
        idempotency_key: str | None = None,
    ) -> Operation[C]:
        """Queue one job per candidate, two to sixteen, all on the same model and rows, all or none."""
        request = requests.create_comparison(
            self._comparison,
            model=model,
            calibration=calibration,
            revision=revision,
            split=split,
            idempotency_key=idempotency_key,
            candidates=list(candidates),
            options=options,
            evaluation=evaluation,
            accept_if=accept_if,
            name=name,
            labels=labels,
            timeout_s=timeout_s,
        )
        return bound(self, request)

    @operation
    def get(self, comparison_id: str) -> Operation[C]:
        return bound(self, requests.get_comparison(self._comparison, comparison_id))

    @listing
    def list(self) -> Stream[C]:
        """Comparisons, newest first."""
        return bound_entries(self, requests.list_comparisons(self._comparison))

    @operation
    def cancel(self, comparison_id: str) -> Operation[C]:
        """Cancel every job of it that has not ended."""
        return bound(self, requests.cancel_comparison(self._comparison, comparison_id))

    @operation
    def delete(self, comparison_id: str) -> Operation[None]:
        """Cancel what has not ended and forget the comparison; its jobs stay."""
        return self._send(requests.delete_comparison(comparison_id))


class Comparisons(Blocking, ComparisonsOperations[Comparison]):
    _comparison = Comparison


class AsyncComparisons(Awaited, ComparisonsOperations[AsyncComparison]):
    _comparison = AsyncComparison
