"""Memory, time and tokens: estimates that move the right way; how close they are is benchmarks/plan_accuracy.py's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quant_experts.planning.local import read_local
from quant_experts.planning.plan import make_plan
from quant_experts.planning.recipe import Recipe
from quant_experts.planning.rows import Rows, sampled_rows
from quant_experts.planning.seconds import Calibration, calibration_of
from quant_experts.planning.text_files import TextFiles
from quant_experts.spec.choices import Evaluation
from tests.models import make_model
from tests.planning.big import write_72b
from tests.rows import image_row, text_row

ROWS = Rows(rows=None, tokens=800, spread=1.5, images=1)


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return read_local(write_72b(tmp_path_factory.mktemp("models") / "big"))


def planned(headers: Any, method: str = "qe", rows: Rows = ROWS, **options: Any) -> Any:
    return make_plan(headers, Recipe.of(method, **options), rows, from_hub=True).placements


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"method": "rtn"}, {"method": "gptq"}),
        ({"method": "rtn"}, {"method": "qe"}),
        ({"method": "smoothquant"}, {"method": "awq"}),
        ({"samples": 32}, {"samples": 128}),
        ({"experts": 2, "routed_rank": 8}, {"experts": 16, "routed_rank": 8}),
        ({"lloyd_rounds": 0}, {"lloyd_rounds": 5}),
        ({"rows": Rows(20, 800, 1.5, 1)}, {"rows": ROWS}),
        ({"rows": Rows(None, 100, 1.5, 1)}, {"rows": ROWS}),
        ({}, {"evaluation": Evaluation(original=False)}),
        ({"evaluation": Evaluation(original=False)}, {"evaluation": Evaluation()}),
        ({"evaluation": Evaluation(max_new_tokens=8)}, {"evaluation": Evaluation()}),
        ({"evaluation": Evaluation(rows=8)}, {"evaluation": Evaluation()}),
    ],
)
def test_more_work_takes_longer(big: Any, less: dict[str, Any], more: dict[str, Any]) -> None:
    for device in ("cpu", "cuda"):
        quick, slow = planned(big, **less)[device].seconds, planned(big, **more)[device].seconds
        assert quick.likely < slow.likely
        assert quick.least < quick.likely < quick.most


def test_a_tower_that_is_quantized_takes_longer_the_more_image_tokens_there_are(tmp_path: Path) -> None:
    model = read_local(make_model("qwen2_vl", tmp_path))

    def minutes(image_tokens: float, vision: str = "quantize") -> float:
        rows = Rows(None, 800, 1.5, 1, image_tokens=image_tokens)
        return float(planned(model, rows=rows, vision=vision)["cpu"].seconds.likely)

    assert minutes(500, vision="keep") < minutes(500) < minutes(700)


def test_memory_is_one_block_on_the_device_and_one_tensor_beside_it(big: Any) -> None:
    placed = planned(big)["cuda"].memory
    assert placed.device < big.bytes
    assert placed.host < 8e9
    assert planned(big, "rtn")["cuda"].memory.device <= placed.device


def test_replies_of_the_original_hold_all_of_it_and_those_of_the_checkpoint_no_more_than_verifying(big: Any) -> None:
    plain, alone, both, longer = (
        planned(big, evaluation=task)["cuda"].memory
        for task in (None, Evaluation(original=False), Evaluation(), Evaluation(max_new_tokens=1024))
    )
    assert (plain.phase, both.phase) == ("verifying", "generating")
    keys_and_values = 2 * 80 * 1024 * 2  # of one token, in bytes: blocks, width, bfloat16
    assert alone.device - plain.device == pytest.approx((800 + 64) * keys_and_values, rel=0.02)
    assert both.device > big.bytes
    assert longer.device - both.device == (1024 - 64) * keys_and_values
    assert both.host - plain.host > 40e9  # the checkpoint is loaded there first


def test_measured_blocks_take_the_place_of_the_shipped_rates(big: Any) -> None:
    assert calibration_of([1.0, 2.0]) is None
    assert calibration_of([0.0, -1.0, 2.0]) is None
    found = calibration_of([2.0, 2.2, 1.8, 2.1])
    assert isinstance(found, Calibration)
    assert 1.8 < found.factor < 2.2
    shipped = planned(big)["cpu"].seconds
    plan = make_plan(big, Recipe.of("qe"), ROWS, from_hub=True, calibrations={"cpu": found})
    seconds = plan.placements["cpu"].seconds
    assert seconds.basis == "measured"
    assert seconds.most / seconds.least < shipped.most / shipped.least
    assert seconds.per_block == shipped.per_block


def test_rows_are_judged_by_their_texts_and_images() -> None:
    files = TextFiles({"model_type": "qwen2_vl", "vision_config": {}})
    with_image = sampled_rows([image_row(0), image_row(1)], rows=40, files=files)
    assert (with_image.rows, with_image.images) == (40, 1)
    assert 9 + 15 < with_image.tokens < 60  # 84 x 84 pixels are 3 x 3 patches
    text = sampled_rows([text_row(0)], rows=None, files=TextFiles({"model_type": "llama"}))
    assert (text.images, text.used(64)) == (0, 64)
    odd: list[Any] = [{}, {"messages": 3}, {"messages": [{"content": [{"type": "image", "image": "data:,x"}, 7]}]}]
    assert sampled_rows(odd, rows=3, files=files).tokens > 0
    assert sampled_rows([], rows=3, files=files).spread > with_image.spread


def test_the_file_of_rows_is_on_the_workers_disk_too(big: Any) -> None:
    disk = [make_plan(big, Recipe.of("qe"), ROWS, from_hub=True, rows_bytes=size).disk for size in (0, 512 << 20)]
    assert disk[1] - disk[0] == 512 << 20
