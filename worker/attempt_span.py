"""The span of an attempt, ended by the worker or, when that one died, by the keeper."""

from __future__ import annotations

from core.tracing import Attributes, Carrier, Span, Tracing
from worker.ledger.attempts import AttemptRef


def attempt_span(
    tracing: Tracing,
    ref: AttemptRef,
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
        "qe.job.id": ref.job_id,
        "qe.attempt": ref.attempt,
        "qe.tenant": tenant,
        "qe.worker": worker,
        "qe.model": model,
        "qe.scheme": scheme,
        "qe.method": method,
    }
    return tracing.attempt(ref.job_id, ref.attempt, attributes, carrier=carrier, began=began)
