"""``python -m app.openapi``: the API's contract as JSON, for the snapshot in the repository."""

from __future__ import annotations

import json
import sys

from app.main import create_app
from core.settings import Settings


def document() -> str:
    return json.dumps(create_app(Settings()).openapi(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document())
