"""The form of a comparison: the fields of a job, with several schemes and methods."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from app.comparisons.schemas import MOST_CANDIDATES, NewComparison
from app.ui import job_form
from quant_experts.spec.methods import DEFAULT_METHOD

NOT_SHARED = ("scheme", "method", "alias", "exports", "target.max_bytes", "target.max_kl")
FIELDS = tuple(name for name in job_form.FIELDS if name not in NOT_SHARED)
OTHER = "other_schemes"
SCHEMES, METHODS = ("W4A6", "W4A8"), (DEFAULT_METHOD,)
"""Ticked in an empty form."""
OF_A_CANDIDATE = re.compile(r"candidates/\d+/(?P<where>[^:]+): (?P<what>.*)", re.DOTALL)


def checked(
    values: Mapping[str, str], *, schemes: Sequence[str], methods: Sequence[str]
) -> tuple[NewComparison | None, dict[str, str]]:
    """The comparison of every scheme with every method, or the errors by field."""
    pairs = [{"scheme": scheme, "method": method} for scheme in dict.fromkeys(schemes) for method in methods]
    if not 2 <= len(pairs) <= MOST_CANDIDATES:
        return None, {"candidates": _wrong_number(len(pairs))}
    shared = {name: value for name, value in values.items() if name in FIELDS}
    try:
        body = {"model": {}, "calibration": {}, **job_form.body_of(shared), "candidates": pairs}
        return NewComparison.model_validate(body), {}
    except ValidationError as error:
        wrong = job_form.invalid(error)
    match = OF_A_CANDIDATE.fullmatch(wrong.get("", ""))
    if match:  # an error of a candidate belongs to the field that the candidates share
        del wrong[""]
        field = job_form.field_of(match["where"].replace("/", "."))
        wrong[field if field in FIELDS else "candidates"] = match["what"]
    return None, wrong


def _wrong_number(pairs: int) -> str:
    if pairs > MOST_CANDIDATES:
        return f"that makes {pairs} jobs; at most {MOST_CANDIDATES} are compared at once"
    return "tick two schemes, or two methods" if pairs else "tick at least one scheme and one method, and two of either"
