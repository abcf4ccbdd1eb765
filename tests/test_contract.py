"""What a job may say, held against the library and against the workers that read it."""

from __future__ import annotations

import hashlib
import json
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from core.contract import spec as contract
from core.contract import versions
from core.contract.errors import FailureCode
from core.ledger.states import FINISHED, TRANSITIONS, JobStatus, Phase
from quant_experts import errors, progress
from quant_experts.fit import reconstruction, rounding, smoothing
from quant_experts.spec import schemes, slots
from quant_experts.spec import specification as config


def test_every_choice_of_a_slot_is_a_file_and_every_file_is_a_choice() -> None:
    assert set(slots.SMOOTHINGS) == set(smoothing.names())
    assert set(slots.ROUNDINGS) == set(rounding.names())
    assert set(slots.RECONSTRUCTIONS) == set(reconstruction.names())


def test_the_api_offers_the_presets_that_the_library_has() -> None:
    slots = ("smoothing", "rounding", "reconstruction")
    presets = {name: tuple(preset[slot] for slot in slots) for name, preset in config.PRESETS.items()}
    assert presets == contract.METHODS


def test_the_options_of_a_job_are_fields_of_the_librarys_spec_with_the_same_bounds() -> None:
    assert set(contract.Options.model_fields) <= set(config.QuantizationSpec.model_fields)
    smallest = {"shared_rank": 0, "experts": 0, "routed_rank": 1, "important_channels": 1, "samples": 1}
    for name, least in smallest.items():
        contract.Options.model_validate({name: least})
        config.QuantizationSpec.model_validate({name: least})
        with pytest.raises(ValidationError):
            contract.Options.model_validate({name: least - 1})
        with pytest.raises(ValidationError):
            config.QuantizationSpec.model_validate({name: least - 1})


@pytest.mark.parametrize("version", [1, 2, 3, 4])
@pytest.mark.parametrize("method", contract.METHODS)
def test_an_option_that_is_left_out_means_what_the_library_does(method: str, version: int) -> None:
    options = {"method_version": version}
    body = {"model": {"id": "a/b"}, "calibration": {"dataset": "a/b"}, "scheme": "W4A6", "method": method}
    full = contract.JobSpec.model_validate({**body, "options": options}).options_in_full()
    spec = config.QuantizationSpec.preset(method, method_version=version).model_dump()
    assert full == {name: None if (value := spec[name]) == "auto" else value for name in contract.Options.model_fields}


def test_a_job_keeps_the_version_that_its_defaults_have_when_it_is_made() -> None:
    body = {"model": {"id": "a/b"}, "calibration": {"dataset": "a/b"}, "scheme": "W4A6", "method": "qe"}
    made = contract.JobSpec.model_validate(body)
    kept, needed = versions.stored(made)
    assert kept["options"]["method_version"] == config.METHOD_VERSION
    assert (
        needed == versions.SINCE[f"options.method_version={config.METHOD_VERSION}"]
    )  # an old worker would fit it by its own defaults
    assert made.options_in_full()["method_version"] == 1  # as read from a row that is older than versions
    asked = contract.JobSpec.model_validate({**body, "options": {"method_version": 1}})
    kept, needed = versions.stored(asked)
    assert needed == 1
    assert contract.JobSpec.model_validate(kept).options_in_full()["method_version"] == 1


def test_exports_are_refused_where_the_format_has_no_place_and_ask_for_a_newer_worker() -> None:
    body = {"model": {"id": "a/b"}, "calibration": {"dataset": "a/b"}, "scheme": "W4A16", "method": "gptq"}
    plain, exporting = (
        contract.JobSpec.model_validate({**body, "options": {"method_version": 1}, **more})
        for more in ({}, {"exports": ["compressed-tensors"]})
    )
    assert "exports" not in versions.stored(plain)[0]
    kept, needed = versions.stored(exporting)
    assert (kept["exports"], needed) == (["compressed-tensors"], versions.SINCE["exports"])
    assert contract.JobSpec.model_validate(kept).exports == ["compressed-tensors"]
    for wrong, why in (
        ({"options": {"smoothing": "search"}}, "the method has smoothing, for which compressed-tensors has no place"),
        ({"method": "balanced"}, "the method has smoothing and experts"),
        ({"exports": ["dequantized", "dequantized"]}, "named twice"),
        ({"exports": []}, "at least 1 item"),
    ):
        with pytest.raises(ValidationError, match=why) as caught:
            contract.JobSpec.model_validate({**body, "exports": ["compressed-tensors"], **wrong})
        assert caught.value.errors()[0]["loc"] == ("exports",)


def test_an_evaluation_and_its_limits_ask_for_a_newer_worker_and_for_each_other() -> None:
    body = {"model": {"id": "a/b"}, "calibration": {"dataset": "a/b"}, "scheme": "W4A16", "method": "gptq"}
    body["options"] = {"method_version": 1}
    plain, needed = versions.stored(contract.JobSpec.model_validate({**body, "accept_if": {"max_kl": 0.1}}))
    assert needed == 1
    assert "evaluation" not in plain
    assert not any("exact_match" in limit for limit in plain["accept_if"])  # an old worker refuses fields it knows not
    limits = {"max_exact_match_drop": 0.02}
    evaluating = contract.JobSpec.model_validate({**body, "accept_if": limits, "evaluation": {"rows": 8.0}})
    kept, needed = versions.stored(evaluating)
    assert needed == versions.SINCE["evaluation"] == versions.SINCE["accept_if.max_exact_match_drop"]
    again = contract.JobSpec.model_validate(kept)
    assert (again.evaluation, again.accept_if.model_dump() if again.accept_if else None) == (
        evaluating.evaluation, evaluating.accept_if.model_dump() if evaluating.accept_if else None
    )  # fmt: skip
    assert kept["evaluation"] == {
        "dataset": None, "split": "train", "rows": 8, "max_new_tokens": 64, "original": True
    }  # fmt: skip
    for wrong, where, why in (
        ({"accept_if": limits}, ("accept_if",), "max_exact_match_drop is of a score of evaluation, which is left out"),
        (
            {"accept_if": limits, "evaluation": {"original": False}},
            ("accept_if",),
            "compares with the original, and evaluation says original false",
        ),
        ({"evaluation": {"rows": 0}}, ("evaluation", "rows"), "greater than or equal to 1"),
        ({"evaluation": {"rows": 513}}, ("evaluation", "rows"), "less than or equal to 512"),
        ({"evaluation": {"max_new_tokens": 1025}}, ("evaluation", "max_new_tokens"), "less than or equal to 1024"),
        ({"evaluation": {"dataset": "../rows.jsonl"}}, ("evaluation", "dataset"), "should match pattern"),
    ):
        with pytest.raises(ValidationError, match=why) as caught:
            contract.JobSpec.model_validate({**body, **wrong})
        assert caught.value.errors()[0]["loc"] == where


@pytest.mark.parametrize("weight_bits", range(1, 10))
@pytest.mark.parametrize("activation_bits", [3, 4, 5, 6, 7, 8, 9, 15, 16, 17])
def test_both_accept_the_same_schemes(weight_bits: int, activation_bits: int) -> None:
    text = f"W{weight_bits}A{activation_bits}"
    try:
        schemes.parse_scheme(text)
        known = True
    except ValueError:
        known = False
    assert (contract.SCHEME_PATTERN.fullmatch(text) is not None) == known


FINGERPRINTS = {
    1: "04e607055fa14cc4",
    2: "1074e618878dea4e",
    3: "012b45d240fbf992",
    4: "05aa5a272f4f16dd",
    5: "5c6b8d4addf70cfb",
    6: "67e294a675350686",
    7: "8732bdca32c29683",
    8: "5d940fef0aaaea94",
}
"""Version of the spec → what it may say."""


def test_who_changes_what_a_spec_may_say_raises_its_version() -> None:
    said = {
        "schema": _without_words(_stored_part(contract.JobSpec.model_json_schema())),
        "methods": contract.METHODS,
        "schemes": [contract.AUTO, contract.SCHEME_PATTERN.pattern],
    }
    fingerprint = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
    assert fingerprint == FINGERPRINTS.get(versions.UNDERSTOOD), (
        "old workers refuse what they do not know: raise UNDERSTOOD in core/contract/versions.py, name what is new in"
        f" SINCE, and note the fingerprint {fingerprint} here. If every old worker understands the change, note it only"
    )
    assert all(1 < since <= versions.UNDERSTOOD for since in versions.SINCE.values())


def _stored_part(schema: dict[str, Any]) -> dict[str, Any]:
    properties = {name: said for name, said in schema["properties"].items() if name in versions.STORED_FIELDS}
    return {**schema, "properties": properties}


def _without_words(schema: Any) -> Any:
    if isinstance(schema, dict):
        words = ("description", "title", "examples")
        return {name: _without_words(value) for name, value in schema.items() if name not in words}
    return [_without_words(each) for each in schema] if isinstance(schema, list) else schema


def test_a_job_needs_the_version_of_what_it_says_and_keeps_nothing_newer(monkeypatch: pytest.MonkeyPatch) -> None:
    new = {"options.vision": 2, "accept_if": 3, "method=rtn": 4, "target.max_kl": 5}
    monkeypatch.setattr(versions, "SINCE", new)
    body = {"model": {"id": "a/b"}, "calibration": {"dataset": "a/b"}, "scheme": "W4A6"}

    def stored(**changes: Any) -> tuple[dict[str, Any], int]:
        options = {"method_version": 1, **changes.pop("options", {})}
        return versions.stored(contract.JobSpec.model_validate({**body, "options": options, **changes}))

    kept, needed = stored()
    assert needed == 1
    assert "accept_if" not in kept
    assert "vision" not in kept["options"]
    assert contract.JobSpec.model_validate(kept) == contract.JobSpec.model_validate(body)
    assert [
        stored(options={"vision": "keep"})[1],
        stored(accept_if={"max_kl": 1.0})[1],
        stored(method="rtn", options={"vision": "keep"})[1],
        stored(scheme="auto", target={"max_kl": 0.1})[1],
        stored(scheme="auto", target={"max_bytes": 1})[1],
    ] == [2, 3, 4, 5, 1]


def test_every_error_of_the_library_is_a_failure_code_of_the_service() -> None:
    of_a_run = [error for error in errors.QuantExpertsError.__subclasses__() if error.__module__ == errors.__name__]
    codes = {error.code for error in of_a_run} - {errors.Stopped.code}
    assert codes <= {code.value for code in FailureCode}


def test_the_phases_are_the_same() -> None:
    assert [phase.value for phase in Phase] == list(get_args(progress.Phase))


def test_every_state_can_be_reached_and_left_or_is_final() -> None:
    reached = {target for targets in TRANSITIONS.values() for target in targets}
    assert reached == set(JobStatus)
    assert {state for state, targets in TRANSITIONS.items() if not targets} == {JobStatus.SUCCEEDED}
    assert JobStatus.SUCCEEDED in FINISHED
