"""The client repeats the shapes of the API, because it must not import it; here the two are held together."""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from core.contract.events import TERMINAL
from core.ledger.states import FINISHED, JobStatus
from quant_experts.client import views
from quant_experts.client.views import jobs

ROOT = Path(__file__).parent.parent.parent
SCHEMAS: dict[str, Any] = json.loads((ROOT / "openapi.json").read_text())["components"]["schemas"]
VIEWS = {
    name: view
    for module in pkgutil.iter_modules(views.__path__, f"{views.__name__}.")
    for name, view in vars(importlib.import_module(module.name)).items()
    if isinstance(view, type)
}
MIRRORED = sorted(VIEWS.keys() & SCHEMAS.keys())


def test_what_a_user_meets_most_is_mirrored() -> None:
    assert {"JobView", "EventView", "LayerView", "AttemptView", "ArtifactView", "DatasetView", "KeyView"} <= set(
        MIRRORED
    )


@pytest.mark.parametrize("name", MIRRORED)
def test_a_view_asks_for_no_field_that_the_api_does_not_have(name: str) -> None:
    """What the API has beyond that is kept in ``model_extra``."""
    view, schema = VIEWS[name], SCHEMAS[name]
    assert issubclass(view, BaseModel)
    assert set(view.model_fields) <= set(schema["properties"]), "a field that the API does not have"
    required = {field for field, info in view.model_fields.items() if info.is_required()}
    assert required <= set(schema.get("required", ())), "the API may leave it out"


def test_states_and_terminal_events_are_the_same() -> None:
    assert set(get_args(jobs.JobStatus)) == set(JobStatus)
    assert set(jobs.FINISHED) == FINISHED
    assert jobs.TERMINAL == TERMINAL
