"""Write a checkpoint directory tensor by tensor; give it its name once it is verified.

docs/checkpoint.md describes what the directory holds. Everything is written into a hidden directory beside the output,
which is renamed at the end. So a checkpoint is there as a whole or not at all.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quant_experts.checkpoint.card import model_card
from quant_experts.checkpoint.configuration import loadable_config, processor_files
from quant_experts.checkpoint.layout import join_members
from quant_experts.checkpoint.shards import TensorSource, spool, stored_tensors, write_shards
from quant_experts.crash_points import reach
from quant_experts.errors import InvalidModel, InvalidSpec
from quant_experts.files import file_digest, sync_directory
from quant_experts.forward.modeling_quant_experts import marks_of
from quant_experts.model.tensor_file import write_text
from quant_experts.progress import WrittenFile
from quant_experts.report.data import QualityReport
from quant_experts.report.page import render_report
from quant_experts.spec.specification import QuantizationSpec

LOADER = "modeling_quant_experts.py"
CHECKSUMS = "SHA256SUMS"
REPORT, REPORT_PAGE, RECIPE, CARD = "quality_report.json", "quality_report.html", "recipe.json", "README.md"

COPIED = (
    "tokenizer*.json",
    "*tokens*.json",
    "vocab*.json",
    "tekken.json",
    "normalizer.json",
    "*processor*.json",
    "*feature_extractor*.json",
    "chat_template*.json",
    "generation_config.json",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "*.txt",
    "*.model",
    "*.tiktoken",
    "LICENSE*",
    "NOTICE*",
)
"""Tokenizer, processor, chat template, generation config and licence of the source. Never code, never weights, and no
JSON that was left beside them: where peft is installed, an ``adapter_config.json`` would be loaded as well."""
LARGEST_COPY = 256 << 20
"""Bytes. Tokenizers take a few tens of megabytes; anything larger under these names is not one."""


def write_files(
    directory: Path,
    *,
    source: Path,
    block_files: Sequence[Path],
    groups: Sequence[Mapping[str, Any]],
    other_tensors: Iterable[tuple[str, Tensor]],
    spec: QuantizationSpec,
    report: QualityReport,
    recipe: Mapping[str, Any],
    architecture: str,
    manifest: Mapping[str, Any] | None = None,
    untied: bool = False,
) -> list[WrittenFile]:
    """Write the checkpoint into the empty ``directory`` and return its files.

    ``source``: the model's directory. ``block_files``: one safetensors file per walked block with all of its tensors.
    ``groups``: entries of ``quantization_config["groups"]``. ``other_tensors``: everything outside the blocks; it is
    consumed once, with one tensor in memory at a time. All names are those of modules in memory. ``architecture``: the
    model's class. ``manifest``: stacks and skipped layers (``manifest_record.py``). ``untied``: its output head is not
    its embeddings, although config.json says so.
    Raises InvalidModel when two files hold the same tensor.
    """
    groups = join_members(groups)
    marks = ((name, torch.empty(0)) for entry in groups for name in marks_of(entry))
    sources = spool(itertools.chain(other_tensors, marks), directory / ".spool")
    tensors: dict[str, TensorSource] = {}
    for part in (sources, *map(stored_tensors, block_files)):
        for name, tensor in part.items():
            if name in tensors:
                raise InvalidModel(f"tensor {name} comes from {tensors[name].path.name} and {tensor.path.name}")
            tensors[name] = tensor
    files = write_shards(tensors, directory)
    (directory / ".spool").unlink()

    processor = processor_files(source)
    files += copy_companions(source, directory, leave_out=set(processor))
    config = loadable_config(
        source,
        architecture=architecture,
        spec=spec,
        groups=groups,
        tensors=tensors,
        manifest=manifest,
        untied=untied,
    )
    texts = {
        "config.json": config,
        LOADER: (Path(__file__).parent.parent / "forward" / LOADER).read_text(encoding="utf-8"),
        **processor,
        **_report_texts(directory, spec=spec, report=report, recipe=recipe, architecture=architecture),
        RECIPE: json.dumps(recipe, indent=2, sort_keys=True) + "\n",
    }
    files += [write_text(directory / name, text) for name, text in texts.items()]
    return write_checksums(directory, files)


def rewrite_report(
    directory: Path,
    files: Iterable[WrittenFile],
    *,
    spec: QuantizationSpec,
    report: QualityReport,
    recipe: Mapping[str, Any],
    architecture: str,
) -> list[WrittenFile]:
    """Write report, its page and the model card of a checkpoint anew, and its checksums; returns all of its files."""
    texts = _report_texts(directory, spec=spec, report=report, recipe=recipe, architecture=architecture)
    others = [file for file in files if file.name not in (*texts, CHECKSUMS)]
    return write_checksums(directory, [*others, *(write_text(directory / name, text) for name, text in texts.items())])


def _report_texts(
    directory: Path, *, spec: QuantizationSpec, report: QualityReport, recipe: Mapping[str, Any], architecture: str
) -> dict[str, str]:
    """Name → text of what tells people of the run."""
    return {
        CARD: model_card(report, spec, architecture=architecture, chats=has_chat_template(directory)),
        REPORT: report.model_dump_json(indent=2) + "\n",
        REPORT_PAGE: render_report(report, recipe),
    }


def write_checksums(directory: Path, files: Iterable[WrittenFile]) -> list[WrittenFile]:
    """Write SHA256SUMS of ``files``; returns all, by name, that file last."""
    by_name = sorted(files, key=lambda file: file.name)
    sums = "".join(f"{file.sha256}  {file.name}\n" for file in by_name)
    return [*by_name, write_text(directory / CHECKSUMS, sums)]


def check_output(output: Path) -> None:
    """Raises InvalidSpec when ``output`` exists and is not an empty directory."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InvalidSpec(f"output {output} exists and is not an empty directory: choose another, or remove it")


@contextmanager
def staging_directory(output: Path) -> Iterator[Path]:
    """A hidden directory beside ``output``. It is removed when this closes, unless ``publish`` has renamed it.

    Raises InvalidSpec as ``check_output`` does.
    """
    check_output(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.parent / f".{output.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def publish(directory: Path, output: Path) -> None:
    """Rename the staging directory to ``output``, in one atomic step."""
    reach("checkpoint.checked")
    directory.replace(output)  # over an empty directory this is one atomic step too
    sync_directory(output.parent)
    reach("checkpoint.named")


def companions(source: Path) -> Iterator[Path]:
    """Files of a model's directory that are neither weights nor code: tokenizer, processor, template, licence."""
    for path in sorted({path for pattern in COPIED for path in source.glob(pattern)}):
        if path.is_file() and not path.name.endswith(".index.json"):
            yield path


def has_chat_template(directory: Path) -> bool:
    """Whether its tokenizer or processor has one, wherever it is kept."""
    settings = directory / "tokenizer_config.json"
    kept_apart = any(directory.glob("chat_template.*"))
    return kept_apart or (settings.is_file() and '"chat_template"' in settings.read_text(encoding="utf-8"))


def copy_companions(source: Path, directory: Path, *, leave_out: Set[str]) -> list[WrittenFile]:
    """Copy what is not weights, byte for byte; ``leave_out``: files that are made anew.

    Raises InvalidModel for a file of an implausible size.
    """
    names = []
    for path in companions(source):
        name = path.relative_to(source).as_posix()
        if name in leave_out:
            continue
        if path.stat().st_size > LARGEST_COPY:
            raise InvalidModel(f"{name}: {path.stat().st_size >> 20} MiB is more than a tokenizer or template takes")
        target = directory / name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
        names.append(WrittenFile(name, target.stat().st_size, file_digest(target)))
    return names
