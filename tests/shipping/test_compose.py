"""The compose files as data. `make compose-test` runs them where an engine answers."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from core.settings import Settings
from core.storage import storage_from_url
from core.storage.s3 import S3Storage
from tests.shipping.environments import ROOT
from tests.shipping.test_images import stages

TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
EXAMPLE = (ROOT / ".env.example").read_text()
BUILT = [name for name, service in SERVICES.items() if "build" in service]
PROCESSES = ["migrate", "api", "worker", "keeper"]
SETTABLE_OTHERWISE = {"QE_HOST": "ports", "QE_PORT": "ports", "QE_WORKERS": "scale"}
"""Settings of `qe serve` alone; in .env the same names publish the port and count the workers."""
IN_THE_IMAGE = {"QE_HEARTBEAT_FILE"}
FIXED = {"QE_HOME", "QE_MODEL_ROOT"}
"""Places in the container. QE_MODELS of .env says which directory of the host is there."""
SECRETS = {"QE_API_KEY", "QE_HUB_KEY", "QE_HUB_TOKEN", "QE_SECRET"}


def documented() -> set[str]:
    """The variables of the table of settings."""
    page = (ROOT / "docs" / "deployment.md").read_text()
    rows = re.findall(r"^\| (`[A-Z][^|]*) \|", page, re.M)
    return {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)}


def settings() -> set[str]:
    return {f"QE_{name.upper()}" for name in Settings.model_fields}


def test_every_setting_is_documented() -> None:
    assert settings() - documented() == {"QE_KEEPER_INTERVAL"}  # for tests
    assert {name for name in documented() if name.startswith("QE_")} <= settings()


@pytest.mark.parametrize("name", PROCESSES)
def test_every_documented_setting_reaches_every_process_from_the_env_file(name: str) -> None:
    passed = SERVICES[name]["environment"]
    absent = documented() - set(passed) - set(SETTABLE_OTHERWISE) - SECRETS - IN_THE_IMAGE
    assert not absent, f"{name} never sees {sorted(absent)}"
    for variable in documented() & set(passed) - FIXED:
        value = passed[variable]
        assert value is None or re.fullmatch(rf"\$\{{{variable}(:?[-?].*)?\}}", value), (
            f"{variable} is fixed to {value}; nobody can set it in .env"
        )


def test_the_settings_of_qe_serve_shape_the_services_here() -> None:
    assert SERVICES["api"]["ports"] == ["${QE_HOST:-0.0.0.0}:${QE_PORT:-8000}:8000"]
    assert SERVICES["worker"]["scale"] == "${QE_WORKERS:-1}"


def test_a_secret_goes_only_to_who_needs_it() -> None:
    has = {name: SECRETS & set(SERVICES[name]["environment"]) for name in PROCESSES}
    hub = {"QE_HUB_KEY", "QE_HUB_TOKEN"}
    assert has == {"migrate": SECRETS, "api": SECRETS, "worker": hub, "keeper": {"QE_SECRET", "QE_HUB_KEY"}}


def test_the_password_is_in_no_url() -> None:
    """There it would have to be quoted: one with / or @ in it would name another server."""
    assert "POSTGRES_PASSWORD" not in SERVICES["api"]["environment"]["QE_DATABASE_URL"]
    assert SERVICES["api"]["environment"]["PGPASSWORD"].startswith("${POSTGRES_PASSWORD:?")


def test_every_variable_of_the_compose_files_is_a_setting_or_explained_in_the_example() -> None:
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", TEXT + (ROOT / "docker-compose.gpu.yml").read_text()))
    explained = set(re.findall(r"^(?:# )?(\w+)=", EXAMPLE, re.M))
    assert used - documented() - {"OTEL_EXPORTER_OTLP_ENDPOINT"} <= explained
    composes_own = {"COMPOSE_PROJECT_NAME"}
    assert explained <= used | composes_own | documented() | {
        name for each in PROCESSES for name in SERVICES[each]["environment"]
    }


def test_the_example_leaves_no_variable_empty_but_the_three_to_fill_in() -> None:
    assert re.findall(r"^(\w+)=$", EXAMPLE, re.M) == ["POSTGRES_PASSWORD", "QE_API_KEY", "QE_SECRET"]


@pytest.mark.parametrize("name", BUILT)
def test_every_built_service_names_a_target_and_an_image_that_can_be_pulled(name: str) -> None:
    target = SERVICES[name]["build"]["target"]
    assert target in stages()
    assert SERVICES[name]["image"] == f"${{QE_IMAGES:-quant-experts}}-{target}:${{QE_VERSION:-latest}}"


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"postgres", "redis"}))
def test_every_service_but_the_two_servers_is_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]


@pytest.mark.parametrize("name", SERVICES)
def test_logs_are_bounded(name: str) -> None:
    assert SERVICES[name]["logging"]["options"] == {"max-size": "10m", "max-file": "10"}


def test_every_dependency_and_volume_exists() -> None:
    for service in SERVICES.values():
        for dependency, condition in service.get("depends_on", {}).items():
            if condition["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[dependency]
            else:
                assert condition["condition"] == "service_completed_successfully"
        for volume in service.get("volumes", []):
            if isinstance(volume, dict):
                assert volume["bind"] == {"create_host_path": False}  # Docker would make it, for root
                continue
            source = re.match(r"\$\{.+?\}|[^:]+", volume)
            assert source
            assert source[0] in {*COMPOSE["volumes"], "${QE_BACKUPS:-./backups}"} or (ROOT / source[0]).exists(), volume


def test_the_default_directory_of_models_is_in_every_checkout() -> None:
    assert SERVICES["api"]["volumes"][1]["source"] == "${QE_MODELS:-./models}"
    assert (ROOT / "models" / ".gitignore").read_text().splitlines()[0] == "*"


def test_the_object_store_is_a_profile_whose_url_the_example_gives() -> None:
    objects = SERVICES["objects"]
    assert objects["profiles"] == ["objects"]
    example = re.findall(r"^# QE_STORAGE_URL=(s3://\S+)$", EXAMPLE, re.M)
    storage = storage_from_url(example[0])
    assert isinstance(storage, S3Storage)
    bucket = objects["volumes"][0].split(":")[1]
    assert bucket == f"{objects['command'][-1]}/{storage.bucket}"
    port = next(word for word in objects["command"] if word.startswith("--addr")).split(":")[1]
    assert f"endpoint_url=http://objects:{port}" in example[0]
    assert not [name for name, service in SERVICES.items() if "objects" in service.get("depends_on", {})]


def test_clients_outside_can_reach_what_a_download_is_redirected_to() -> None:
    example = re.findall(r"^# QE_STORAGE_URL=(s3://\S+)$", EXAMPLE, re.M)[0]
    public = re.search(r"public_endpoint_url=http://localhost:(\d+)&", example)
    assert public
    assert SERVICES["objects"]["ports"] == [f"${{QE_OBJECTS_PORT:-{public[1]}}}:9000"]


def test_traces_go_to_their_profile_unless_told_otherwise() -> None:
    traces = SERVICES["traces"]
    assert traces["profiles"] == ["traces"]
    assert all(port.startswith("127.0.0.1:") for port in traces["ports"])
    for name in ("api", "worker", "keeper"):
        assert SERVICES[name]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"].endswith(":-http://traces:4318}")


def test_the_monitoring_profile_loads_our_rules_and_dashboard_and_finds_its_servers() -> None:
    mounted = "./observability:/etc/prometheus:ro"
    assert mounted in SERVICES["prometheus"]["volumes"]
    scrapes = yaml.safe_load((ROOT / "observability" / "prometheus.yml").read_text())
    assert scrapes["rule_files"] == ["alerts.yml"]
    names = {target.split(":")[0] for target in scrapes["scrape_configs"][0]["static_configs"][0]["targets"]}
    names |= set(scrapes["scrape_configs"][1]["dns_sd_configs"][0]["names"])
    assert names == {"api", "worker", "keeper"}
    port = scrapes["scrape_configs"][1]["dns_sd_configs"][0]["port"]
    assert SERVICES["worker"]["environment"]["QE_METRICS_PORT"] == f"${{QE_METRICS_PORT:-{port}}}"
    source = yaml.safe_load((ROOT / "deploy" / "grafana" / "datasource.yml").read_text())["datasources"][0]
    assert re.fullmatch(r"http://prometheus:9090", source["url"])
    folder = yaml.safe_load((ROOT / "deploy" / "grafana" / "dashboards.yml").read_text())["providers"][0]["options"][
        "path"
    ]
    assert f"./observability/grafana.json:{folder}/quant-experts.json:ro" in SERVICES["grafana"]["volumes"]


def test_what_only_an_operator_sees_is_published_to_this_machine_alone() -> None:
    for name in ("prometheus", "grafana", "traces"):
        assert all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])


def test_the_proxy_leads_to_the_api() -> None:
    file = (ROOT / "deploy" / "proxy" / "Caddyfile").read_text()
    assert re.findall(r"reverse_proxy (\S+) ", file) == ["api:8000"]
    assert "flush_interval -1" in file


def test_a_worker_has_time_to_finish_the_block_in_hand() -> None:
    assert SERVICES["worker"]["stop_grace_period"] == "15m"


def test_the_gpu_overlay_gives_every_device_to_one_worker_with_cuda() -> None:
    override = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text())
    assert set(override["services"]) == {"worker"}
    worker = override["services"]["worker"]
    device = worker["deploy"]["resources"]["reservations"]["devices"][0]
    assert (device["count"], device["capabilities"]) == ("all", ["gpu"])
    assert worker["build"]["args"] == {"TORCH": "cuda"}
    assert "torch-cuda" in (ROOT / "Dockerfile").read_text()
