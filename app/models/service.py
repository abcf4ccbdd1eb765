"""List the local models. Children read their config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from app.models.files import visible_directory
from app.models.schemas import LocalModel, ModelList
from app.parsing import Died, parse
from app.parsing.operations import CONFIGS, Config
from app.web.threads import run_in_thread
from core.confinement import Limits
from core.contract.spec import ModelId
from core.settings import Settings
from quant_experts.planning.errors import Unreadable
from quant_experts.planning.families import FAMILIES, ORIGINALS
from quant_experts.spec.prefixes import LOCAL

MOST_MODELS = 500
MOST_CONFIG_BYTES = 1 << 20
LIMITS = Limits(memory=512 << 20, cpu=20)
_MODEL_ID: TypeAdapter[str] = TypeAdapter(ModelId)


async def local_models(settings: Settings) -> ModelList:
    """Raises OSError when the root cannot be read."""
    root, note = settings.model_root, None
    models: list[LocalModel] = []
    if root is None:
        note = "this service has no local models: QE_MODEL_ROOT is not set"
    elif not await run_in_thread(root.is_dir):
        note = "local models are where the workers are, and cannot be listed here"
    else:
        directories = await run_in_thread(lambda: _directories(root))
        if len(directories) > MOST_MODELS:
            note = f"only the first {MOST_MODELS} are listed"
        models = await _looked_at(dict(list(directories.items())[:MOST_MODELS]))
    return ModelList(data=models, families=[*FAMILIES, *ORIGINALS], note=note)


def _directories(root: Path) -> dict[str, Path]:
    """Directories by model id. Files, names with other characters and links out of the root are left out."""
    directories: dict[str, Path] = {}
    for name in sorted(path.name for path in root.iterdir()):
        model_id = LOCAL + name
        try:
            _MODEL_ID.validate_python(model_id)
            directory = visible_directory(model_id, root)
        except (ValidationError, Unreadable):
            continue
        assert directory is not None
        directories[model_id] = directory
    return directories


async def _looked_at(directories: Mapping[str, Path]) -> list[LocalModel]:
    def config(model_id: str) -> bytes:
        try:
            with (directories[model_id] / "config.json").open("rb") as reader:
                return reader.read(MOST_CONFIG_BYTES)
        except OSError as error:
            raise Unreadable("invalid_model", f"config.json cannot be read: {error.strerror}") from None

    try:
        configs = await parse(CONFIGS, list(directories), callbacks={"config": config}, limits=LIMITS)
    except Died as died:  # unknown which; 1 MB of JSON takes 30 MB, so only a bug leads here
        configs = [Config(None, f"config.json was not read: {died}")] * len(directories)
    return [
        LocalModel(id=model_id, model_type=content.model_type, problem=content.problem)
        for model_id, content in zip(directories, configs, strict=True)
    ]
