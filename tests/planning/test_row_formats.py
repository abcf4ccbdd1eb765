"""Rows and files as people have them: each means the same to the library, the planner and the service, or is refused in
one line that says what to write."""

from __future__ import annotations

import base64
import gzip
import io
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.parsing.row_checks import check_row
from app.parsing.validation import InvalidRows, validate
from core.settings import Settings
from quant_experts.calibration.rows import BadRow, Row, parse_row
from quant_experts.calibration.samples import open_rows
from quant_experts.errors import InvalidCalibration
from quant_experts.planning.row_files import UnreadableFile, raw_rows
from quant_experts.planning.row_formats import UnknownRow, canonical
from quant_experts.planning.rows import counted_text, parsed_parquet
from tests.rows import data_uri, picture, text_row

PNG = picture(seed=1)
URI = data_uri(PNG)
BARE = base64.b64encode(PNG).decode()
USER, ASSISTANT = {"role": "user", "content": "What?"}, {"role": "assistant", "content": "A dot."}
ASKED = [{"type": "image"}, {"type": "text", "text": "What?"}]
TOLD = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dot."}]


def asked(part: dict[str, Any], **beside: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}, ASSISTANT], **beside}


SAME: dict[str, dict[str, Any]] = {
    "our own": asked({"type": "image", "image": URI}),
    "image column": {"messages": [{"role": "user", "content": ASKED}, ASSISTANT], "images": [{"bytes": BARE}]},
    "image beside messages": {"messages": [{"role": "user", "content": ASKED}, ASSISTANT], "image": URI},
    "ShareGPT and LLaVA": {"id": "000", "image": URI, "conversations": TOLD},
    "LLaVA, several": {"image": [URI], "conversations": TOLD},
    "LLaMA-Factory": {"messages": [{"role": "user", "content": "<image>What?"}, ASSISTANT], "images": [URI]},
    "LLaMA-Factory, a list": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "<image>What?"}]}, ASSISTANT],
        "images": [URI],
    },
    "ShareGPT of messages": {"conversations": [{"role": "user", "content": "<image>What?"}, ASSISTANT], "images": URI},
    "TRL": {"images": [URI], "messages": [USER, ASSISTANT]},
    "TRL, prompt and completion": {"images": [URI], "prompt": [USER], "completion": [ASSISTANT]},
    "LLaVA without a mark": {"image": URI, "conversations": [{"from": "human", "value": "What?"}, TOLD[1]]},
    "OpenAI": asked({"type": "image_url", "image_url": {"url": URI, "detail": "low"}}),
    "OpenAI, responses": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "input_image", "image_url": URI}, {"type": "input_text", "text": "What?"}],
            },
            {"role": "assistant", "content": "A dot."},
        ]
    },
    "Anthropic": asked({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BARE}}),
    "Qwen-VL": {"messages": [{"role": "user", "content": [{"image": URI}, {"text": "What?"}]}, ASSISTANT]},
    "bare base64": asked({"type": "image", "image": BARE}),
    "bare base64 in lines": asked({"type": "image", "image": base64.encodebytes(PNG).decode()}),
    "bare base64 beside": {"image": BARE, "conversations": TOLD},
    "nulls": {"messages": [USER, ASSISTANT], "images": [URI], "image": None, "videos": []},
    "roles of others": {
        "messages": [{"role": "human", "content": "What?"}, {**ASSISTANT, "role": "gpt"}],
        "image": URI,
    },
}
REFUSED: dict[str, tuple[Any, str]] = {
    "Alpaca": (
        {"instruction": "a", "input": "b", "output": "c"},
        r"instruction and output \(Alpaca\): write .*<output>",
    ),
    "question and answer": ({"image": URI, "question": "a", "answer": "b"}, "question and answer"),
    "preferences": ({"prompt": "a", "chosen": "b", "rejected": "c"}, "prompt and chosen"),
    "completions": ({"prompt": "a", "completion": "b"}, "prompt and completion as text"),
    "captions": ({"image": URI, "caption": "a"}, "captions"),
    "only text": ({"text": "abc"}, "it has text: write"),
    "a list": ([USER], "a list; expected"),
    "more marks than images": (
        {"image": URI, "conversations": [{"from": "human", "value": "<image><image>?"}]},
        "1 images but 2 <image> in the texts",
    ),
    "numbered marks": (
        {"messages": [{"role": "user", "content": "<image_1> and <image_2>"}], "images": [URI, URI]},
        "2 images but <image_1> in the texts: write <image> once",
    ),
    "two columns": ({"messages": [USER], "image": URI, "images": [URI]}, "both image and images"),
    "video files": ({"messages": [USER], "videos": ["a.mp4"]}, "a video is the list of its frames"),
    "a video file": (asked({"type": "video", "path": "a.mp4"}), "a video is the list of its frames"),
    "more videos than marks": (
        {"messages": [{"role": "user", "content": "<video> and <video>"}], "videos": [[URI]]},
        "1 videos but 2 <video> in the texts",
    ),
    "function_call": ({"conversations": [USER, {"from": "function_call", "value": "{}"}]}, "tool_calls"),
    "tool_use": ({"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}]}, "tool_calls"),
    "images a number": ({"messages": [USER], "images": 3}, "a number; expected a list"),
}


FILMED = {
    "our own": asked({"type": "video", "video": [URI, URI], "fps": 2}),
    "by its key": asked({"video": [URI, {"bytes": BARE}], "fps": 2}),
    "a path, as in transformers": asked({"type": "video", "path": [URI, BARE], "fps": 2}),
    "videos in turn": asked({"type": "video", "fps": 2}, videos=[[URI, URI]]),
}


@pytest.mark.parametrize("name", FILMED)
def test_a_video_means_the_same_in_every_format(name: str, tmp_path: Path) -> None:
    row = parse_row(1, FILMED[name], tmp_path)
    assert [(video.frames, video.fps) for video in row.videos] == [((PNG, PNG), 2)]
    assert row.messages[0]["content"] == [{"type": "video"}, {"type": "text", "text": "What?"}]
    check = check_row(FILMED[name], Settings())
    assert (check.images, check.problems) == (2, [])


def test_a_mark_says_where_a_video_belongs(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "<video>\nWhat?"}, ASSISTANT], "videos": [[URI]]}
    assert parse_row(1, row, tmp_path).messages[0]["content"] == [{"type": "video"}, {"type": "text", "text": "What?"}]


def settled(row: Row | BadRow) -> tuple[Any, ...]:
    assert isinstance(row, Row)
    return [(m["role"], m["content"]) for m in row.messages], row.images


@pytest.mark.parametrize("name", SAME)
def test_a_row_means_the_same_in_every_format(name: str, tmp_path: Path) -> None:
    row = SAME[name]
    wanted = [("user", ASKED), ("assistant", "A dot.")], (PNG,)
    assert settled(parse_row(1, row, tmp_path)) == wanted
    check = check_row(row, Settings())
    assert (check.images, check.problems) == (1, [])
    again = canonical(row)
    assert canonical(again) == again


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_be_understood_in_two_ways_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    row, words = REFUSED[name]
    with pytest.raises(InvalidCalibration, match=f"^calibration row 7: .*{words}") as raised:
        parse_row(7, row, tmp_path)
    problems = check_row(row, Settings()).problems
    assert f"calibration row 7: {problems[0].detail}" == str(raised.value)
    assert len(str(raised.value)) < 300
    assert "\n" not in str(raised.value)


def test_a_system_prompt_beside_the_conversation_comes_first(tmp_path: Path) -> None:
    row = {"system": "Be short.", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}
    assert [m["role"] for m in parse_row(1, row, tmp_path).messages] == ["system", "user", "assistant"]
    assert canonical({"system": "x", "messages": [{"role": "system", "content": "y"}]})["messages"][0]["content"] == "y"


def test_sounds_beside_the_conversation_go_where_the_text_says() -> None:
    row = {"messages": [{"role": "user", "content": "<audio>Write."}], "audios": ["data:audio/wav;base64,AA=="]}
    part = {"type": "audio", "audio": "data:audio/wav;base64,AA=="}
    assert canonical(row)["messages"][0]["content"] == [part, {"type": "text", "text": "Write."}]
    openai = {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}
    assert canonical({"messages": [{"role": "user", "content": [openai]}]})["messages"][0]["content"] == [part]


def test_audios_that_are_null_are_none_and_what_is_no_list_is_named() -> None:
    plain = {"messages": [{"role": "user", "content": "Hi"}]}
    assert canonical({**plain, "audios": None}) == plain
    with pytest.raises(UnknownRow, match="expected a list"):
        canonical({**plain, "audios": 0})


def test_a_text_with_the_mark_and_no_image_stays_a_text(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "What does <image> do in SVG?"}]}
    assert parse_row(1, row, tmp_path).messages[0]["content"] == "What does <image> do in SVG?"


# --- Files ---------------------------------------------------------------------------------------------------------

ROWS = [{**text_row(i), "note": 'a " \\ ] } , [ ä\n'} for i in range(7)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
FILES = {
    "lines": LINES,
    "no line break at the end": LINES[:-1],
    "Windows line breaks": LINES.replace(b"\n", b"\r\n"),
    "byte order mark": b"\xef\xbb\xbf" + LINES,
    "gzip": gzip.compress(LINES, mtime=0),
    "gzip in two parts": gzip.compress(LINES[:50], mtime=0) + gzip.compress(LINES[50:], mtime=0),
    "a list": json.dumps(ROWS).encode(),
    "a list over lines": json.dumps(ROWS, indent=2).encode(),
    "a list with a mark": b"\xef\xbb\xbf \n" + json.dumps(ROWS, indent=1).encode() + b"\n\n",
    "a packed list": gzip.compress(json.dumps(ROWS).encode(), mtime=0),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_the_same_way_in_every_form(name: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(FILES[name])
    rows = open_rows(path)
    read = [row for row in rows.read(range(7)) if isinstance(row, Row)]
    assert [row.messages[0]["content"] for row in read] == [r["messages"][0]["content"] for r in ROWS]
    assert [row.number for row in rows.read([2, 5])] == [3, 6]
    assert validate(path, Settings()).rows == 7
    assert counted_text(path, 3) == ([canonical(row) for row in ROWS[:3]], 7)


@pytest.mark.parametrize("columns", ["conversations", "messages as JSON", "image"])
def test_parquet_is_read_the_same_way(columns: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    row: dict[str, Any] = {"conversations": TOLD, "image": {"bytes": PNG, "path": None}}
    if columns == "messages as JSON":
        row = {"messages": json.dumps([{"role": "user", "content": "<image>What?"}, ASSISTANT]), "images": [PNG]}
    elif columns == "image":
        row = {"messages": [USER, ASSISTANT], "image": {"bytes": PNG, "path": "a.png"}}
    pq.write_table(pa.Table.from_pylist([row] * 3), path)
    found = list(open_rows(path).read([0, 2]))
    assert [settled(each) for each in found] == [([("user", ASKED), ("assistant", "A dot.")], (PNG,))] * 2
    assert (validate(path, Settings()).rows, validate(path, Settings()).images) == (3, 3)
    sample, count = parsed_parquet(path, 2)
    assert (len(sample), count, sample[0]["messages"][0]["content"]) == (2, 3, ASKED)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04rest", "ZIP archive: unpack it"),
        (b"ARROW1\x00\x00", "Arrow file: save it as Parquet"),
        ("x".encode("utf-16"), "UTF-16 text: save it as UTF-8"),
        (json.dumps({"data": ROWS}, indent=1).encode(), "one JSON object over many lines"),
        (gzip.compress(LINES, mtime=0)[:-20], "gzip file is cut off"),
        (b"id,question,answer\n1,a,b\n", "row 1: not JSON .*begins with 'id,question,answer': write one JSON"),
        (json.dumps(ROWS).encode()[:-9], "row 7: the file ends before its list does"),
        (json.dumps(ROWS).encode() + b"[]", "row 8: there is more after the end of the list"),
        (b'[{"messages": 1 "x"}]', "row 1: not JSON"),
        (b"[]", "no row"),
    ],
)
def test_a_file_of_another_kind_is_named(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(InvalidCalibration, match=words) as library:
        open_rows(path)
    with pytest.raises(InvalidRows, match=words):
        validate(path, Settings())
    assert len(str(library.value)) < 300


@given(
    st.lists(
        st.recursive(st.text('[]{},"\\ab\n'), lambda i: st.lists(i) | st.dictionaries(st.text("ab"), i)), max_size=5
    ),
    st.integers(0, 3),
    st.integers(1, 9),
)
@settings(deadline=None)
def test_a_list_is_cut_into_its_elements_wherever_reading_stops(items: list[Any], indent: int, step: int) -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(step, size or step))

    text = json.dumps(items, indent=indent or None, ensure_ascii=False).encode()
    found = list(raw_rows(Slow(text)))
    assert [row.parsed() for row in found] == items
    for row in found:
        assert isinstance(row.text, bytes)
        assert text[row.start : row.start + len(row.text)] == row.text


def test_a_text_that_unpacks_to_too_much_is_refused() -> None:
    with pytest.raises(UnreadableFile, match="unpacks to more than 1000 bytes"):
        list(raw_rows(io.BytesIO(LINES * 9), most=1000))


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda i: (
            st.lists(i, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "messages",
                        "conversations",
                        "from",
                        "value",
                        "role",
                        "content",
                        "type",
                        "image",
                        "images",
                        "audios",
                        "prompt",
                        "completion",
                        "source",
                        "text",
                    ]
                ),
                i,
                max_size=4,
            )
        ),
        max_leaves=15,
    )
)
@settings(max_examples=300, deadline=None)
def test_no_row_escapes_as_another_error(row: Any) -> None:
    with suppress(UnknownRow):
        assert canonical(canonical(row)) == canonical(row)
