"""What a plan warns of: told in one line, with what to do, and refusing nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quant_experts.cli import run
from quant_experts.planning.cautions import Caution, cautions_of_scheme
from quant_experts.planning.headers import ModelHeaders
from quant_experts.planning.local import read_local
from quant_experts.planning.number_text import size_text
from quant_experts.planning.plan import Plan, make_plan
from quant_experts.planning.recipe import Recipe
from quant_experts.planning.rows import unknown_rows
from quant_experts.spec.methods import METHOD_VERSION
from tests.models import make_model
from tests.planning.big import write_72b


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("models") / "toy")


def planned(model: ModelHeaders, method: str = "qe", **options: Any) -> Plan:
    """By the method's second version, whose ranks are of a fixed size."""
    recipe = Recipe.of(method, **{"method_version": 2, **options})
    return make_plan(model, recipe, unknown_rows(vision=False), from_hub=False)


@pytest.mark.parametrize(
    "options",
    [{}, {"method": "aser", "shared_rank": 128}, {"adapter_dtype": "int8"}, {"experts": 1, "shared_rank": 96}],
)
def test_a_checkpoint_that_would_be_larger_than_the_model_is_told_with_settings_that_help(
    options: dict[str, Any], toy: Path
) -> None:
    model = read_local(toy)
    plan = planned(model, **options)
    assert plan.size.bytes_after_most > plan.size.bytes_before
    (caution,) = plan.cautions
    assert caution.code == "larger_than_model"
    assert not plan.refusals
    better = followed(model, caution, options)
    assert better.size.bytes_after_most < better.size.bytes_before


def test_more_rows_than_a_run_reads_are_told_and_count_no_further(toy: Path) -> None:
    recipe = Recipe.of("gptq", samples=20_000)
    many, enough = (unknown_rows(vision=False, rows=count) for count in (10_001, 10_000))

    more, others = (make_plan(read_local(toy), recipe, rows, from_hub=False).cautions for rows in (many, enough))

    (told,) = set(more) - set(others)
    assert (told.code, told.pointer) == ("rows_unread", "/calibration/dataset")
    assert "first 10,000" in told.message
    assert many.used(20_000) == enough.used(20_000) == unknown_rows(vision=False).used(20_000) == 10_000


def followed(model: ModelHeaders, caution: Caution, options: dict[str, Any]) -> Plan:
    """The plan with the settings that a caution names, whose figures it has to have."""
    settings, _, figures = caution.message.partition("; with ")[2].partition(" it is ")
    changes = dict(setting.split(" ") for setting in settings.split(" and "))
    first = next(iter(changes))
    assert caution.pointer == ("/scheme" if first == "scheme" else f"/options/{first}")
    wanted = {name: int(value) if value.isdecimal() else value for name, value in changes.items()}
    better = planned(model, **{**options, **wanted})
    size = better.size
    assert figures == f"{size_text(size.bytes_after_most, 4)} at {size.bits_most:.3g} bits per quantized weight"
    return better


@pytest.mark.parametrize("options", [{"method": "rtn", "scheme": "W8A8"}, {"scheme": "W6A16"}, {"scheme": "W4A16"}])
def test_what_saves_too_little_is_told_with_what_to_choose_instead(options: dict[str, Any], tmp_path: Path) -> None:
    model = read_local(make_model("llama", tmp_path / "wide", hidden=512, blocks=4))
    plan = planned(model, **options)
    (caution,) = plan.cautions
    assert caution.code == (
        "saves_little" if plan.size.bytes_after_most <= plan.size.bytes_before else "larger_than_model"
    )
    better = followed(model, caution, options)
    assert better.cautions == ()
    assert 2 * better.size.bytes_after_most <= better.size.bytes_before
    assert better.size.bits_most <= 8


def test_where_nothing_saves_half_it_says_what_is_never_quantized(toy: Path) -> None:
    (caution,) = planned(read_local(toy), "rtn").cautions
    assert caution.message == (
        "the checkpoint saves less than half: 638 KiB after, 993.2 KiB before; 513.2 KiB of it are never quantized, "
        "and no other setting saves more"
    )


def test_where_only_bounds_are_known_it_may_be_larger(toy: Path) -> None:
    plan = planned(read_local(toy), scheme="auto", target={"max_bytes": 990_000}, routed_rank=6, shared_rank=6)
    assert plan.size.bytes_after_least < plan.size.bytes_before < plan.size.bytes_after_most
    (caution,) = plan.cautions
    assert caution.message.startswith("the checkpoint may be larger than the model: ")
    assert "; with reconstruction none it is " in caution.message


@pytest.mark.parametrize("version", [2, METHOD_VERSION])
def test_a_real_size_is_told_nothing(version: int, tmp_path: Path) -> None:
    assert planned(read_local(write_72b(tmp_path / "big")), method_version=version).cautions == ()


@pytest.mark.parametrize("method", ["qe", "aser"])
def test_ranks_that_nobody_named_never_make_a_checkpoint_larger_than_the_model(method: str, toy: Path) -> None:
    plan = planned(read_local(toy), method, method_version=METHOD_VERSION)
    assert plan.size.bytes_after_most < plan.size.bytes_before
    assert plan.size.bits_most <= 4.8


def test_the_command_line_says_it_and_goes_on(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--model", str(toy), "--method-version", "2"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert "larger than the model" in line
    assert run(["plan", "--json", "--model", str(toy), "--method-version", "2"]) == 0
    assert [each["code"] for each in json.loads(capsys.readouterr().out)["warnings"]] == ["larger_than_model"]
    assert run(["plan", "--model", str(toy), "--method", "rtn"]) == 0
    assert "larger" not in capsys.readouterr().out


def test_what_is_certain_of_a_scheme_needs_no_model() -> None:
    said = cautions_of_scheme(Recipe.of("qe", scheme="W8A8"))
    assert [(caution.code, caution.pointer) for caution in said] == [("saves_little", "/scheme")]
    assert "scheme W4A8" in said[0].message
    for scheme in ("W4A16", "W6A8", "auto"):
        assert not cautions_of_scheme(Recipe.of("qe", scheme=scheme))
