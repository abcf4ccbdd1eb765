"""The files of a commit as a tree. Folders exist only in the names of files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from app.hub.schemas import LastCommit, TreeFile, TreeFolder
from core.ledger.tables import Artifact

Entry = TreeFile | TreeFolder


def listing(files: Sequence[Artifact], *, below: str, recursive: bool, last: LastCommit | None) -> list[Entry]:
    """Entries of the folder ``below`` ("" is the root), with ``recursive`` also those of its subfolders."""
    prefix = f"{below.strip('/')}/" if below.strip("/") else ""
    inside = [artifact for artifact in files if artifact.name.startswith(prefix)]
    entries: dict[str, Entry] = {}
    for artifact in inside:
        parts = artifact.name.removeprefix(prefix).split("/")
        for depth in range(1, len(parts)):
            folder = prefix + "/".join(parts[:depth])
            if recursive or depth == 1:
                entries.setdefault(folder, _folder(folder, files, last))
        if recursive or len(parts) == 1:
            entries[artifact.name] = TreeFile.of(artifact, last)
    return [entries[path] for path in sorted(entries)]


def named(files: Sequence[Artifact], paths: Iterable[str], *, last: LastCommit | None) -> list[Entry]:
    """Entries of these paths, files and folders. Missing paths are left out."""
    by_name = {artifact.name: artifact for artifact in files}
    entries: list[Entry] = []
    for path in dict.fromkeys(path.strip("/") for path in paths):
        if path in by_name:
            entries.append(TreeFile.of(by_name[path], last))
        elif path and any(name.startswith(f"{path}/") for name in by_name):
            entries.append(_folder(path, files, last))
    return entries


def _folder(path: str, files: Sequence[Artifact], last: LastCommit | None) -> TreeFolder:
    return TreeFolder.of(path, [artifact for artifact in files if artifact.name.startswith(f"{path}/")], last)
