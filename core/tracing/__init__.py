"""Where time goes, from a client's request to the last block of its job: one small protocol, and OTLP behind it.

Off unless QE_TRACING says otherwise; then no exporter is loaded, and every call here returns at once.
"""

from __future__ import annotations

from core.settings import Settings
from core.tracing.protocol import OFF, Attributes, Carrier, Span, Tracing, current, part, within

__all__ = [
    "OFF",
    "Attributes",
    "Carrier",
    "Span",
    "Tracing",
    "check_tracing",
    "current",
    "open_tracing",
    "part",
    "within",
]


def check_tracing(settings: Settings) -> None:
    """Raises ValueError when traces are wanted and the packages for them are not installed."""
    if settings.tracing:
        try:
            import core.tracing.otlp  # noqa: F401 -- half a second, only for those who trace
        except ImportError as error:
            raise ValueError(
                f"QE_TRACING is set, but {error.name} is not installed: pip install 'quant-experts[tracing]'"
            ) from error


def open_tracing(settings: Settings, part_of_service: str) -> Tracing:
    """What the process traces with; ``part_of_service``: ``api``, ``worker`` or ``keeper``. Call it after a fork.

    Where spans go, how many, and under which name is said by the standard ``OTEL_*`` variables. Raises ValueError.
    """
    check_tracing(settings)
    if not settings.tracing:
        return OFF
    from core.tracing.otlp import OtlpTracing

    return OtlpTracing(f"quant-experts-{part_of_service}")
