"""Image tokens from widths and heights alone, held to what the processors of transformers make of real images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoConfig

from quant_experts.calibration.processor import load_processor
from quant_experts.model.families.internvl_chat import native_directory
from quant_experts.planning.headers import processor_of
from quant_experts.planning.image_tokens import image_tokens
from tests.models import make_model
from tests.models_internvl_chat import make_internvl_chat
from tests.models_vision import VISION_FAMILIES

SIZES = [(84, 84), (56, 56), (30, 500), (500, 30), (224, 100), (101, 313), (640, 480), (97, 96), (1, 1), (333, 1000)]
"""Widths and heights: square, long, odd, small, larger than any bound of the tiny models."""
WIDER: dict[str, list[dict[str, Any]]] = {
    "qwen2_vl": [{"size": {"shortest_edge": 3136, "longest_edge": 400_000}}, {"min_pixels": 40_000}],
    "qwen3_vl": [{"merge_size": 1, "patch_size": 16}],
    "internvl": [
        {"max_patches": 12},
        {"max_patches": 6, "min_patches": 2, "size": {"height": 100, "width": 100}},
        {"max_patches": 1},
        {"crop_to_patches": False},
    ],
    "llava": [{"crop_size": {"height": 112, "width": 84}}],
    "llava_onevision": [
        {"image_grid_pinpoints": [[56 * r, 56 * c] for r in range(1, 7) for c in range(1, 7)]},
        {"image_grid_pinpoints": [[56, 168], [224, 56]]},
    ],
}
"""Other settings of the image processor, as repositories have them."""


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_images_become_as_many_tokens_as_the_processor_makes_of_them(family: str, tmp_path: Path) -> None:
    model = make_model(family, tmp_path / "model", blocks=1)
    config = json.loads((model / "config.json").read_text())
    names = [path.name for path in model.iterdir()]
    settings = json.loads((model / "preprocessor_config.json").read_text())
    for changes in ({}, *WIDER.get(family, [])):
        (model / "preprocessor_config.json").write_text(json.dumps({**settings, **changes}))
        real = load_processor(model, AutoConfig.from_pretrained(model))
        processor = processor_of(names, lambda name: (model / name).read_bytes())
        for sizes in ([[size] for size in SIZES], [SIZES[:2], SIZES[3:6]]):
            for row in sizes:
                assert sum(image_tokens(row, config, processor)) == made_by(real, row, model), (changes, row)


def made_by(processor: Any, sizes: list[tuple[int, int]], model: Path) -> int:
    """Image tokens among those of one row."""
    images = [Image.new("RGB", size) for size in sizes]
    ids = processor(text=[processor.image_token * len(images)], images=[images])["input_ids"][0]
    return list(ids).count(AutoConfig.from_pretrained(model).image_token_id)


def test_a_processor_inside_processor_config_comes_first(tmp_path: Path) -> None:
    files = {
        "processor_config.json": {"image_seq_length": 7, "image_processor": {"max_patches": 3}},
        "preprocessor_config.json": {"max_patches": 5, "min_patches": 2},
    }

    def read(name: str) -> bytes:
        return json.dumps(files[name]).encode()

    assert processor_of(files, read) == {"image_seq_length": 7, "max_patches": 3}
    assert processor_of(["preprocessor_config.json"], read) == files["preprocessor_config.json"]
    assert processor_of(files, lambda name: b"[") == {}


@pytest.mark.parametrize("family", [*VISION_FAMILIES, "internvl_chat", "unheard_of"])
@pytest.mark.parametrize("value", [10**400, -1, 0, "9", [], {}, None, True, 1e308])
def test_no_number_of_a_hostile_file_breaks_the_arithmetic(family: str, value: Any) -> None:
    names = ("patch_size", "merge_size", "size", "crop_size", "min_pixels", "max_pixels", "max_patches", "min_patches")
    more = ("image_seq_length", "num_image_tokens", "image_grid_pinpoints", "vision_aspect_ratio", "image_size")
    hostile = dict.fromkeys((*names, *more, "num_additional_image_tokens", "downsample_ratio"), value)
    config = {"model_type": family, "vision_config": hostile, "dynamic_image_size": True, "max_dynamic_patch": value}
    assert all(isinstance(found, int) for found in image_tokens([(30, 90), (1, 70_000)], config, hostile))


@pytest.mark.parametrize("tiles", [None, 3, 7])
def test_an_original_internvl_repository_has_the_tokens_of_the_native_one_made_of_it(
    tiles: int | None, tmp_path: Path
) -> None:
    make_internvl_chat(tmp_path / "model", "Qwen2ForCausalLM")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config |= {"dynamic_image_size": tiles is not None, "max_dynamic_patch": tiles or 6}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    native = native_directory(tmp_path / "model", tmp_path / "native")
    real = load_processor(native, AutoConfig.from_pretrained(native))
    for size in SIZES:
        assert sum(image_tokens([size], config, {})) == made_by(real, [size], native)
