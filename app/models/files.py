"""The files of a model on the hub or below the model root: named and stamped here, parsed by children alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app.parsing.children import Callbacks
from core.contract.local_model import NoLocalModel, local_directory, model_fingerprint
from core.contract.spec import ModelRef
from core.settings import Settings
from quant_experts.planning.counting import TOKENIZER
from quant_experts.planning.errors import Unreadable
from quant_experts.planning.hub import HubFiles, resolve_dataset
from quant_experts.planning.local import LocalFiles
from quant_experts.planning.text_files import READ
from quant_experts.spec.prefixes import LOCAL

HUB_SECONDS = 30.0


@dataclass(frozen=True)
class ModelFiles:
    """``key`` changes with the files. ``commit``: of a hub model. ``fingerprint``: of a local model."""

    files: LocalFiles | HubFiles
    key: str
    commit: str | None = None
    fingerprint: str | None = None

    @property
    def callbacks(self) -> Callbacks:
        """Functions by which a child reads the files."""
        files = self.files
        functions = (files.whole, files.tokenizer, files.headers, files.header, files.range)
        return {each.__name__: each for each in functions}


@dataclass(frozen=True)
class ModelText:
    """The files that turn rows into tokens. ``callbacks``: functions by which a child reads the files in ``names``."""

    names: list[str]
    callbacks: Callbacks
    commit: str | None = None


def read_model_text(model: ModelRef, settings: Settings, *, token: str | None = None) -> ModelText | None:
    """Blocks and raises as ``read_model``. Files of a hub model are fetched here, so that their reader does not wait
    for the hub."""
    files = read_model(model, settings, token=token)
    if files is None or not isinstance(files.files, HubFiles):
        return None if files is None else ModelText(files.files.names, files.callbacks)
    hub = files.files
    names = [name for name in hub.names if name in READ]
    contents = {name: _fetched(hub.tokenizer if name == TOKENIZER else hub.whole, name) for name in names}

    def whole(name: str) -> bytes:
        content = contents[name]
        if isinstance(content, Unreadable):
            raise content
        return content

    return ModelText(names, {"whole": whole, "tokenizer": whole}, commit=files.commit)


def _fetched(fetch: Callable[[str], bytes], name: str) -> bytes | Unreadable:
    """The content, or the error: the reader decides whether it needs the file."""
    try:
        return fetch(name)
    except Unreadable as error:
        return error


def visible_directory(model_id: str, root: Path | None) -> Path | None:
    """The directory of ``local/<name>``; None when the root is mounted where the workers are, and not here.

    Raises Unreadable.
    """
    if root is not None and not root.is_dir():
        return None
    try:
        return local_directory(model_id, root)
    except NoLocalModel as error:
        raise Unreadable("model_not_found", str(error)) from None


def read_model(model: ModelRef, settings: Settings, *, token: str | None = None) -> ModelFiles | None:
    """The files of a model, unparsed. ``token``: for the hub. None for a local model that only the workers see. Blocks.
    Raises Unreadable, HubUnavailable."""
    if model.id.startswith(LOCAL):
        directory = visible_directory(model.id, settings.model_root)
        if directory is None:
            return None
        try:
            files = LocalFiles(directory)
            return ModelFiles(files, f"{files.stamp} {model.id}", fingerprint=model_fingerprint(directory))
        except OSError as error:
            raise Unreadable("invalid_model", f"the model's files cannot be read: {error.strerror}") from None
    hub = HubFiles(model.id, revision=model.revision, token=token, endpoint=_endpoint(), seconds=HUB_SECONDS)
    return ModelFiles(hub, f"{model.id} {hub.commit}", commit=hub.commit)


def dataset_commit(repository: str, *, token: str | None) -> str:
    """Blocks. Raises Unreadable, HubUnavailable."""
    return resolve_dataset(repository, token=token, endpoint=_endpoint(), seconds=HUB_SECONDS)


def _endpoint() -> str | None:
    """The hub endpoint that the workers use too."""
    return os.environ.get("HF_ENDPOINT") or None
