"""Measurements as small JSON files of the work directory, so that a resumed run decides as the first one did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quant_experts.files import file_digest
from quant_experts.model.tensor_file import write_text
from quant_experts.progress import WrittenFile


def read_record(work: Path, name: str, fingerprint: str) -> tuple[Any, WrittenFile] | None:
    """The content that ``write_record`` stored, and the file; None when there is none or it is another run's."""
    path = work / name
    try:
        text = path.read_bytes()
        record = json.loads(text)
        if record["fingerprint"] != fingerprint:
            return None
        return record["content"], WrittenFile(name, len(text), file_digest(path))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def write_record(work: Path, name: str, fingerprint: str, content: Any) -> WrittenFile:
    """``content``: anything JSON; a float comes back as the same float."""
    record = {"fingerprint": fingerprint, "content": content}
    return write_text(work / name, json.dumps(record, indent=1))
