"""What a plan reads: a model's headers and a few of the rows, all of it bounded in bytes and time."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.datasets.upload import draft
from app.parsing import Died, parse
from app.parsing.children import Asked
from app.parsing.operations import ESTIMATE, Sampled, ToEstimate
from app.web.threads import aside
from core.contract.local_model import model_fingerprint
from core.contract.spec import ModelRef
from core.ledger.tables import Dataset
from core.settings import Settings
from core.storage import ObjectMissing, Storage
from quant_experts.planning.counting import TOKENIZER
from quant_experts.planning.errors import Unreadable
from quant_experts.planning.hub import HubFiles, resolve_dataset
from quant_experts.planning.local import LocalFiles
from quant_experts.planning.plan import Plan
from quant_experts.planning.recipe import Recipe
from quant_experts.planning.rows import Rows
from quant_experts.planning.text_files import READ

LOCAL, UPLOADED = "local/", "ds_"
HUB_SECONDS = 30.0
SAMPLED_BYTES = 8 << 20
SAMPLED_PARQUET = 64 << 20
"""Bytes of a file that is fetched as a whole for a look at its first rows."""
MOST_JUDGED = 512


@dataclass(frozen=True)
class Model:
    """``key``: another one when the files are; ``commit``: of a hub model; ``fingerprint``: of a local one."""

    files: LocalFiles | HubFiles
    key: str
    commit: str | None = None
    fingerprint: str | None = None

    @property
    def asked(self) -> Asked:
        """What a child may have of the files."""
        files = self.files
        served = (files.whole, files.tokenizer, files.headers, files.header, files.range)
        return {each.__name__: each for each in served}


@dataclass(frozen=True)
class ModelText:
    """What says how rows become tokens; ``asked``: what a child may have of the files in ``names``."""

    names: list[str]
    asked: Asked
    commit: str | None = None


def read_model_text(model: ModelRef, settings: Settings, *, token: str | None = None) -> ModelText | None:
    """Blocks, as ``read_model`` does, and raises the same. Of a hub model the files are fetched here, so that whoever
    reads them later does not wait for the hub."""
    read = read_model(model, settings, token=token)
    if read is None or not isinstance(read.files, HubFiles):
        return None if read is None else ModelText(read.files.names, read.asked)
    hub = read.files
    names = [name for name in hub.names if name in READ]
    fetched = {name: _fetched(hub.tokenizer if name == TOKENIZER else hub.whole, name) for name in names}

    def whole(name: str) -> bytes:
        found = fetched[name]
        if isinstance(found, Unreadable):
            raise found
        return found

    return ModelText(names, {"whole": whole, "tokenizer": whole}, commit=read.commit)


def _fetched(read: Callable[[str], bytes], name: str) -> bytes | Unreadable:
    """A file that is too large is the reader's to refuse: of some it can do without."""
    try:
        return read(name)
    except Unreadable as error:
        return error


def local_directory(model_id: str, root: Path | None) -> Path | None:
    """The directory of ``local/<name>``; None when the root is mounted where the workers are, and not here.

    Raises Unreadable.
    """
    name = model_id.removeprefix(LOCAL)
    if root is None:
        raise Unreadable("model_not_found", "this service has no local models: QE_MODEL_ROOT is not set")
    if not root.is_dir():
        return None
    directory = (root / name).resolve()
    if "/" in name or not directory.is_dir() or not directory.is_relative_to(root.resolve()):
        raise Unreadable("model_not_found", f"no directory {name!r} below the service's model root")
    return directory


def read_model(model: ModelRef, settings: Settings, *, token: str | None = None) -> Model | None:
    """Blocks, and opens nothing of what is in the files: children parse them. ``token``: for the hub. None for a local
    model that only the workers see. Raises Unreadable, HubUnavailable."""
    if model.id.startswith(LOCAL):
        directory = local_directory(model.id, settings.model_root)
        if directory is None:
            return None
        try:
            files = LocalFiles(directory)
            return Model(files, f"{files.stamp} {model.id}", fingerprint=model_fingerprint(directory))
        except OSError as error:
            raise Unreadable("invalid_model", f"the model's files cannot be read: {error.strerror}") from None
    hub = HubFiles(model.id, revision=model.revision, token=token, endpoint=_endpoint(), seconds=HUB_SECONDS)
    return Model(hub, f"{model.id} {hub.commit}", commit=hub.commit)


def dataset_commit(repository: str, *, token: str | None) -> str:
    """Blocks. Raises Unreadable, HubUnavailable."""
    return resolve_dataset(repository, token=token, endpoint=_endpoint(), seconds=HUB_SECONDS)


def _endpoint() -> str | None:
    """The hub that the workers ask as well."""
    return os.environ.get("HF_ENDPOINT") or None


async def estimate(
    model: Model,
    *,
    recipe: Recipe,
    cores: int,
    ratios: Mapping[str, Sequence[float]],
    dataset: Dataset | None,
    settings: Settings,
    storage: Storage,
) -> Plan:
    """The plan of a job. Of a hub dataset nothing is known before a job fetches it.

    Raises Unreadable for a model that cannot be read, also one that kills its reader; HubUnavailable.
    """
    key = f"{model.key} {dataset.id}" if dataset is not None else ""
    known = _judged.get(key)
    with draft(settings) as path:
        sampled = await aside(lambda: _sampled(dataset, path, storage)) if dataset and known is None else None
        wanted = ToEstimate(
            names=model.files.names,
            from_hub=model.commit is not None,
            recipe=recipe,
            cores=cores,
            ratios=ratios,
            rows=known,
            rows_bytes=dataset.bytes if dataset is not None else 0,
            dataset=sampled,
        )
        files = [path] if sampled is not None and sampled.readable else []
        try:
            found = await parse(ESTIMATE, wanted, files=files, asked=model.asked)
        except Died as died:
            raise Unreadable("invalid_model", f"the model's files, or the rows, cannot be read: {died}") from None
    if key:
        _keep(key, found.rows)
    return found.plan


_judged: dict[str, Rows] = {}
"""What was found of rows by the files that they were judged by, so that a job after its plan costs no counting."""


def _keep(key: str, rows: Rows) -> None:
    while len(_judged) >= MOST_JUDGED:
        del _judged[next(iter(_judged))]
    _judged[key] = rows


def _sampled(dataset: Dataset, path: Path, storage: Storage) -> Sampled:
    """``path`` becomes the file, or the beginning of it."""
    is_parquet = dataset.format == "parquet"
    readable = dataset.key is not None and not (is_parquet and dataset.bytes > SAMPLED_PARQUET)
    try:
        if readable and is_parquet:
            storage.fetch(str(dataset.key), path)
        elif readable:
            with storage.open(str(dataset.key)) as reader, path.open("xb") as beginning:
                beginning.write(reader.read(SAMPLED_BYTES))
    except (ObjectMissing, OSError):
        readable = False
    return Sampled(dataset.rows, dataset.images, is_parquet, readable)
