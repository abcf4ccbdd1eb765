"""A SentencePiece file gives the tokens that the SentencePiece library gives.

Checked by hand against sentencepiece 0.2 too: 3 trained models (as InternLM2's, as Llama's, with its defaults), 206
texts each, no difference in ids or decoded text. Here the expected ids are worked out from the scores.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from quant_experts.errors import InvalidModel
from quant_experts.model.families.sentencepiece_file import build_tokenizer, read_pieces
from tests.sentencepiece_writer import CONTROL, NORMAL, UNKNOWN, Pieces, byte_pieces, write_pieces

START: Pieces = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL), *byte_pieces()]
LETTERS: Pieces = [(letter, -100.0 - n, NORMAL) for n, letter in enumerate("▁abc")]
MERGED: Pieces = [("bc", -1.0, NORMAL), ("ab", -2.0, NORMAL), ("▁a", -3.0, NORMAL), ("abc", -4.0, NORMAL)]
UNUSED: Pieces = [("[UNUSED]", -200.0, NORMAL)]
ALL = [*START, *LETTERS, *MERGED, *UNUSED]
ID = {text: number for number, (text, _, _) in enumerate(ALL)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_pieces(tmp_path / "tokenizer.model", ALL, prefix_space=False)


def test_the_best_scored_pair_is_merged_first(file: Path) -> None:
    tokenizer = build_tokenizer(file, {}, bos=None)
    # "bc" scores above "ab", so that "abc" is a + bc, and that is a piece again.
    assert tokenizer.encode("abc").ids == [ID["abc"]]
    assert tokenizer.encode("bab").ids == [ID["b"], ID["ab"]]
    assert tokenizer.encode("b ab").ids == [ID["b"], ID["▁"], ID["ab"]]


def test_what_no_piece_covers_becomes_bytes_and_comes_back(file: Path) -> None:
    tokenizer = build_tokenizer(file, {}, bos=None)
    ids = tokenizer.encode("aé b").ids
    assert ids == [ID["a"], ID["<0xC3>"], ID["<0xA9>"], ID["▁"], ID["b"]]
    assert tokenizer.decode(ids) == "aé b"


def test_a_prefix_space_is_added_where_the_file_asks_for_one(tmp_path: Path) -> None:
    file = write_pieces(tmp_path / "tokenizer.model", ALL, prefix_space=True)
    tokenizer = build_tokenizer(file, {}, bos="<s>")
    ids = tokenizer.encode("ab").ids
    assert ids == [ID["<s>"], ID["▁"], ID["ab"]]
    assert tokenizer.decode(ids) == "ab"


def test_added_tokens_rename_pieces_and_follow_them(file: Path) -> None:
    added = {ID["[UNUSED]"]: "<|im_end|>", len(ALL): "<img>", len(ALL) + 1: "</img>"}
    tokenizer = build_tokenizer(file, added, bos=None)
    assert tokenizer.encode("a<img>b</img><|im_end|>").ids == [
        *(ID["a"], len(ALL), ID["b"], len(ALL) + 1),
        ID["[UNUSED]"],
    ]


@pytest.mark.parametrize(
    ("added", "message"), [({len(ALL) + 1: "<img>"}, "not all taken"), ({ID["[UNUSED]"]: "abc"}, "appears twice")]
)
def test_added_tokens_that_do_not_fit_are_refused(file: Path, added: dict[int, str], message: str) -> None:
    with pytest.raises(InvalidModel, match=message):
        build_tokenizer(file, added, bos=None)


def test_a_unigram_model_is_refused(tmp_path: Path) -> None:
    file = write_pieces(tmp_path / "tokenizer.model", ALL, prefix_space=False, algorithm=1)
    with pytest.raises(InvalidModel, match="only BPE"):
        build_tokenizer(file, {}, bos=None)


@pytest.mark.parametrize(
    "content", [b"", b"\x0a", b"\x0a\xff\xff\xff\xff\xff\x7f", b"\xff" * 40, b"{}", b"\x0a\x02\x08\x01"]
)
def test_another_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(InvalidModel, match="not a SentencePiece model"):
        read_pieces(tmp_path / "tokenizer.model")


def test_a_truncated_file_is_refused(file: Path) -> None:
    content = file.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        file.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(InvalidModel):
            build_tokenizer(file, {}, bos=None)
