"""Dockerfile and compose files, checked as data: no Docker runs here, so what they refer to must be seen to exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import Settings
from app.storage import storage_from_url
from app.storage.s3 import S3Storage

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
BUILT = [name for name, service in SERVICES.items() if "build" in service]
SERVICE_KEYS = {
    "image", "build", "restart", "environment", "volumes", "healthcheck", "command", "read_only", "cap_drop",
    "security_opt", "tmpfs", "depends_on", "ports", "stop_grace_period", "profiles",
}  # fmt: skip


def stages() -> dict[str, str]:
    """Stage name → its text, with the text of the stages it is made from before it."""
    texts: dict[str, str] = {}
    for base, name, body in re.findall(r"^FROM (\S+) AS (\S+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.M | re.S):
        texts[name] = texts.get(base, "") + body
    return texts


def test_the_services_are_those_that_the_documentation_names() -> None:
    assert set(SERVICES) == {"postgres", "redis", "objects", "traces", "migrate", "api", "worker", "keeper"}
    for name, service in SERVICES.items():
        assert set(service) <= SERVICE_KEYS, f"{name}: unknown keys {set(service) - SERVICE_KEYS}"
        assert ("image" in service) != ("build" in service), f"{name}: either an image or a build"


@pytest.mark.parametrize("name", BUILT)
def test_every_built_service_names_a_target_of_the_dockerfile(name: str) -> None:
    assert SERVICES[name]["build"]["target"] in stages()


@pytest.mark.parametrize("name", BUILT)
def test_every_environment_variable_is_a_setting(name: str) -> None:
    settings = {f"QE_{field.upper()}" for field in Settings.model_fields} | {
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_HEADERS",
    }
    assert set(SERVICES[name]["environment"]) <= settings


def test_every_variable_of_the_compose_files_is_explained_in_the_example() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", text)) - {"TORCH_INDEX"}  # explained where it stands in the Dockerfile
    explained = set(re.findall(r"^(\w+)=", (ROOT / ".env.example").read_text(), re.M))
    assert used == explained


@pytest.mark.parametrize("name", BUILT)
def test_every_built_service_is_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    stage = stages()[service["build"]["target"]]
    made = re.search(r"useradd --system --uid ([1-9]\d*)", stage)
    assert made
    assert re.findall(r"^USER (\S+)$", stage, re.M)[-1] == made[1]  # by number: Kubernetes cannot look a name up


def test_every_dependency_and_volume_exists() -> None:
    for service in SERVICES.values():
        for dependency, condition in service.get("depends_on", {}).items():
            if condition["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[dependency]
            else:
                assert condition["condition"] == "service_completed_successfully"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or source.startswith("${QE_MODELS")


def test_the_object_store_is_a_profile_whose_url_the_example_gives() -> None:
    objects = SERVICES["objects"]
    assert objects["profiles"] == ["objects"]
    assert objects["read_only"] is True
    example = re.findall(r"s3://\S+?(?=,)", (ROOT / ".env.example").read_text())
    storage = storage_from_url(example[0])
    assert isinstance(storage, S3Storage)
    bucket = objects["volumes"][0].split(":")[1]
    assert bucket == f"{objects['command'][-1]}/{storage.bucket}"
    port = next(word for word in objects["command"] if word.startswith("--addr")).split(":")[1]
    assert f"endpoint_url=http://objects:{port}" in example[0]
    assert not [name for name, service in SERVICES.items() if "objects" in service.get("depends_on", {})]


def test_traces_are_off_unless_asked_for_and_their_profile_is_where_they_then_go() -> None:
    traces = SERVICES["traces"]
    assert traces["profiles"] == ["traces"]
    assert all(port.startswith("127.0.0.1:") for port in traces["ports"])
    for name in ("api", "worker", "keeper"):
        environment = SERVICES[name]["environment"]
        assert environment["QE_TRACING"] == "${QE_TRACING:-false}"
        assert environment["OTEL_EXPORTER_OTLP_ENDPOINT"].endswith(":-http://traces:4318}")
    assert "tracing" in re.findall(r"'\.\[(\S+)\]'", stages()["api"])[0].split(",")


def test_a_worker_has_time_to_finish_the_block_in_hand() -> None:
    assert SERVICES["worker"]["stop_grace_period"] == "15m"


def test_every_path_that_the_dockerfile_copies_exists() -> None:
    copied = [source for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.M) for source in line.split()[:-1]]
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source


@pytest.mark.parametrize("target", ["api", "worker", "keeper"])
def test_every_command_of_the_images_exists(target: str) -> None:
    command = re.findall(r"^CMD \[(.+)\]$", stages()[target], re.M)[-1]
    words = re.findall(r'"([^"]+)"', command)
    references = [
        word for word in words if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+(:[A-Za-z_]+)?", word) and word != "qe.jobs"
    ]
    assert references, command
    for reference in references:
        module, _, attribute = reference.partition(":")
        specification = importlib.util.find_spec(module)
        assert specification is not None, module
        assert specification.origin is not None
        assert not attribute or re.search(
            rf"^(def |class )?{attribute}\b", Path(specification.origin).read_text(), re.M
        )


def test_the_api_image_installs_no_torch() -> None:
    assert "torch" not in stages()["api"].replace("TORCH_INDEX", "")
    assert "torch" in stages()["worker"]


def test_the_gpu_override_only_changes_services_that_exist() -> None:
    override = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text())
    assert set(override["services"]) <= set(SERVICES)
    device = override["services"]["worker"]["deploy"]["resources"]["reservations"]["devices"][0]
    assert device["capabilities"] == ["gpu"]
