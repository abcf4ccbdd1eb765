"""Write an export directory: tensors, configuration, tokenizer and processor, card and digests."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quant_experts.checkpoint.configuration import PROCESSOR, PROCESSOR_MODULE
from quant_experts.checkpoint.shards import Readable, write_shards
from quant_experts.checkpoint.verify import verify_in_fresh_process
from quant_experts.checkpoint.write import CARD, copy_companions, publish, staging_directory, write_checksums
from quant_experts.errors import InvalidSpec
from quant_experts.export.formats import FORMATS, Format, Rename
from quant_experts.export.names import hub_names
from quant_experts.export.source import Source, open_source
from quant_experts.model.tensor_file import write_text
from quant_experts.progress import WrittenFile


@dataclass(frozen=True)
class ExportResult:
    """``losses``: what the export has not that the checkpoint has. ``loaded``: whether it was loaded here, which needs
    the package that reads the format."""

    directory: Path
    files: tuple[WrittenFile, ...]
    losses: tuple[str, ...]
    loaded: bool

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def export(checkpoint: Path, name: str, output: Path, *, device: str = "cpu") -> ExportResult:
    """Write ``checkpoint`` in the format ``name`` to the new directory ``output``, one tensor in memory at a time.

    It is loaded in a fresh process that has nothing of ours before it gets its name, where the format's package is
    installed. Raises InvalidSpec for an unknown format and for a checkpoint that the format cannot hold,
    InvalidCheckpoint when it does not load.
    """
    if name not in FORMATS:
        raise InvalidSpec(f"format {name!r}: choose {', '.join(FORMATS)}")
    form = FORMATS[name]
    source = open_source(checkpoint)
    losses = tuple(form.losses(source))
    with staging_directory(output) as part:
        files = _write(source, form, part, card=_card(source, name, losses))
        loadable = form.needs is None or importlib.util.find_spec(form.needs) is not None
        if loadable:
            verify_in_fresh_process(part, device=device)
        publish(part, output)
    return ExportResult(output, tuple(files), losses, loadable)


def _write(source: Source, form: Format, directory: Path, *, card: str) -> list[WrittenFile]:
    rename = hub_names(source.model)
    tensors: dict[str, Readable] = {**source.others, **form.tensors(source)}
    files = write_shards({_in_files(name, rename): tensor for name, tensor in tensors.items()}, directory)
    files += copy_companions(source.directory, directory, leave_out={PROCESSOR})
    config = _config(source, form.quantization_config(source, lambda path: _module(path, rename)))
    texts = {"config.json": config, CARD: card, **_processor(source.directory)}
    files += [write_text(directory / name, text) for name, text in texts.items()]
    return write_checksums(directory, files)


def _in_files(name: str, rename: Rename) -> str:
    """Renamed by its layer's weight: the rules of transformers know no packed tensors."""
    module, _, kind = name.rpartition(".")
    return f"{_module(module, rename)}.{kind}" if kind.startswith("weight_") else rename(name)


def _module(path: str, rename: Rename) -> str:
    return rename(f"{path}.weight").removesuffix(".weight")


def _config(source: Source, quantization: Mapping[str, Any] | None) -> str:
    config = {key: value for key, value in source.config.items() if key not in ("quantization_config", "auto_map")}
    if quantization is not None:
        config["quantization_config"] = dict(quantization)
    return json.dumps(config, indent=2) + "\n"


def _processor(directory: Path) -> dict[str, str]:
    """The processor's configuration without its pointer to our loader."""
    path = directory / PROCESSOR
    if not path.is_file():
        return {}
    config = json.loads(path.read_text(encoding="utf-8"))
    own = config.get("auto_map", {})
    others = {key: value for key, value in own.items() if not str(value).startswith(f"{PROCESSOR_MODULE}.")}
    config.pop("auto_map", None)
    return {PROCESSOR: json.dumps(config | ({"auto_map": others} if others else {}), indent=2) + "\n"}


def _card(source: Source, name: str, losses: tuple[str, ...]) -> str:
    """README.md of the export: what it was made of, what it lost, what opens it."""
    quantization = source.config["quantization_config"]
    lines = [f"- {loss}" for loss in losses] or ["- nothing"]
    return "\n".join(
        [
            f"# {quantization['scheme']} · {quantization['method']} · {name}",
            "",
            f"An export of a checkpoint of Quant Experts: {FORMATS[name].summary}.",
            "",
            "What the checkpoint has and this export has not:",
            "",
            *lines,
            "",
            f"Opens with: {FORMATS[name].opens_with}.",
            "",
            "The quality report of the checkpoint measured the checkpoint, not this export.",
            "",
        ]
    )
