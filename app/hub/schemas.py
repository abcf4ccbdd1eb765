"""What Hub clients see. The names are the protocol's own; ``huggingface_hub`` reads them as keyword arguments."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from app.hub.queries import Commit
from core.ledger.tables import Artifact


class LfsTree(BaseModel):
    oid: str = Field(description="SHA-256 of the file.")
    size: int
    pointerSize: int  # noqa: N815 -- the protocol's name


class LfsSibling(BaseModel):
    sha256: str
    size: int
    pointerSize: int  # noqa: N815


class LastCommit(BaseModel):
    id: str
    title: str
    date: datetime


class TreeFile(BaseModel):
    type: Literal["file"] = "file"
    oid: str = Field(description="Git's name of the pointer by which LFS stands for the file.")
    size: int
    path: str
    lfs: LfsTree
    lastCommit: LastCommit | None = None  # noqa: N815

    @classmethod
    def of(cls, artifact: Artifact, last_commit: LastCommit | None = None) -> TreeFile:
        pointer = lfs_pointer(artifact)
        return cls(
            oid=git_blob_id(pointer),
            size=artifact.bytes,
            path=artifact.name,
            lfs=LfsTree(oid=artifact.sha256, size=artifact.bytes, pointerSize=len(pointer)),
            lastCommit=last_commit,
        )


class TreeFolder(BaseModel):
    type: Literal["directory"] = "directory"
    oid: str
    size: int = 0
    path: str
    lastCommit: LastCommit | None = None  # noqa: N815

    @classmethod
    def of(cls, path: str, inside: Sequence[Artifact], last_commit: LastCommit | None = None) -> TreeFolder:
        lines = "\n".join(f"{artifact.name} {artifact.sha256}" for artifact in inside)
        oid = hashlib.sha1(lines.encode(), usedforsecurity=False).hexdigest()
        return cls(oid=oid, path=path, lastCommit=last_commit)


class Sibling(BaseModel):
    rfilename: str
    size: int | None = None
    blobId: str | None = None  # noqa: N815
    lfs: LfsSibling | None = None

    @classmethod
    def of(cls, artifact: Artifact, *, blobs: bool) -> Sibling:
        if not blobs:
            return cls(rfilename=artifact.name)
        pointer = lfs_pointer(artifact)
        lfs = LfsSibling(sha256=artifact.sha256, size=artifact.bytes, pointerSize=len(pointer))
        return cls(rfilename=artifact.name, size=artifact.bytes, blobId=git_blob_id(pointer), lfs=lfs)


class ModelView(BaseModel):
    id: str = Field(examples=["qe/job_0198a1b2c3d47e5f8a9b0c1d2e3f4a5b", "team/model-w4a6"])
    modelId: str  # noqa: N815
    author: str
    sha: str
    lastModified: datetime  # noqa: N815
    createdAt: datetime  # noqa: N815
    private: bool = True
    gated: bool = False
    disabled: bool = False
    downloads: int = 0
    likes: int = 0
    library_name: str = "transformers"
    tags: list[str]
    cardData: dict[str, str]  # noqa: N815
    usedStorage: int  # noqa: N815
    siblings: list[Sibling]

    @classmethod
    def of(cls, repository: str, commit: Commit, files: Sequence[Artifact], *, blobs: bool) -> ModelView:
        return cls(
            id=repository,
            modelId=repository,
            author=repository.partition("/")[0],
            sha=commit.sha,
            lastModified=commit.date,
            createdAt=commit.date,
            tags=["transformers", "safetensors", f"base_model:quantized:{commit.model_id}", commit.scheme],
            cardData={"base_model": commit.model_id, "library_name": "transformers"},
            usedStorage=sum(artifact.bytes for artifact in files),
            siblings=[Sibling.of(artifact, blobs=blobs) for artifact in files],
        )


class Ref(BaseModel):
    name: str
    ref: str
    targetCommit: str  # noqa: N815


class Refs(BaseModel):
    """`main`, a branch per export of the newest job, and one tag per job."""

    branches: list[Ref]
    tags: list[Ref]
    converts: list[Ref] = Field(default_factory=list)
    pullRequests: list[Ref] = Field(default_factory=list)  # noqa: N815

    @classmethod
    def of(cls, commits: Sequence[Commit], exports: Sequence[Commit]) -> Refs:
        branches = {"main": commits[0].sha} | {str(each.export): each.sha for each in exports}
        return cls(
            branches=[Ref(name=name, ref=f"refs/heads/{name}", targetCommit=sha) for name, sha in branches.items()],
            tags=[Ref(name=each.job_id, ref=f"refs/tags/{each.job_id}", targetCommit=each.sha) for each in commits],
        )


class Author(BaseModel):
    user: str


class CommitView(BaseModel):
    id: str
    title: str
    message: str
    date: datetime
    authors: list[Author]

    @classmethod
    def of(cls, commit: Commit) -> CommitView:
        return cls(
            id=commit.sha,
            title=title_of(commit),
            message=f"Made by {commit.job_id} with the method {commit.method}.",
            date=commit.date,
            authors=[Author(user="quant-experts")],
        )


class AccessToken(BaseModel):
    displayName: str  # noqa: N815
    role: Literal["read"] = "read"


class TokenAuth(BaseModel):
    type: Literal["access_token"] = "access_token"
    accessToken: AccessToken  # noqa: N815


class WhoAmI(BaseModel):
    type: Literal["user"] = "user"
    id: str
    name: str
    fullname: str
    orgs: list[str] = Field(default_factory=list)
    auth: TokenAuth


def title_of(commit: Commit) -> str:
    return f"{commit.model_id} as {commit.scheme}" + (f", exported to {commit.export}" if commit.export else "")


def lfs_pointer(artifact: Artifact) -> bytes:
    """What Git would hold in place of the file (git-lfs specification, "The Pointer")."""
    lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{artifact.sha256}", f"size {artifact.bytes}")
    return "".join(f"{line}\n" for line in lines).encode()


def git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
