"""The child that uploads. Its order comes on stdin; it asks for each file that the destination lacks.

    python -m worker.pushes.uploader

It knows neither the ledger nor our storage: its parent puts a file on disk when it is asked for. The tenant's key comes
in the order, and is in no environment and on no command line. JSON lines, both ways:

- in: the order ``{"kind", "walled", "access", "files", …}``, then ``{"path"}`` for each file that was asked for
- out: ``{"type": "want", "name"}``, ``{"type": "there", "name"}``, at the end ``{"type": "done", "result"}`` or
  ``{"type": "error", "message", "final"}``
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from core.logs import configure_logging
from quant_experts.files import file_digest
from worker.pushes.refusal import Refused
from worker.pushes.walls import Wall, only_public


class Target(Protocol):
    """Where files go. Every method may raise Refused, where no waiting helps, or anything else."""

    def prepare(self) -> None:
        """Look what is there; make what must be there."""

    def has(self, file: Mapping[str, Any]) -> bool:
        """Whether the same bytes are there already. ``file``: ``name bytes sha256 media_type``."""

    def put(self, file: Mapping[str, Any], path: Path) -> None:
        """Upload the file; what needs ``path`` no longer removes it."""

    def finish(self) -> dict[str, Any]:
        """Make everything visible. Returns what the push's owner sees: ``url`` and so on."""

    def explain(self, error: Exception) -> Exception:
        """``error`` in words that hold no key and no signed address; Refused where no waiting helps."""


def main() -> int:
    configure_logging("text")
    order = json.loads(sys.stdin.readline())
    wall = only_public() if order["walled"] else None
    target: Target | None = None
    try:
        target = _target(order)
        target.prepare()
        for file in order["files"]:
            if not target.has(file):
                _put(target, file)
            _say(type="there", name=file["name"])
        _say(type="done", result=target.finish())
    except Exception as error:  # noqa: BLE001 -- whatever it is, the owner must be told
        _say(type="error", **_told(error, target, wall))
        return 1
    return 0


def _target(order: Mapping[str, Any]) -> Target:
    # Each loads its client alone, and not every keeper has each.
    if order["kind"] == "hub":
        from worker.pushes.hub import HubTarget

        return HubTarget(order)
    if order["kind"] == "tracking":
        try:
            from worker.pushes.tracking import TrackingTarget
        except ImportError:
            raise Refused("the tracking server gets no runs: the keeper needs quant-experts[mlflow]") from None
        return TrackingTarget(order)
    try:
        from worker.pushes.bucket import BucketTarget
    except ImportError:
        raise Refused("this service pushes to no buckets: its keeper needs quant-experts[s3]") from None
    return BucketTarget(order)


def _put(target: Target, file: Mapping[str, Any]) -> None:
    _say(type="want", name=file["name"])
    path = Path(json.loads(sys.stdin.readline())["path"])
    if path.stat().st_size != file["bytes"] or file_digest(path) != file["sha256"]:
        raise Refused(f"{file['name']} is damaged in the service's storage: its sha256 does not match")
    target.put(file, path)


def _told(error: Exception, target: Target | None, wall: Wall | None) -> dict[str, Any]:
    if wall is not None and wall.refused is not None:
        return {"message": wall.refused, "final": True}
    explained = error if isinstance(error, Refused) or target is None else target.explain(error)
    if isinstance(explained, Refused):
        return {"message": str(explained), "final": True}
    return {"message": str(explained), "final": False}


def _say(**line: Any) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
