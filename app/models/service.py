"""The directories below the model root, as a job names them. Of what is in them children read config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from app.models.schemas import LocalModel, ModelList
from app.parsing import Died, parse
from app.parsing.operations import CONFIGS, Config
from app.plans.inputs import LOCAL, local_directory
from app.web.threads import aside
from core.confinement import Limits
from core.contract.spec import ModelId
from core.settings import Settings
from quant_experts.planning.errors import Unreadable
from quant_experts.planning.families import FAMILIES, ORIGINALS

MOST_MODELS = 500
MOST_CONFIG_BYTES = 1 << 20
LIMITS = Limits(memory=512 << 20, cpu=20)
_MODEL_ID: TypeAdapter[str] = TypeAdapter(ModelId)


async def local_models(settings: Settings) -> ModelList:
    """Raises OSError when the root cannot be read."""
    root, note = settings.model_root, None
    found: list[LocalModel] = []
    if root is None:
        note = "this service has no local models: QE_MODEL_ROOT is not set"
    elif not await aside(root.is_dir):
        note = "local models are where the workers are, and cannot be listed here"
    else:
        directories = await aside(lambda: _directories(root))
        if len(directories) > MOST_MODELS:
            note = f"only the first {MOST_MODELS} are listed"
        found = await _looked_at(dict(list(directories.items())[:MOST_MODELS]))
    return ModelList(data=found, families=[*FAMILIES, *ORIGINALS], note=note)


def _directories(root: Path) -> dict[str, Path]:
    """By id, but for what no job can name: files, other characters, links out of the root."""
    found: dict[str, Path] = {}
    for name in sorted(path.name for path in root.iterdir()):
        model_id = LOCAL + name
        try:
            _MODEL_ID.validate_python(model_id)
            directory = local_directory(model_id, root)
        except (ValidationError, Unreadable):
            continue
        assert directory is not None
        found[model_id] = directory
    return found


async def _looked_at(directories: Mapping[str, Path]) -> list[LocalModel]:
    def config(model_id: str) -> bytes:
        try:
            with (directories[model_id] / "config.json").open("rb") as reader:
                return reader.read(MOST_CONFIG_BYTES)
        except OSError as error:
            raise Unreadable("invalid_model", f"config.json cannot be read: {error.strerror}") from None

    try:
        configs = await parse(CONFIGS, list(directories), asked={"config": config}, limits=LIMITS)
    except Died as died:  # which one killed it is not known; a megabyte of JSON takes 30 MB, so only a bug leads here
        configs = [Config(None, f"config.json was not read: {died}")] * len(directories)
    return [
        LocalModel(id=model_id, model_type=read.model_type, problem=read.problem)
        for model_id, read in zip(directories, configs, strict=True)
    ]
