"""The operations of child processes, by name. A child cannot open files; it has those that were passed to it."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ConfigDict, TypeAdapter

from app.parsing import contents, frames
from app.parsing.counting import CountingHere
from app.parsing.row_statistics import DatasetStatistics, statistics_of
from app.parsing.validation import Contents, InvalidRows, validate
from core.settings import Settings
from quant_experts.planning.errors import HubUnavailable, Unreadable
from quant_experts.planning.families import family_of
from quant_experts.planning.headers import ModelHeaders, assemble
from quant_experts.planning.plan import Plan, make_plan
from quant_experts.planning.recipe import Recipe
from quant_experts.planning.rows import Rows, parsed_parquet, parsed_text, sampled_rows, unknown_rows
from quant_experts.planning.seconds import calibration_of
from quant_experts.planning.text_files import TextFiles, gather

Result = TypeVar("Result")
SAMPLED_ROWS = 48
BYTES = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")


@dataclass(frozen=True)
class Job:
    """What a child has beside its arguments: open files, and a socket to call the API."""

    api: socket.socket
    files: Sequence[int]

    @property
    def path(self) -> Path:
        """The path of the first file."""
        return Path(f"/proc/self/fd/{self.files[0]}")

    def ask(self, name: str, *arguments: Any) -> bytes:
        """Call a function of the API. Raises the error that the API's answer carries."""
        frames.send(self.api, frames.ASK, json.dumps([name, arguments]).encode())
        kind, data = frames.receive(self.api)
        if kind == frames.REFUSED:
            raise exception_of(data)
        return data


class Refused(Exception):
    """An operation cannot read its input; carries the encoded error."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.encoded = refusal(error) or b""


def refusal(error: Exception) -> bytes | None:
    """The encoded error; None for a bug."""
    match error:
        case Unreadable():
            reason = error.refusal
            fields: list[Any] = ["unreadable", reason.code, reason.message, reason.pointer]
        case HubUnavailable():
            fields = ["hub", str(error)]
        case InvalidRows():
            fields = ["rows", str(error), error.errors]
        case _:
            return None
    return json.dumps(fields).encode()


def exception_of(data: bytes) -> Exception:
    match json.loads(data):
        case ["unreadable", str(code), str(message), str(pointer)]:
            return Unreadable(code, message, pointer)
        case ["hub", str(message)]:
            return HubUnavailable(message)
        case ["rows", str(message), list(errors)]:
            return InvalidRows(message, errors)
    return frames.Ended()


@dataclass(frozen=True)
class Operation(Generic[Result]):
    """``work`` runs in the child; ``answer`` validates and serializes its result."""

    name: str
    work: Callable[..., Result]
    answer: TypeAdapter[Result]

    def found(self, data: bytes) -> Result:
        """The validated answer of the child. Raises pydantic's ValidationError."""
        return self.answer.validate_json(data)


Bounds = Mapping[str, int]
"""Limits of rows: the only settings that a child gets."""
BOUNDS = ("max_dataset_bytes", "max_dataset_rows", "max_image_bytes", "max_image_pixels", "max_audio_bytes")


def bounds_of(settings: Settings) -> Bounds:
    return settings.model_dump(include=set(BOUNDS))


def _settings(bounds: Bounds) -> Settings:
    return Settings.model_construct(**bounds)  # type: ignore[arg-type]


def _check(job: Job, bounds: Bounds) -> Contents:
    return validate(job.path, _settings(bounds))


def _page(job: Job, bounds: Bounds, after: int, limit: int) -> list[contents.Row]:
    return contents.page(job.path, _settings(bounds), after=after, limit=limit)


def _image(job: Job, bounds: Bounds, number: int, index: int) -> contents.Image | None:
    return contents.image_of(job.path, _settings(bounds), number=number, index=index)


def _audio(job: Job, bounds: Bounds, number: int, index: int) -> contents.Audio | None:
    return contents.audio_of(job.path, _settings(bounds), number=number, index=index)


def _statistics(job: Job, bounds: Bounds, names: list[str] | None) -> DatasetStatistics:
    """``names``: of the files of the model whose tokens are counted."""
    files = None if names is None else _text_files(job, names)
    return statistics_of(job.path, _settings(bounds), files=files, counting=CountingHere)


def _text_files(job: Job, names: list[str]) -> TextFiles:
    return gather(names, read_whole=partial(job.ask, "whole"), read_tokenizer=partial(job.ask, "tokenizer"))


@dataclass(frozen=True)
class ToEstimate:
    """``names``: of the model's files. ``rows``: cached statistics of the dataset's rows."""

    names: list[str]
    from_hub: bool
    recipe: Recipe
    cores: int
    ratios: Mapping[str, Sequence[float]]
    rows: Rows | None
    rows_bytes: int
    dataset: DatasetSample | None


@dataclass(frozen=True)
class DatasetSample:
    """An uploaded dataset. ``readable``: the child has its file, or the beginning of it."""

    rows: int
    images: int
    is_parquet: bool
    readable: bool


@dataclass(frozen=True)
class EstimateResult:
    plan: Plan
    rows: Rows


def _estimate(job: Job, task: ToEstimate) -> EstimateResult:
    headers = assemble(
        task.names,
        read_whole=partial(job.ask, "whole"),
        read_headers=partial(_headers, job),
        read_range=partial(job.ask, "range"),
    )
    rows = task.rows or _rows(job, headers, task)
    calibrations = {kind: calibration_of(ratios) for kind, ratios in task.ratios.items()}
    plan = make_plan(
        headers,
        task.recipe,
        rows,
        from_hub=task.from_hub,
        rows_bytes=task.rows_bytes,
        cores=task.cores,
        calibrations={kind: each for kind, each in calibrations.items() if each is not None},
    )
    return EstimateResult(plan, rows)


def _headers(job: Job, shards: list[str]) -> Mapping[str, bytes]:
    job.ask("headers", shards)  # prefetched together from the hub
    return {shard: job.ask("header", shard) for shard in shards}


def _rows(job: Job, headers: ModelHeaders, task: ToEstimate) -> Rows:
    dataset = task.dataset
    if dataset is None:
        return unknown_rows(vision="vision_config" in headers.config)
    try:
        files = _text_files(job, task.names)
    except (Unreadable, HubUnavailable):  # then text is estimated by its length
        files = TextFiles(headers.config, headers.processor)
    if not dataset.readable:
        return unknown_rows(vision=files.vision and dataset.images > 0, rows=dataset.rows)
    if dataset.is_parquet:
        sample = parsed_parquet(job.path, SAMPLED_ROWS)[0]
    else:
        with job.path.open("rb") as head:
            sample = parsed_text(head, SAMPLED_ROWS)
    return sampled_rows(sample, rows=dataset.rows, files=files, counting=CountingHere)


@dataclass(frozen=True)
class Config:
    """A model's config.json. ``problem``: why a job would refuse the model."""

    model_type: str | None
    problem: str | None


def _configs(job: Job, names: list[str]) -> list[Config]:
    """The config of each model, fetched from the API by name."""
    return [_config(job, name) for name in names]


def _config(job: Job, name: str) -> Config:
    kind: object = None
    problem: str | None = None
    try:
        config = json.loads(job.ask("config", name))
        kind = config.get("model_type")
        family_of(config)
    except Unreadable as unreadable:
        problem = str(unreadable)
    except (ValueError, AttributeError, TypeError, RecursionError):
        problem = "config.json is not a JSON object"
    return Config(kind if isinstance(kind, str) else None, problem)


def _operation(
    name: str, work: Callable[..., Result], kind: Any, config: ConfigDict | None = None
) -> Operation[Result]:
    return Operation(name, _refusing(work), TypeAdapter(kind, config=config))


def _refusing(work: Callable[..., Result]) -> Callable[..., Result]:
    def working(*arguments: Any) -> Result:
        try:
            return work(*arguments)
        except (Unreadable, HubUnavailable, InvalidRows) as error:
            raise Refused(error) from None

    return working


CHECK: Operation[Contents] = _operation("check", _check, Contents)
PAGE: Operation[list[contents.Row]] = _operation("page", _page, list[contents.Row], BYTES)
IMAGE: Operation[contents.Image | None] = _operation("image", _image, contents.Image | None, BYTES)
AUDIO: Operation[contents.Audio | None] = _operation("audio", _audio, contents.Audio | None, BYTES)
STATISTICS: Operation[DatasetStatistics] = _operation("figures", _statistics, DatasetStatistics)
ESTIMATE: Operation[EstimateResult] = _operation("estimate", _estimate, EstimateResult)
CONFIGS: Operation[list[Config]] = _operation("configs", _configs, list[Config])
OPERATIONS: Mapping[str, Operation[Any]] = {
    each.name: each for each in (CHECK, PAGE, IMAGE, AUDIO, STATISTICS, ESTIMATE, CONFIGS)
}
