"""A SentencePiece ``tokenizer.model`` as a tokenizer, without the SentencePiece library.

InternLM2 repositories have no other tokenizer file, and read this one with Python code of their own, which is never
run. The file is one protobuf message (google/sentencepiece, ``sentencepiece_model.proto``); few of its fields
matter here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors

from quant_experts.errors import InvalidModel

BPE = 2
CONTROL, USER_DEFINED = 3, 4
SPACE = "▁"


@dataclass(frozen=True)
class Piece:
    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class PieceModel:
    """``pieces``: by id. ``character_map``: a compiled normalisation, empty for none."""

    pieces: tuple[Piece, ...]
    algorithm: int
    byte_fallback: bool
    unknown: int
    prefix_space: bool
    joins_spaces: bool
    character_map: bytes


def read_pieces(path: Path) -> PieceModel:
    """Raises InvalidModel when the file is not a SentencePiece model."""
    try:
        message = path.read_bytes()
        fields = list(_fields(message))
        pieces = tuple(_piece(value) for number, value in fields if number == 1 and isinstance(value, bytes))
        trainer = dict(_fields(b"".join(value for number, value in fields if number == 2)))  # type: ignore[misc]
        normalizer = dict(_fields(b"".join(value for number, value in fields if number == 3)))  # type: ignore[misc]
        if not pieces:
            raise ValueError("no pieces")
        return PieceModel(
            pieces=pieces,
            algorithm=_number(trainer.get(3, 1)),
            byte_fallback=bool(trainer.get(35, 0)),
            unknown=_number(trainer.get(40, 0)),
            prefix_space=bool(normalizer.get(3, 1)),
            joins_spaces=bool(normalizer.get(4, 1)),
            character_map=bytes(normalizer.get(2, b"")),
        )
    except (OSError, ValueError, TypeError, IndexError, struct.error) as error:
        raise InvalidModel(f"{path.name} is not a SentencePiece model: {error}") from error


def build_tokenizer(path: Path, tokens: Mapping[int, str], *, bos: str | None) -> Tokenizer:
    """The tokenizer of the file, with the tokens that the repository adds or renames. ``tokens``: id → text.

    ``bos``: the token that every text starts with, or None.
    Raises InvalidModel for another algorithm than BPE, and for added tokens that leave a gap.
    """
    model = read_pieces(path)
    if model.algorithm != BPE:
        raise InvalidModel(f"{path.name}: only BPE models of SentencePiece are supported; give a tokenizer.json")
    texts = [tokens.get(number, piece.text) for number, piece in enumerate(model.pieces)]
    vocabulary = {text: number for number, text in enumerate(texts)}
    if len(vocabulary) != len(texts):
        raise InvalidModel(f"{path.name}: a piece or an added token appears twice")
    special = {n for n, piece in enumerate(model.pieces) if piece.kind in (CONTROL, USER_DEFINED)} | set(tokens)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(model, vocabulary, special),
            unk_token=texts[model.unknown],
            fuse_unk=True,
            byte_fallback=model.byte_fallback,
        )
    )
    tokenizer.normalizer = _normaliser(model)
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if model.prefix_space else parts)
    for number in sorted(special):
        text = tokens.get(number) or texts[number]
        tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True)])
        if tokenizer.token_to_id(text) != number:
            raise InvalidModel(f"added token {text!r} has id {number}, but the ids before it are not all taken")
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, tokenizer.token_to_id(bos))],
        )
    return tokenizer


def _merges(model: PieceModel, vocabulary: Mapping[str, int], special: set[int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, the best-scored piece first: SentencePiece merges by score alone."""
    ordinary = [(piece, n) for n, piece in enumerate(model.pieces) if piece.kind == 1 and n not in special]
    merges = []
    for piece, _ in sorted(ordinary, key=lambda entry: (-entry[0].score, entry[1])):
        halves = ((piece.text[:cut], piece.text[cut:]) for cut in range(1, len(piece.text)))
        pairs = [half for half in halves if half[0] in vocabulary and half[1] in vocabulary]
        merges += sorted(pairs, key=lambda half: (vocabulary[half[0]], vocabulary[half[1]]))
    return merges


def _normaliser(model: PieceModel) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if model.character_map:
        steps.append(normalizers.Precompiled(model.character_map))
    if model.joins_spaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.prefix_space:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def _piece(message: bytes) -> Piece:
    fields = dict(_fields(message))
    text, score = fields.get(1, b""), fields.get(2, b"\0\0\0\0")
    if not isinstance(text, bytes) or not isinstance(score, bytes):
        raise ValueError("a piece without text")
    return Piece(text.decode("utf-8"), float(struct.unpack("<f", score)[0]), _number(fields.get(3, 1)))


def _number(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("bytes where a number was due")
    return value


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protobuf message; nested messages, text and fixed-size numbers as bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"field of an unknown kind at byte {at}")
        size = 8 if kind == 1 else 4
        if kind == 2:
            size, at = _varint(message, at)
        if at + size > len(message):
            raise ValueError(f"truncated at byte {at}")
        yield tag >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError(f"number too long at byte {at}")
