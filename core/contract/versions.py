"""Versions of the spec, so that old workers leave new jobs alone.

A job carries the lowest version that understands what it says, and the claim of a worker takes only what that worker
understands. If you change what a spec may say, raise ``UNDERSTOOD`` and name in ``SINCE`` what is new; a test holds
them against the schema. What a job does not use is left out of its row, so old workers go on with everything else.
"""

from __future__ import annotations

from typing import Any

from core.contract.spec import JobSpec
from quant_experts.spec.choices import LIMITS_OF_SCORES
from quant_experts.spec.methods import METHOD_VERSION

UNDERSTOOD = 8
"""The newest version that this code understands."""
SINCE: dict[str, int] = (
    {"options.method_version": 2, "options.weight_grid": 2, "options.method_version=3": 3}
    | {f"method={name}": 4 for name in ("fast", "balanced")}
    | {"method=best": 5, "options.rounding=descent": 5}
    | {"exports": 6}
    | {"options.method_version=4": 7, "options.smoothing=rotation": 7}
    | {"evaluation": 8}
    | {f"accept_if.{limit}": 8 for limit in LIMITS_OF_SCORES}
)
"""``options.field``, or ``method=value`` for a new value of an old field, with the version that it came with. A new
field is None where it is not used."""
STORED_FIELDS = set(JobSpec.model_fields) - {"alias", "max_wait_s", "priority", "device"}
"""Fields of a spec that are stored as the job's ``spec``. The others have columns of their own; no worker needs them to
compute."""


def stored(spec: JobSpec) -> tuple[dict[str, Any], int]:
    """What a job's row keeps of its spec, and the version that a worker must understand."""
    document = spec.model_dump(mode="json", include=STORED_FIELDS)
    # The version that options left out are read by, so that a default that changes later changes no job. The first
    # is what a job without one has.
    version = spec.options.method_version or METHOD_VERSION
    document["options"]["method_version"] = version if version > 1 else None
    minimum = 1
    for name, since in SINCE.items():
        path, _, value = name.partition("=")
        *folders, field = path.split(".")
        holder: Any = document
        for folder in folders:
            holder = (holder or {}).get(folder)
        if holder is None:
            continue
        if str(holder.get(field)) == value or (not value and holder.get(field) is not None):
            minimum = max(minimum, since)
        elif not value:
            holder.pop(field, None)
    return document, minimum
