"""Content negotiation: the representation that the ``Accept`` header prefers (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence


def choose(accept: str | None, offers: Sequence[str]) -> str | None:
    """The preferred one of ``offers``, the first on a tie; None when the client accepts none of them."""
    if not accept or not accept.strip():
        return offers[0]
    ranges = [_parse(part) for part in accept.split(",") if part.strip()]
    weights = [_weight(media_type, ranges) for media_type in offers]
    best = max(weights)
    return offers[weights.index(best)] if best > 0 else None


def _parse(part: str) -> tuple[str, float]:
    media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return media_range, min(max(float(value), 0.0), 1.0)
            except ValueError:
                return media_range, 0.0
    return media_range, 1.0


def _weight(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    """The weight of the most specific range that covers the type."""
    for pattern in (media_type, media_type.split("/")[0] + "/*", "*/*"):
        matches = [weight for media_range, weight in ranges if media_range == pattern]
        if matches:
            return max(matches)
    return 0.0
