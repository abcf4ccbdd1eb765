"""Disk space of a run: checked before it begins, and explained when the disk is full."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from quant_experts.errors import DiskFull
from quant_experts.files import NO_SPACE
from quant_experts.planning.errors import HubUnavailable, Unreadable
from quant_experts.planning.local import read_local
from quant_experts.planning.number_text import size_text
from quant_experts.planning.plan import Plan, make_plan
from quant_experts.planning.recipe import Recipe
from quant_experts.planning.rows import unknown_rows
from quant_experts.planning.sizes import export_bytes
from quant_experts.spec.specification import QuantizationSpec


def check_disk_space(
    model: Path, spec: QuantizationSpec, *, output: Path, work: Path, exports: Sequence[str] = ()
) -> None:
    """Raises DiskFull when the checkpoint, whose size is exact, does not fit beside the files of the run.

    Files of an earlier run in ``work`` count as written. A model that cannot be planned is not checked; the run reports
    it.
    """
    try:
        headers = read_local(model)
        recipe = Recipe.of(**spec.model_dump(), exports=exports)
        plan = make_plan(headers, recipe, unknown_rows(vision=False), from_hub=False)
    except (Unreadable, HubUnavailable, OSError):
        return
    for path, need in _needed(plan, output, work).items():
        free = shutil.disk_usage(path).free
        if free < need:
            raise DiskFull(
                f"{path} has {size_text(free)} free, and the run writes {size_text(need)} there at least: make room, "
                "or choose another --output and --work"
            )


def _needed(plan: Plan, output: Path, work: Path) -> dict[Path, int]:
    """Existing directory → bytes that the run writes below it at least. Blocks are written to ``work``, and again into
    the checkpoint."""
    blocks = sum(plan.size.blocks_after) if plan.size.is_exact else 0
    there = sum(path.stat().st_size for path in work.glob("blocks/*")) if work.is_dir() else 0
    needs: dict[Path, int] = {}
    exported = sum(export_bytes(name, plan.shapes, plan.size) for name in plan.recipe.exports)
    for path, size in ((output, plan.size.bytes_after_least + exported), (work, max(0, blocks - there))):
        parent_there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
        needs[parent_there] = needs.get(parent_there, 0) + size
    return needs


@contextmanager
def disk_full_advice(work: Path) -> Iterator[None]:
    """Turn the OSError of a full disk into DiskFull, which names the directory."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        full = Path(error.filename) if error.filename else work
        parent_there = next((parent for parent in (full, *full.absolute().parents) if parent.exists()), Path("/"))
        raise DiskFull(
            f"no space is left at {full} ({size_text(shutil.disk_usage(parent_there).free)} free); finished blocks are "
            f"kept in {work}: make room and run the same command again, which goes on from there"
        ) from error
