"""The span of an attempt, ended by the worker or, when that one died, by the keeper."""

from __future__ import annotations

from core.tracing import Attributes, Carrier, Span, Tracing
from worker.ledger.attempts import Hold


def attempt_span(
    tracing: Tracing,
    hold: Hold,
    *,
    tenant: str,
    worker: str,
    model: str,
    scheme: str,
    method: str,
    carrier: Carrier | None,
    began: float | None = None,
) -> Span:
    """The same span from whoever ends it: the worker, or the keeper when that one was not heard of."""
    attributes: Attributes = {
        "qe.job.id": hold.job_id,
        "qe.attempt": hold.attempt,
        "qe.tenant": tenant,
        "qe.worker": worker,
        "qe.model": model,
        "qe.scheme": scheme,
        "qe.method": method,
    }
    return tracing.attempt(hold.job_id, hold.attempt, attributes, carrier=carrier, began=began)
