"""Tokens of rows, told without transformers, held to what the model's processor and its chat template give."""

from __future__ import annotations

import base64
import io
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from transformers import AutoConfig, AutoTokenizer

from quant_experts.calibration.collate import open_collator
from quant_experts.calibration.rows import parse_row
from quant_experts.planning.counting import Counting
from quant_experts.planning.errors import Unreadable
from quant_experts.planning.local import read_local_text
from quant_experts.planning.row_tokens import TOKENS_PER_MESSAGE, RowCounting, TokenCounts
from quant_experts.planning.rows import Rows, parsed_parquet, sampled_rows
from quant_experts.planning.text_files import TextFiles
from tests.models import FAMILIES, make_model
from tests.models_speech import audio_row
from tests.models_vision import VISION_FAMILIES
from tests.rows import data_uri, image_row, picture, text_row

SIZES = [(84, 84), (60, 200), (333, 100), (30, 40)]


def rows_for(family: str) -> list[dict[str, Any]]:
    rows = [text_row(i) for i in range(3)]
    rows.append({"messages": [{"role": "system", "content": "Be brief.\n"}, *text_row(7)["messages"]]})
    if family in VISION_FAMILIES:
        rows += [image_row(i, data_uri(picture(seed=i, size=size))) for i, size in enumerate(SIZES)]
        two = [{"type": "image", "image": data_uri(picture(size=size))} for size in SIZES[:2]]
        rows.append({"messages": [{"role": "user", "content": [*two, {"type": "text", "text": " Which of these?"}]}]})
    return rows


def counted(files: TextFiles, rows: list[dict[str, Any]]) -> TokenCounts:
    with RowCounting(files) as counting:
        for row in rows:
            parts = [part for message in row["messages"] for part in message["content"] if isinstance(part, dict)]
            counting.add(row["messages"], [size_of(part["image"]) for part in parts if part["type"] == "image"])
        return counting.finish()


def size_of(uri: str) -> tuple[int, int]:
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        return image.size


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_have_as_many_tokens_as_the_library_makes_of_them(family: str, tmp_path: Path) -> None:
    model = make_model(family, tmp_path / "model", blocks=1)
    collate = open_collator(model, AutoConfig.from_pretrained(model))
    rows = rows_for(family)
    found = counted(read_local_text(model), rows)
    samples = [collate(parse_row(number, row, tmp_path)) for number, row in enumerate(rows, start=1)]
    assert [row.total for row in found.rows] == [sample.tokens for sample in samples]
    assert [row.image for row in found.rows] == [int(sample.vision.sum()) for sample in samples]
    assert (found.counted, found.turns_by) == (True, "template")


def test_a_transcript_has_the_tokens_that_a_speech_model_is_given(tmp_path: Path) -> None:
    model = make_model("whisper", tmp_path / "model", blocks=1)
    collate = open_collator(model, AutoConfig.from_pretrained(model))
    rows = [audio_row(index) for index in range(3)]
    samples = [collate(parse_row(number, row, tmp_path)) for number, row in enumerate(rows, start=1)]
    with RowCounting(read_local_text(model)) as counting:
        for row in rows:
            counting.add(row["messages"], [])
        found = counting.finish()
    assert [row.total for row in found.rows] == [sample.tokens for sample in samples]
    assert found.limit == AutoConfig.from_pretrained(model).max_target_positions


TURN = "{% for m in messages %}"
TEMPLATES = {
    "ChatML with a system message of its own": "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}",
    "ChatML whose turns end without a new line": TURN
    + "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}",
    "Gemma": "{{ bos_token }}{% set first = '' %}{% set rest = messages %}{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'] + '\\n\\n' %}{% set rest = messages[1:] %}{% endif %}{% for m in rest %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}{{ '<start_of_turn>' + role + '\\n' }}"
    "{{ first if loop.first else '' }}{{ m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}",
    "Llama 3": "{{ bos_token }}" + TURN + "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + "
    "m['content'] | trim + '<|eot_id|>' }}{% endfor %}",
    "Phi 3": TURN + "{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}",
    "Mistral": "{{ bos_token }}{% set first = '' %}{% set rest = messages %}{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'] + '\\n\\n' %}{% set rest = messages[1:] %}{% endif %}{% for m in rest %}"
    "{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + '</s>' }}{% else %}"
    "{{ '[INST] ' + (first if loop.first else '') + m['content'] + ' [/INST]' }}{% endif %}{% endfor %}",
}


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("models") / "llama", blocks=1)


def true_tokens(model: Path, template: str, rows: list[dict[str, Any]]) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.bos_token = "<|endoftext|>"
    texts = [tokenizer.apply_chat_template(row["messages"], chat_template=template, tokenize=False) for row in rows]
    return [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


LLAVA = (
    TURN + "{% if m['role'] != 'system' %}{{ m['role'].upper() + ': ' }}{% endif %}"
    "{% for part in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in m['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def test_the_style_of_llava_is_known_with_its_images(tmp_path: Path) -> None:
    model = make_model("llava", tmp_path / "model", blocks=1)
    (model / "chat_template.jinja").write_text(LLAVA)
    collate = open_collator(model, AutoConfig.from_pretrained(model))
    rows = [in_parts(row) for row in rows_for("llava")[:-1]]
    found = counted(read_local_text(model), rows)
    samples = [collate(parse_row(number, row, tmp_path)) for number, row in enumerate(rows, start=1)]
    assert [row.total for row in found.rows] == [sample.tokens for sample in samples]
    assert found.turns_by == "template"


def in_parts(row: dict[str, Any]) -> dict[str, Any]:
    def parts(content: Any) -> Any:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content

    return {"messages": [{**message, "content": parts(message["content"])} for message in row["messages"]]}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_the_styles_of_chat_templates_are_known(template: str, text_model: Path) -> None:
    files = replace(read_local_text(text_model), template=template, bos="<|endoftext|>")
    rows = rows_for("llama")
    found = counted(files, rows)
    assert [row.text for row in found.rows] == true_tokens(text_model, template, rows)
    assert found.turns_by == "template"


def test_of_another_template_a_few_tokens_are_assumed_for_every_message(text_model: Path) -> None:
    template = TURN + "@@{{ m['role'] }}@@ {{ m['content'] }} ##{% endfor %}"
    files = replace(read_local_text(text_model), template=template)
    rows = rows_for("llama")
    found = counted(files, rows)
    assert (found.counted, found.turns_by) == (True, "assumed")
    for row, true, had in zip(found.rows, true_tokens(text_model, template, rows), rows, strict=True):
        assert abs(row.text - true) <= (TOKENS_PER_MESSAGE + 1) * len(had["messages"])


def test_a_model_without_a_template_reads_running_text(text_model: Path) -> None:
    found = counted(replace(read_local_text(text_model), template=None), rows_for("llama"))
    tokenizer = AutoTokenizer.from_pretrained(text_model)
    texts = ["\n".join(message["content"] for message in row["messages"]) for row in rows_for("llama")]
    assert [row.text for row in found.rows] == [len(ids) for ids in tokenizer(texts)["input_ids"]]
    assert found.turns_by == "none"


def test_without_a_model_and_without_a_tokenizer_it_is_estimated(text_model: Path) -> None:
    rows = rows_for("qwen2_vl")
    thumb = counted(replace(read_local_text(text_model), tokenizer=None), rows_for("llama"))
    assert (thumb.counted, thumb.exact_images, thumb.turns_by) == (False, True, "template")
    nothing = counted_by_thumb(rows)
    assert (nothing.counted, nothing.exact_images, nothing.turns_by) == (False, False, "assumed")
    assert len(nothing.rows) == len(rows)
    assert all(row.text > 0 for row in nothing.rows)
    assert nothing.rows[4].image == 9  # 84 x 84 pixels


def counted_by_thumb(rows: list[dict[str, Any]]) -> TokenCounts:
    with RowCounting(None) as counting:
        for row in rows:
            counting.add(row["messages"], [(84, 84)])
        return counting.finish()


def test_rows_longer_than_the_library_takes_are_told(text_model: Path) -> None:
    long = {"messages": [{"role": "user", "content": "Which colour is the square? " * 500}]}
    found = counted(read_local_text(text_model), [text_row(0), long])
    assert found.limit == 2048
    assert [row.total > 2048 for row in found.rows] == [False, True]
    assert found.over == 1


def test_a_plan_judges_rows_by_the_tokenizer_and_is_surer_of_them(tmp_path: Path) -> None:
    model = make_model("qwen2_vl", tmp_path / "model", blocks=1)
    files = read_local_text(model)
    collate = open_collator(model, AutoConfig.from_pretrained(model))
    sample = [image_row(i) for i in range(12)]
    true = sum(collate(parse_row(i, row, tmp_path)).tokens for i, row in enumerate(sample, start=1)) / len(sample)
    by_thumb = sampled_rows(sample, rows=12, files=replace(files, tokenizer=None))
    by_tokenizer = sampled_rows(sample, rows=12, files=files)
    assert by_tokenizer.tokens == pytest.approx(true)
    assert abs(by_thumb.tokens - true) > 3
    assert by_tokenizer.spread < 1.1 < by_thumb.spread
    assert true / by_thumb.spread < by_thumb.tokens < true * by_thumb.spread
    some = sampled_rows([*sample, text_row(0)], rows=4000, files=files)
    assert by_tokenizer.spread < some.spread < by_thumb.spread
    too_long = {"messages": [{"role": "user", "content": "Which colour is the square? " * 900}]}
    assert sampled_rows([*sample, too_long], rows=13, files=files).tokens == pytest.approx(true)


def test_a_plan_makes_do_with_a_tokenizer_that_cannot_be_used(text_model: Path) -> None:
    files = replace(read_local_text(text_model), tokenizer=b"{")
    assert sampled_rows([text_row(0)], rows=1, files=files) == Rows(1, 29.0, 1.5, 0.0, 0.0, sampled=1)


def test_rows_of_a_parquet_file_are_looked_at_as_well(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(
        [
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "Which?"}]}
                ],
                "images": [{"bytes": picture(size=(112, 84)), "path": None}],
            }
        ]
        * 40
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    sample, rows = parsed_parquet(tmp_path / "rows.parquet", 20)
    assert (len(sample), rows) == (20, 40)
    files = TextFiles({"model_type": "qwen2_vl", "vision_config": {}})
    judged = sampled_rows(sample, rows=rows, files=files)
    assert (judged.rows, judged.images, judged.image_tokens) == (40, 1, 12)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    assert parsed_parquet(tmp_path / "rows.parquet", 20) == ([], None)


def hostile_regex(tokenizer: dict[str, Any]) -> None:
    tokenizer["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": "(?:a+)+$|(?:a|aa)+b"},
        "behavior": "Isolated",
        "invert": False,
    }


def hostile_growth(tokenizer: dict[str, Any]) -> None:
    grow = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [grow] * 5}


@pytest.mark.parametrize("poison", [hostile_regex, hostile_growth])
def test_a_hostile_tokenizer_costs_a_process_of_its_own_and_no_more(poison: Any, text_model: Path) -> None:
    content = json.loads((text_model / "tokenizer.json").read_text())
    poison(content)
    began = time.monotonic()
    with Counting(json.dumps(content).encode(), seconds=1) as counting:
        for _ in range(30):
            counting.add("a" * 4000 + "c", special=False)
        with pytest.raises(Unreadable, match=r"tokenizer\.json: "):
            counting.finish()
    assert time.monotonic() - began < 30


def test_counting_ends_after_its_time(text_model: Path) -> None:
    with Counting((text_model / "tokenizer.json").read_bytes(), seconds=1) as counting:
        for _ in range(200):
            counting.add("Which colour is the square? " * 4000, special=False)
        with pytest.raises(Unreadable, match="took longer than 1 seconds"):
            counting.finish()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model": null}', b"[" * 100_000, b"\xff\xfe", b"\x00" * 99])
def test_a_file_that_is_no_tokenizer_is_one_clear_error(content: bytes) -> None:
    with Counting(content, seconds=5) as counting:
        for _ in range(20):
            counting.add("x" * 100_000, special=True)
        with pytest.raises(Unreadable, match=r"tokenizer\.json: it cannot be used: \S"):
            counting.finish()


def test_half_of_a_surrogate_pair_is_a_character_like_another(text_model: Path) -> None:
    with Counting((text_model / "tokenizer.json").read_bytes(), seconds=5) as counting:
        counting.add("Which \ud800 colour?", special=False)
        assert counting.finish()[0].tokens > 2


def test_what_is_wrong_with_the_files_is_said(text_model: Path, tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=r"no config\.json"):
        read_local_text(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert read_local_text(tmp_path).tokenizer is None
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(Unreadable, match=r"tokenizer\.json is larger than 67108864 bytes"):
        read_local_text(tmp_path)
