"""What a plan and a job say of the user's own task: the bounds of the service, and the dataset that is evaluated on."""

from __future__ import annotations

from core.contract.spec import JobSpec
from core.settings import Settings
from quant_experts.planning.errors import Refusal


def bounds_refusal(spec: JobSpec, settings: Settings) -> Refusal | None:
    """Why the service takes no evaluation of that size; None where it does."""
    if spec.evaluation is None:
        return None
    for field, most in (("rows", settings.max_evaluation_rows), ("max_new_tokens", settings.max_evaluation_tokens)):
        asked = getattr(spec.evaluation, field)
        if asked > most:
            message = f"evaluation: {field} is {asked}, and this service takes at most {most}"
            return Refusal("invalid_spec", message, f"/evaluation/{field}")
    return None
