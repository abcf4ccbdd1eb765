"""A plan refuses what the run would refuse: missing files, tokens without an embedding, images out of shape."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from quant_experts.planning.local import read_local, read_local_text
from quant_experts.planning.plan import Plan, make_plan
from quant_experts.planning.recipe import Recipe
from quant_experts.planning.rows import Rows, sampled_rows, unknown_rows
from quant_experts.spec.specification import QuantizationSpec
from tests.models import make_model
from tests.rows import data_uri, image_row, picture, text_row

RECIPE = Recipe.of(**QuantizationSpec.preset("rtn", group_size=32).model_dump())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("qwen2_vl", tmp_path_factory.mktemp("source") / "model")


def plan_of(directory: Path, rows: Rows | None = None) -> Plan:
    return make_plan(read_local(directory), RECIPE, rows or unknown_rows(vision=True), from_hub=False)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("tokenizer.json", "the model has no tokenizer"),
        ("preprocessor_config.json", "no preprocessor_config.json, and no image_processor in processor_config.json"),
        ("chat_template.jinja", "the model has no chat template"),
    ],
)
def test_what_is_missing_beside_the_weights_is_in_the_plan(
    missing: str, said: str, source: Path, tmp_path: Path
) -> None:
    assert not plan_of(source).refusals
    directory = Path(shutil.copytree(source, tmp_path / "model"))
    (directory / missing).unlink()
    [refusal] = plan_of(directory).refusals
    assert (refusal.code, refusal.pointer) == ("invalid_model", "/model/id")
    assert said in refusal.message


def test_a_processor_and_a_template_inside_of_other_files_are_found(source: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(source, tmp_path / "model"))
    images = json.loads((directory / "preprocessor_config.json").read_text())
    (directory / "preprocessor_config.json").unlink()
    (directory / "processor_config.json").write_text(json.dumps({"image_processor": images}))
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    template = (directory / "chat_template.jinja").read_text()
    (directory / "chat_template.jinja").unlink()
    (directory / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    assert not plan_of(directory).refusals


def test_rows_that_the_run_refuses_are_refused_by_the_plan(source: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(source, tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens([f"<tool {number}>" for number in range(len(tokenizer), 1025)])
    tokenizer.save_pretrained(directory)
    added = {"messages": [{"role": "user", "content": "use <tool 1024>"}]}
    long = image_row(1, data_uri(picture(size=(2400, 4))))
    files = read_local_text(directory)
    assert not plan_of(directory, sampled_rows([text_row(0), image_row(1), text_row(2)], rows=3, files=files)).refusals
    refusals = plan_of(directory, sampled_rows([text_row(0), added, long], rows=3, files=files)).refusals
    assert [refusal.code for refusal in refusals] == ["invalid_calibration"]
    assert "calibration row 2: token 1024 is beyond the model's 1024 embeddings" in refusals[0].message
    assert "2 of 3 rows cannot be used, at most 10% may be" in refusals[0].message
    refusals = plan_of(directory, sampled_rows([text_row(0), image_row(1), long], rows=3, files=files)).refusals
    assert "calibration row 3: an image is more than 200 times as long as wide" in refusals[0].message


def test_a_few_rows_that_the_run_skips_are_a_warning_of_the_plan(source: Path) -> None:
    long = image_row(1, data_uri(picture(size=(2400, 4))))
    sample = [long, *(image_row(number) for number in range(9))]
    plan = plan_of(source, sampled_rows(sample, rows=10, files=read_local_text(source)))
    assert not plan.refusals
    told = [caution for caution in plan.cautions if caution.code == "rows_skipped"]
    assert [caution.pointer for caution in told] == ["/calibration/dataset"]
    assert "calibration row 1: an image is more than 200 times" in told[0].message
    assert told[0].message.endswith("1 of 10 rows will be skipped")
