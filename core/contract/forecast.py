"""How much of a job is left, as the ledger keeps it in ``jobs.progress`` and as clients see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

FORECAST = "forecast"
"""Its name in ``jobs.progress``."""


@dataclass(frozen=True)
class Forecast:
    """Seconds of the whole job, all phases together: ``done``, and ``left`` as predicted ``at`` a Unix time."""

    done: float
    left: float
    at: float

    @classmethod
    def of(cls, progress: Mapping[str, Any]) -> Forecast | None:
        """None when the runner has not said yet."""
        values = progress.get(FORECAST)
        return None if values is None else cls(**values)

    def as_json(self) -> dict[str, float]:
        return asdict(self)

    def as_of(self, now: float) -> dict[str, float]:
        """``fraction`` of the job's time that has passed, 0 to 1, and ``eta_seconds`` to its end."""
        interval = max(0.0, now - self.at)
        done, left = self.done + interval, max(0.0, self.left - interval)
        return {"fraction": round(done / max(done + left, 1e-9), 4), "eta_seconds": round(left, 1)}
