"""Estimate a job from the headers of its model and a sample of its rows, bounded in bytes and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from app.datasets.upload import scratch_file
from app.models.files import ModelFiles
from app.parsing import Died, parse
from app.parsing.operations import ESTIMATE, DatasetSample, ToEstimate
from app.web.threads import run_in_thread
from core.ledger.tables import Dataset
from core.settings import Settings
from core.storage import ObjectMissing, Storage
from quant_experts.planning.errors import Unreadable
from quant_experts.planning.plan import Plan
from quant_experts.planning.recipe import Recipe
from quant_experts.planning.rows import Rows

SAMPLED_BYTES = 8 << 20
SAMPLED_PARQUET = 64 << 20
"""Largest Parquet file in bytes that is fetched to sample its first rows."""
MOST_JUDGED = 512


async def estimate(
    model: ModelFiles,
    *,
    recipe: Recipe,
    cores: int,
    ratios: Mapping[str, Sequence[float]],
    dataset: Dataset | None,
    settings: Settings,
    storage: Storage,
) -> Plan:
    """The plan of a job. The rows of a hub dataset are unknown until a job fetches it.

    Raises Unreadable for a model that cannot be read or crashes its reader; HubUnavailable.
    """
    key = f"{model.key} {dataset.id}" if dataset is not None else ""
    rows = _judged.get(key)
    with scratch_file(settings) as path:
        sample = await run_in_thread(lambda: _sampled(dataset, path, storage)) if dataset and rows is None else None
        arguments = ToEstimate(
            names=model.files.names,
            from_hub=model.commit is not None,
            recipe=recipe,
            cores=cores,
            ratios=ratios,
            rows=rows,
            rows_bytes=dataset.bytes if dataset is not None else 0,
            dataset=sample,
        )
        files = [path] if sample is not None and sample.readable else []
        try:
            estimate = await parse(ESTIMATE, arguments, files=files, callbacks=model.callbacks)
        except Died as died:
            raise Unreadable("invalid_model", f"the model's files, or the rows, cannot be read: {died}") from None
    if key:
        _keep(key, estimate.rows)
    return estimate.plan


_judged: dict[str, Rows] = {}
"""Cached statistics of rows by model and dataset, so that a job after its plan counts no tokens again."""


def _keep(key: str, rows: Rows) -> None:
    while len(_judged) >= MOST_JUDGED:
        del _judged[next(iter(_judged))]
    _judged[key] = rows


def _sampled(dataset: Dataset, path: Path, storage: Storage) -> DatasetSample:
    """Write the file, or the beginning of it, to ``path``."""
    is_parquet = dataset.format == "parquet"
    readable = dataset.key is not None and not (is_parquet and dataset.bytes > SAMPLED_PARQUET)
    try:
        if readable and is_parquet:
            storage.fetch(str(dataset.key), path)
        elif readable:
            with storage.open(str(dataset.key)) as reader, path.open("xb") as head:
                head.write(reader.read(SAMPLED_BYTES))
    except (ObjectMissing, OSError):
        readable = False
    return DatasetSample(dataset.rows, dataset.images, is_parquet, readable)
