"""The directories below the model root, as a job names them. Only names and config.json are looked at."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from app.contract.spec import ModelId
from app.models.schemas import LocalModel, ModelList
from app.plans.inputs import LOCAL, local_directory
from app.settings import Settings
from planning.errors import Unreadable
from planning.families import FAMILIES, ORIGINALS, family_of

MOST_MODELS = 500
MOST_CONFIG_BYTES = 1 << 20
_MODEL_ID: TypeAdapter[str] = TypeAdapter(ModelId)


def local_models(settings: Settings) -> ModelList:
    """Blocks. Raises OSError when the root cannot be read."""
    root, note = settings.model_root, None
    found: list[LocalModel] = []
    if root is None:
        note = "this service has no local models: QE_MODEL_ROOT is not set"
    elif not root.is_dir():
        note = "local models are where the workers are, and cannot be listed here"
    else:
        every = (_looked_at(name, root) for name in sorted(path.name for path in root.iterdir()))
        models = (model for model in every if model is not None)
        found = list(islice(models, MOST_MODELS))
        if next(models, None) is not None:
            note = f"only the first {MOST_MODELS} are listed"
    return ModelList(data=found, families=[*FAMILIES, *ORIGINALS], note=note)


def _looked_at(name: str, root: Path) -> LocalModel | None:
    """None for what no job can name: files, other characters, links out of the root."""
    model_id = LOCAL + name
    try:
        _MODEL_ID.validate_python(model_id)
        directory = local_directory(model_id, root)
    except (ValidationError, Unreadable):
        return None
    assert directory is not None
    kind: object = None
    problem: str | None = None
    try:
        with (directory / "config.json").open("rb") as reader:
            config = json.loads(reader.read(MOST_CONFIG_BYTES))
        kind = config.get("model_type")
        family_of(config)
    except Unreadable as unreadable:
        problem = str(unreadable)
    except OSError as error:
        problem = f"config.json cannot be read: {error.strerror}"
    except (ValueError, AttributeError, TypeError, RecursionError):
        problem = "config.json is not a JSON object"
    return LocalModel(id=model_id, model_type=kind if isinstance(kind, str) else None, problem=problem)
