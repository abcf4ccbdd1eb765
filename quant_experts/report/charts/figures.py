"""Figures on the page: read from the report by their path, shown rounded, marked with path and full value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from markupsafe import Markup

from quant_experts.report.charts import numbers

FORMATS: Mapping[str, Callable[[Any], str]] = {
    "number": numbers.number,
    "perplexity": numbers.perplexity,
    "deviation": numbers.deviation,
    "percent": numbers.percent,
    "points": numbers.points,
    "size": numbers.size,
    "count": numbers.count,
    "bits": numbers.bits,
    "decibel": numbers.decibel,
}


class Figures:
    """``report``: the JSON of a quality report. Called with a path such as ``quality.kl`` or ``blocks.0.seconds``."""

    def __init__(self, report: Mapping[str, Any]) -> None:
        self._report = report

    def value(self, path: str) -> Any:
        """None where a part of the path is not there."""
        value: Any = self._report
        for step in path.split("."):
            if value is None:
                return None
            value = value[int(step)] if isinstance(value, list) else value.get(step)
        return value

    def __call__(self, path: str, form: str = "number") -> Markup:
        """``<data data-at="quality.kl" value="0.01234">0.0123</data>``; an en dash where there is no such figure."""
        value = self.value(path)
        if value is None:
            return Markup(numbers.MISSING)  # noqa: S704 -- a constant
        return Markup('<data data-at="{}" value="{}">{}</data>').format(path, value, FORMATS[form](value))
