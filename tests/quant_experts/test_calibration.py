"""Rows in the chat convention become samples; each wrong row ends in one sentence that names it."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoConfig, AutoTokenizer

from quant_experts.calibration.collate import MOST_TOKENS, Collate, TooLong, open_collator
from quant_experts.calibration.images import decode
from quant_experts.calibration.rows import BadRow, Row, parse_row
from quant_experts.calibration.samples import choose, open_rows, rows_fingerprint
from quant_experts.errors import InvalidCalibration
from quant_experts.planning.cautions import ROWS_UNREAD
from quant_experts.run.checks import file_warnings
from tests.models import make_model
from tests.rows import data_uri, image_row, picture, text_row, write_rows


@pytest.fixture(scope="module")
def vision_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("qwen2_vl", tmp_path_factory.mktemp("qwen2_vl"))


@pytest.fixture(scope="module")
def collate(vision_model: Path) -> Collate:
    return open_collator(vision_model, AutoConfig.from_pretrained(vision_model))


def all_rows(path: Path) -> list[Row]:
    rows = open_rows(path)
    return [row for row in rows.read(range(len(rows))) if isinstance(row, Row)]


# --- The three ways to write rows ----------------------------------------------------------------------------------


def test_an_image_is_a_data_uri_or_a_path_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(picture(seed=3))
    inline, beside = all_rows(write_rows(tmp_path / "r.jsonl", [image_row(3), image_row(3, "images/a.png")]))
    assert inline.images == beside.images == (picture(seed=3),)
    assert inline.messages[0]["content"][0] == {"type": "image"}


def test_an_image_may_be_a_link_as_in_the_caches_of_the_hub(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots" / "0" / "images", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "f00").write_bytes(picture(seed=3))
    (snapshot / "a.png").symlink_to("../../../blobs/f00")
    path = write_rows(snapshot.parent / "r.jsonl", [image_row(3, "images/a.png"), image_row(3, "images/x/../a.png")])
    assert [row.images for row in all_rows(path)] == [(picture(seed=3),)] * 2
    (refused,) = open_rows(path, follow_links=False).read([0])
    assert isinstance(refused, BadRow)
    assert "row 1, image 1: 'images/a.png' leaves the directory" in refused.reason


def test_parquet_with_an_images_column_is_the_same_as_json_lines(tmp_path: Path) -> None:
    plain = all_rows(write_rows(tmp_path / "r.jsonl", [image_row(i) for i in range(5)]))
    rows = []
    for i in range(5):
        row = image_row(i)
        row["messages"][0]["content"][0] = {"type": "image", "text": None}
        row["messages"][1]["content"] = [{"type": "text", "text": row["messages"][1]["content"]}]
        rows.append({**row, "images": [{"bytes": picture(seed=i), "path": f"{i}.png"}]})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "r.parquet", row_group_size=2)
    columnar = all_rows(tmp_path / "r.parquet")
    assert [row.images for row in columnar] == [row.images for row in plain]
    assert [row.number for row in columnar] == [1, 2, 3, 4, 5]
    assert columnar[4].messages[0] == plain[4].messages[0]
    assert [row.number for row in open_rows(tmp_path / "r.parquet").read([1, 4])] == [2, 5]


def test_a_dataset_directory_gives_the_rows_of_the_split(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name, indices in {
        "train-00000-of-00002": [0, 1],
        "train-00001-of-00002": [2],
        "test-00000-of-00001": [9],
    }.items():
        table = pa.Table.from_pylist([text_row(i) for i in indices])
        pq.write_table(table, tmp_path / "data" / f"{name}.parquet")
    rows = open_rows(tmp_path, split="train")
    assert [row.messages[0]["content"][-2:] for row in rows.read([0, 2])] == ["0?", "2?"]
    assert len(open_rows(tmp_path, split="test")) == 1
    with pytest.raises(InvalidCalibration, match="no Parquet or JSONL file of split 'validation'"):
        open_rows(tmp_path, split="validation")


def test_images_of_the_images_column_go_to_image_parts_in_order(tmp_path: Path) -> None:
    content = [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}]
    row = {
        "messages": [{"role": "user", "content": content}],
        "images": [{"bytes": picture(seed=1)}, {"bytes": picture(seed=2)}],
    }
    assert parse_row(1, row, tmp_path).images == (picture(seed=1), picture(seed=2))


def test_rows_beyond_the_bound_are_not_read_and_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quant_experts.calibration.samples.MOST_ROWS", 3)
    pq.write_table(pa.Table.from_pylist([text_row(i) for i in range(5)]), tmp_path / "five.parquet")
    (tmp_path / "split").mkdir()
    for part in ("train-0", "train-1"):
        write_rows(tmp_path / "split" / f"{part}.jsonl", [text_row(i) for i in range(2)])
    five = write_rows(tmp_path / "five.jsonl", [text_row(i) for i in range(5)])

    for path in (five, tmp_path / "five.parquet", tmp_path / "split"):
        rows = open_rows(path)

        assert (len(rows), rows.has_more) == (3, True)
        assert file_warnings(rows) == [ROWS_UNREAD]
        assert choose(rows, samples=5, holdout=0.1, seed=1).total == 3
    three = open_rows(write_rows(tmp_path / "three.jsonl", [text_row(i) for i in range(3)]))
    assert (len(three), file_warnings(three)) == (3, [])


# --- The choice ----------------------------------------------------------------------------------------------------


def test_the_choice_depends_on_the_seed_and_keeps_held_out_rows_apart(tmp_path: Path) -> None:
    rows = open_rows(write_rows(tmp_path / "r.jsonl", [text_row(i) for i in range(50)]))
    choice = choose(rows, samples=30, holdout=0.1, seed=1)
    assert (len(choice.held_out), len(choice.fit), len(choice.reserve)) == (3, 27, 20)
    assert sorted((*choice.held_out, *choice.fit, *choice.reserve)) == list(range(50))
    assert choice == choose(rows, samples=30, holdout=0.1, seed=1)
    assert choice != choose(rows, samples=30, holdout=0.1, seed=2)


def test_at_least_two_rows_are_held_out_and_one_is_left_to_fit(tmp_path: Path) -> None:
    rows = open_rows(write_rows(tmp_path / "r.jsonl", [text_row(i) for i in range(3)]))
    assert len(choose(rows, samples=128, holdout=0.1, seed=0).held_out) == 2
    with pytest.raises(InvalidCalibration, match="nothing left to fit; give at least 3 rows"):
        choose(rows, samples=2, holdout=0.1, seed=0)


def test_the_fingerprint_sees_a_changed_image(tmp_path: Path) -> None:
    def fingerprint(last: Any) -> str:
        rows = open_rows(write_rows(tmp_path / "r.jsonl", [*(image_row(i) for i in range(3)), last]))
        return rows_fingerprint(rows, choose(rows, samples=9, holdout=0.1, seed=0))

    assert fingerprint(image_row(7)) == fingerprint(image_row(7))
    assert fingerprint(image_row(7)) != fingerprint(image_row(7, data_uri(picture(seed=8))))


# --- Samples -------------------------------------------------------------------------------------------------------


def test_a_sample_marks_exactly_the_image_tokens_as_vision(
    collate: Collate, vision_model: Path, tmp_path: Path
) -> None:
    sample = collate(parse_row(1, image_row(1, data_uri(picture(size=(112, 56)))), tmp_path))
    token = AutoConfig.from_pretrained(vision_model).image_token_id
    assert torch.equal(sample.vision, sample.inputs["input_ids"][0] == token)
    assert int(sample.vision.sum()) == (112 // 28) * (56 // 28)
    assert sample.inputs["pixel_values"].shape == ((112 // 14) * (56 // 14), 3 * 2 * 14 * 14)


def test_a_sample_that_is_too_long_gets_smaller_images_and_none_is_cut(
    vision_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quant_experts.calibration.collate.MOST_TOKENS", 80)
    short = open_collator(vision_model, AutoConfig.from_pretrained(vision_model))
    row = image_row(1, data_uri(picture(size=(224, 224))))
    sample = short(parse_row(1, row, tmp_path))
    assert sample.resized
    assert sample.tokens <= 80
    grid = sample.inputs["image_grid_thw"]
    assert int(sample.vision.sum()) == int(grid.prod()) // 4 > 0


def test_several_images_of_a_row_stay_in_their_row(tmp_path: Path) -> None:
    model = make_model("llava_onevision", tmp_path)
    several = open_collator(model, AutoConfig.from_pretrained(model))
    parts = [{"type": "image", "image": data_uri(picture(seed=seed))} for seed in range(2)]
    row = {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "Which is red?"}]}]}
    sample = several(parse_row(1, row, tmp_path))
    # One tile and one line end each; alone, an image would be cut into more tiles.
    assert int(sample.vision.sum()) == 2 * (4 * 4 + 1)
    assert sample.inputs["batch_num_images"].tolist() == [2]


def test_a_sample_whose_tiles_are_too_many_gets_fewer_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("internvl", tmp_path)
    config = AutoConfig.from_pretrained(model)
    row = parse_row(1, image_row(1, data_uri(picture(size=(168, 56)))), tmp_path)
    whole = open_collator(model, config)(row)
    assert int(whole.vision.sum()) == (3 + 1) * 4  # three tiles and the thumbnail
    text = whole.tokens - 16
    monkeypatch.setattr("quant_experts.calibration.collate.MOST_TOKENS", text + 13)
    sample = open_collator(model, config)(row)
    assert sample.resized
    assert int(sample.vision.sum()) == (2 + 1) * 4
    assert sample.inputs["pixel_values"].shape[0] == 3
    monkeypatch.setattr("quant_experts.calibration.collate.MOST_TOKENS", text + 3)
    with pytest.raises(TooLong, match="4 tokens each, 3 are left"):
        open_collator(model, config)(row)


def test_text_that_is_too_long_is_skipped(collate: Collate, tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "colour " * MOST_TOKENS}]}
    with pytest.raises(TooLong):
        collate(parse_row(1, row, tmp_path))


def test_text_rows_of_a_vision_model_have_no_vision_token(collate: Collate, tmp_path: Path) -> None:
    assert not collate(parse_row(1, text_row(1), tmp_path)).vision.any()


def test_an_image_for_a_text_model_is_refused(tmp_path: Path) -> None:
    model = make_model("llama", tmp_path)
    collate = open_collator(model, AutoConfig.from_pretrained(model))
    with pytest.raises(InvalidCalibration, match="row 4: it has an image, but llama takes text only"):
        collate(parse_row(4, image_row(1), tmp_path))


def test_an_image_and_text_that_forges_a_second_one_are_refused(collate: Collate, tmp_path: Path) -> None:
    row = image_row(1)
    row["messages"][1]["content"] = "another <|image_pad|>"
    with pytest.raises(InvalidCalibration, match=r"row 2: 2 image tokens for 1 of its images; .*image_pad"):
        collate(parse_row(2, row, tmp_path))


def test_text_that_forges_an_image_token_is_refused(collate: Collate, tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "look: <|image_pad|>"}]}
    with pytest.raises(InvalidCalibration, match=r"row 2: .*image_pad"):
        collate(parse_row(2, row, tmp_path))


def test_the_token_that_stands_for_one_patch_is_as_forbidden_as_the_one_for_an_image(tmp_path: Path) -> None:
    model = make_model("gemma3", tmp_path)
    collate = open_collator(model, AutoConfig.from_pretrained(model))
    for token in ("<image_soft_token>", "<start_of_image>"):
        with pytest.raises(InvalidCalibration, match=rf"row 3: .*text must not contain '{token}'"):
            collate(parse_row(3, {"messages": [{"role": "user", "content": f"look: {token}"}]}, tmp_path))


def test_an_image_that_the_processor_refuses_names_the_row(collate: Collate, tmp_path: Path) -> None:
    with pytest.raises(InvalidCalibration, match=r"row 5: the model's processor refuses it: .*aspect ratio"):
        collate(parse_row(5, image_row(1, data_uri(picture(size=(2400, 4)))), tmp_path))


# --- What a chat template reads ----------------------------------------------------------------------------------

CALLS = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
TOOL_TEMPLATE = (
    "{% if tools %}TOOLS {{ tools | tojson }}\n{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content %}THINKS {{ message.reasoning_content }}\n{% endif %}"
    "{% if message.name %}NAME {{ message.name }}\n{% endif %}{% if message.content %}{{ message.content }}{% endif %}"
    "{% for call in message.tool_calls or [] %}CALL {{ call.function.name }}{% endfor %}<|im_end|>\n{% endfor %}"
)


@pytest.mark.parametrize("content", [None, ""])
def test_everything_that_a_chat_template_may_read_reaches_it(content: str | None, tmp_path: Path) -> None:
    model = make_model("llama", tmp_path / "model")
    (model / "chat_template.jinja").write_text(TOOL_TEMPLATE)
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": content, "tool_calls": CALLS, "reasoning_content": "a tool knows"},
        {"role": "tool", "content": "rain", "name": "weather"},
        {"role": "assistant", "content": "It rains."},
    ]
    collate = open_collator(model, AutoConfig.from_pretrained(model))
    tokenizer = AutoTokenizer.from_pretrained(model)
    for tools in (TOOLS, json.dumps(TOOLS)):
        found = collate(parse_row(1, {"messages": messages, "tools": tools}, tmp_path)).input_ids
        expected = tokenizer.apply_chat_template(messages, tools=TOOLS, return_dict=False)
        assert found[0].tolist() == expected
        said = tokenizer.decode(found[0])
        assert all(word in said for word in ("TOOLS", "CALL weather", "THINKS a tool knows", "NAME weather"))
    without = parse_row(1, {"messages": messages}, tmp_path)
    assert without.digest != parse_row(1, {"messages": messages, "tools": TOOLS}, tmp_path).digest


def test_tools_that_are_no_list_of_objects_are_named(tmp_path: Path) -> None:
    for tools, said in (
        ("{", "tools is a string that is not JSON"),
        ([1], r"tools is \[1\], expected a list of objects"),
    ):
        with pytest.raises(InvalidCalibration, match=f"row 4: {said}"):
            parse_row(4, {"messages": [USER], "tools": tools}, tmp_path)


def test_a_token_that_the_model_has_no_embedding_for_names_the_row(tmp_path: Path) -> None:
    """Tokens were added to the tokenizer, and the model was not resized."""
    model = make_model("llama", tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens([f"<tool {number}>" for number in range(len(tokenizer), 1025)])
    tokenizer.save_pretrained(model)
    collate = open_collator(model, AutoConfig.from_pretrained(model))
    collate(parse_row(1, {"messages": [USER]}, tmp_path))
    with pytest.raises(InvalidCalibration, match=r"row 2: token 1024 is beyond the model's 1024 embeddings; .*resize"):
        collate(parse_row(2, {"messages": [{"role": "user", "content": "use <tool 1024>"}]}, tmp_path))


# --- Wrong rows ----------------------------------------------------------------------------------------------------

USER = {"role": "user", "content": "hello"}
WRONG: dict[str, tuple[Any, str]] = {
    "no messages": ({"text": "hi"}, "messages"),
    "messages empty": ({"messages": []}, "messages"),
    "messages a string": ({"messages": "hello"}, "messages"),
    "a message a string": ({"messages": ["hello"]}, "message 1"),
    "unknown role": ({"messages": [{"role": "robot", "content": "x"}]}, "'robot'"),
    "content a number": ({"messages": [{"role": "user", "content": 3}]}, "content is a number"),
    "unknown part": ({"messages": [USER, {"role": "user", "content": [{"type": "film"}]}]}, "message 2.*'film'"),
    "text part without text": ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "without a text"),
    "no text at all": (
        {"messages": [{"role": "user", "content": [{"type": "image", "image": data_uri(picture())}]}]},
        "no text",
    ),
    "blank text": ({"messages": [{"role": "user", "content": " \n"}]}, "no text"),
    "image part without image": ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "without an image"),
    "more images than parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}], "images": ["a.png", "b.png"]},
        "2 images but 0 image parts",
    ),
    "missing file": (image_row(1, "nowhere.png"), "nowhere.png.*does not exist"),
    "a directory": (image_row(1, "."), "does not exist"),
    "an absolute path": (image_row(1, "/etc/passwd"), "relative"),
    "a path that climbs out": (image_row(1, "../secret.png"), "leaves the directory"),
    "a link that leads out": (image_row(1, "link.png"), "leaves the directory"),
    "a NUL in the path": (image_row(1, "a\x00b.png"), "relative"),
    "a URL": (image_row(1, "https://example.com/a.png"), "nothing is fetched"),
    "a data URI that is not base64": (image_row(1, "data:image/png;base64,!!!"), "not base64"),
    "a data URI without base64": (image_row(1, "data:text/plain,hello"), "data URI"),
    "an image that is a number": (image_row(1, 7), "neither a path"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_row_is_named(name: str, tmp_path: Path) -> None:
    row, reason = WRONG[name]
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.png").write_bytes(picture())
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(InvalidCalibration, match=f"row 17.*{reason}") as raised:
        parse_row(17, row, inside, follow_links=False)
    assert len(str(raised.value)) < 400


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.binary(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["messages", "role", "content", "type", "text", "image", "images", "x"]), inner
            )
        ),
        max_leaves=12,
    )
)
@settings(max_examples=300, deadline=None)
def test_no_content_escapes_as_another_error(content: Any) -> None:
    with suppress(InvalidCalibration):
        parse_row(1, content, Path("/nonexistent"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a PNG, JPEG or WEBP image"),
        (b"not an image at all", "not a PNG, JPEG or WEBP image"),
        (picture(kind="GIF"), "it looks like GIF"),
        (picture(kind="BMP"), "it looks like BMP"),
        (picture(kind="TIFF"), "it looks like TIFF"),
        (picture()[:-400], "corrupt"),
        (picture()[:60], "corrupt"),
        (picture(kind="JPEG")[:300], "corrupt"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidCalibration, match=f"row 3, image 1: .*{reason}"):
        decode(data, "calibration row 3, image 1")


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_an_image_of_a_hundred_megapixels_is_refused_before_it_is_decoded(side: int) -> None:
    out = io.BytesIO()
    Image.new("1", (side, side)).save(out, format="PNG")
    with pytest.raises(InvalidCalibration, match=r"row 3, image 1: .*at most 50 million"):
        decode(out.getvalue(), "calibration row 3, image 1")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_three_formats_are_decoded(kind: str) -> None:
    assert decode(picture(kind=kind), "row").size == (84, 84)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"\n\n  \n", "holds no row"),
        (b"x" * 2_000_000, "row 1: not JSON.*2000000 bytes"),
        (b"\x00\xff" * 1_000_000, "row 1: not UTF-8"),
        (json.dumps(text_row(1)).encode() + b"\n{broken\n", "row 2: not JSON"),
        (json.dumps(text_row(1)).encode() + b"\n\n[1, 2]\n", "row 3: a list; expected"),
        (b"[" * 100_000, "row 1: the file ends before its list does"),
    ],
)
def test_a_file_that_is_not_rows_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_bytes(content)
    with pytest.raises(InvalidCalibration, match=reason) as raised:
        open_rows(tmp_path / "r.jsonl")
    assert len(str(raised.value)) < 300
    assert "\n" not in str(raised.value)


def test_a_broken_row_among_many_is_one_bad_row(tmp_path: Path) -> None:
    lines = [json.dumps(text_row(i)) for i in range(20)]
    (tmp_path / "r.jsonl").write_text("\n".join([*lines[:7], "{broken", "[1]", *lines[9:]]))
    read = list(open_rows(tmp_path / "r.jsonl").read(range(20)))
    assert [row.number for row in read if isinstance(row, BadRow)] == [8, 9]
    (tmp_path / "r.jsonl").write_text("\n".join([*lines[:7], "{broken", "[1]", "3", *lines[10:]]))
    with pytest.raises(InvalidCalibration, match=r"row 8: not JSON.*; 3 of 20 rows cannot be used, at most 10% may be"):
        open_rows(tmp_path / "r.jsonl")


def test_a_parquet_file_that_is_not_one_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([text_row(1)]), tmp_path / "r.parquet")
    content = (tmp_path / "r.parquet").read_bytes()
    (tmp_path / "r.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(InvalidCalibration, match=r"r\.parquet is not a Parquet file, or truncated"):
        open_rows(tmp_path / "r.parquet")
    pq.write_table(pa.table({"caption": ["x"]}), tmp_path / "r.parquet")
    with pytest.raises(InvalidCalibration, match="no column messages; it has caption"):
        open_rows(tmp_path / "r.parquet")


def test_a_calibration_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidCalibration, match=r"nowhere\.jsonl does not exist"):
        open_rows(tmp_path / "nowhere.jsonl")
