"""SentencePiece model files for tests: the protobuf message, written field by field."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
Pieces = Sequence[tuple[str, float, int]]


def byte_pieces() -> list[tuple[str, float, int]]:
    return [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]


def write_pieces(path: Path, pieces: Pieces, *, prefix_space: bool, algorithm: int = 2) -> Path:
    message = b""
    for text, score, kind in pieces:
        piece = _bytes(1, text.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind)
        message += _bytes(1, piece)
    message += _bytes(2, _number(3, algorithm) + _number(35, 1) + _number(40, 0))
    message += _bytes(3, _bytes(1, b"identity") + _number(3, int(prefix_space)) + _number(4, 0))
    path.write_bytes(message)
    return path


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])
