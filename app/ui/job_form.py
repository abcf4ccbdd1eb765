"""The form of a job. Its fields are named like the pointers of ``JobSpec``, so that an error finds its field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from app.ui import forms
from app.web.problems import Problem
from core.contract.spec import JobSpec
from quant_experts.spec.choices import LIMITS_OF_SCORES
from quant_experts.spec.methods import DEFAULT_METHOD

UPLOADED, HUB = "calibration.dataset", "calibration.hub"
TASK, TASK_HUB, TASK_ROWS = "evaluation.dataset", "evaluation.hub", ("evaluation.rows", "evaluation.max_new_tokens")
HELD_OUT = "held-out"
FIELDS = (
    *("model.id", "model.revision", UPLOADED, HUB, "calibration.split", "scheme", "method", "name", "alias", "labels"),
    *("options.samples", "options.seed", "options.group_size", "options.shared_rank", "options.routed_rank"),
    *("options.experts", "options.important_channels", "options.adapter_dtype", "options.refine", "options.vision"),
    *("target.max_bytes", "target.max_kl", "accept_if.max_kl", "accept_if.min_top1_agreement"),
    *(TASK, TASK_HUB, *TASK_ROWS, "evaluation.original"),
    *(f"accept_if.{limit}" for limit in LIMITS_OF_SCORES),
    *(
        "accept_if.max_perplexity_increase",
        "accept_if.min_image_sensitivity",
        "exports",
        "priority",
        "device",
        "max_wait_s",
    ),
)
TITLES = {
    "model.id": "Model",
    "model.revision": "Revision",
    UPLOADED: "Calibration rows",
    "calibration.split": "Split",
    "scheme": "Scheme",
    "method": "Method",
    "name": "Name",
    "alias": "Alias",
    "labels": "Labels",
    "max_wait_s": "Longest wait",
    "exports": "Exports",
    TASK: "Rows of the task",
    "evaluation": "Your own task",
    "candidates": "Schemes and methods",
    "target": "Target of the search",
    "": "The job",
}
SENTENCES = {
    ("model.id", "missing"): "name a model",
    ("model.id", "string_pattern_mismatch"): "write owner/name, as on the hub, or local/<directory>",
    (UPLOADED, "missing"): "choose an upload, or name a dataset on the hub",
    (UPLOADED, "string_pattern_mismatch"): "write owner/name, as on the hub",
}
"""Messages by field and type of error, where those of the schema do not fit a form."""
NUMBERED = ("options", "target", "accept_if", "evaluation", "priority", "max_wait_s")
"""Parts and fields whose values may be numbers; elsewhere ``2026`` is a name."""
INTEGER, DECIMAL = re.compile(r"-?[0-9]{1,20}"), re.compile(r"[0-9]{0,20}\.?[0-9]{1,20}(e-?[0-9]{1,2})?")
WORDS = ("scheme", "method", "name", "alias", "priority", "device", "max_wait_s")
"""Fields outside of parts."""
DEFAULTS = {"scheme": "W4A6", "method": DEFAULT_METHOD, "calibration.split": "train"}


def values_of_spec(spec: Mapping[str, Any]) -> dict[str, str]:
    """The form's values for a spec of ``fork.requested_spec``. Values without a field are left out."""
    flat = {
        f"{part}.{name}": str(value)
        for part in ("model", "calibration", "options", "target", "evaluation", "accept_if")
        for name, value in (spec.get(part) or {}).items()
        if value is not None
    }
    flat |= {name: str(spec[name]) for name in WORDS if spec.get(name)}
    flat["exports"] = ", ".join(spec.get("exports") or ())
    flat["labels"] = ", ".join(f"{key}={value}" for key, value in (spec.get("labels") or {}).items())
    if not flat.get(UPLOADED, "").startswith("ds_"):
        flat[HUB] = flat.pop(UPLOADED, "")
    if spec.get("evaluation"):
        flat["evaluation.original"] = "" if spec["evaluation"].get("original", True) else "no"
        if not flat.setdefault(TASK, HELD_OUT).startswith(("ds_", HELD_OUT)):
            flat[TASK_HUB] = flat.pop(TASK)
    return {name: flat.get(name, "") for name in FIELDS}


def body_of(values: Mapping[str, str]) -> dict[str, Any]:
    """The body of ``POST /v1/jobs`` from the filled-in fields, not validated."""
    body: dict[str, Any] = {}
    for name, value in values.items():
        if not value or name in (HUB, TASK_HUB, "labels", "exports"):
            continue
        part, _, field = name.rpartition(".")
        (body.setdefault(part, {}) if part else body)[field] = _number(value) if (part or name) in NUMBERED else value
    hub = values.get(HUB, "")
    if hub:
        body.setdefault("calibration", {})["dataset"] = hub
    _say_task(body, values.get(TASK_HUB, ""))
    if values.get("exports"):
        body["exports"] = [name.strip() for name in values["exports"].split(",")]
    pairs = [pair.partition("=") for pair in values.get("labels", "").split(",") if pair.strip()]
    if pairs:
        body["labels"] = {key.strip(): value.strip() for key, _, value in pairs}
    return body


def _say_task(body: dict[str, Any], hub: str) -> None:
    """Name its rows: a dataset of the hub is taken instead of an upload, and held-out rows have no name. Without rows
    there is no task, whatever the other fields say."""
    if hub:
        body.setdefault("evaluation", {})["dataset"] = hub
    task = body.get("evaluation", {})
    if "dataset" not in task:
        body.pop("evaluation", None)
    elif task["dataset"] == HELD_OUT:
        task["dataset"] = None
    if "original" in task:
        task["original"] = task["original"] != "no"


def changes_of(values: Mapping[str, str], spec: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a fork: fields that differ from the spec of its parent; null removes one. Values without a field of
    the form stay."""
    before = values_of_spec(spec)
    if values.get(HUB):
        values = {**values, UPLOADED: ""}
    names = {name for name in FIELDS if values.get(name, "") != before[name]}
    if names & {HUB, UPLOADED}:
        names = names - {HUB} | {UPLOADED}
    if values.get(TASK_HUB):
        values = {**values, TASK: ""}
    if names & {TASK_HUB, TASK}:
        names = names - {TASK_HUB} | {TASK}
    body, patch = body_of(values), dict[str, Any]()
    for name in sorted(names):
        part, _, field = name.rpartition(".")
        if name == "labels":
            nulls = dict.fromkeys(spec.get("labels") or {})
            patch["labels"] = {**nulls, **body.get("labels", {})}
        elif part:
            patch.setdefault(part, {})[field] = body.get(part, {}).get(field)
        else:
            patch[name] = body.get(name)
    for part in {"target", "accept_if", "evaluation"} & patch.keys() - body.keys():
        patch[part] = None  # the last of its fields was emptied
    return patch


def checked(values: Mapping[str, str]) -> tuple[JobSpec | None, dict[str, str]]:
    """The spec, or the errors by field."""
    try:
        return JobSpec.model_validate({"model": {}, "calibration": {}, **body_of(values)}), {}
    except ValidationError as error:
        return None, invalid(error)


def invalid(error: ValidationError | RequestValidationError) -> dict[str, str]:
    return forms.invalid(error.errors(), sentences=SENTENCES, field=field_of)


def refused(problem: Problem) -> dict[str, str]:
    """Errors of a Problem by field."""
    return forms.refused(problem, field=field_of)


def field_of(pointer: str) -> str:
    """The field of a pointer, which may be longer: ``labels.Team``, ``options.group_size.literal``."""
    pointer = pointer.removeprefix("body.")
    while pointer and pointer not in FIELDS and pointer not in TITLES:
        pointer = pointer.rpartition(".")[0]
    return pointer


def _number(value: str) -> float | str:
    """A number where the value is one: group sizes are numbers or a word."""
    if INTEGER.fullmatch(value):
        return int(value)
    return float(value) if DECIMAL.fullmatch(value) else value
