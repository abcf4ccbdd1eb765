"""The Helm chart, rendered by Helm: valid for Kubernetes, and true to the images, the settings and the ledger."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from core.settings import Settings
from tests.shipping.helm import helm
from tests.shipping.test_compose import COMPOSE
from tests.shipping.test_images import TARGETS, stages
from tests.worker.conftest import Workshop, workshop

__all__ = ["workshop"]

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "quant-experts"
KUBERNETES = ("1.29", "1.37")
RANDOM = "0123456789abcdef0123456789abcdef"
GIVEN = {
    "secret.QE_DATABASE_URL": "postgresql://qe:secret@db/qe",
    "secret.QE_REDIS_URL": "redis://redis/0",
    "secret.QE_SECRET": RANDOM,
    "secret.QE_API_KEY": RANDOM,
    "storage.url": "s3://qe",
}
OWN_SECRET = {"existingSecret": "mine", "storage.existingClaim": "files", "models.existingClaim": "models"}
SCALED = {**GIVEN, "workers.gpu.autoscaling.enabled": "true", "workers.gpu.gpus": "4"}
ONCE = {**SCALED, "workers.gpu.once": "true", "workers.gpu.workStorageClass": "fast"}
EVERYTHING = {
    **GIVEN,
    "api.ingress.enabled": "true",
    "api.ingress.tlsSecret": "tls",
    "api.autoscaling.enabled": "false",
    "settings.QE_MAX_RUNNING_JOBS": "64",
    "workers.gpu.enabled": "false",
    "workers.cpu.gpus": "0",
    "workers.cpu.replicas": "2",
}
VARIANTS = {"plain": GIVEN, "own secret": OWN_SECRET, "scaled": SCALED, "once": ONCE, "everything": EVERYTHING}
WITHOUT_SCHEMA = {"ScaledObject", "ScaledJob", "TriggerAuthentication"}
"""Of KEDA, whose definitions are not Kubernetes'."""


def run(command: str, values: dict[str, str], *more: str) -> subprocess.CompletedProcess[str]:
    chosen = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    words = [str(helm()), command, *(["release"] if command == "template" else []), str(CHART), *chosen, *more]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)


def rendered(values: dict[str, str]) -> list[dict[str, Any]]:
    done = run("template", values)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def pods(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Pod specs by component."""
    found = {}
    for document in documents:
        spec = document.get("spec", {})
        template = spec.get("template") or spec.get("jobTargetRef", {}).get("template")
        if document["kind"] == "Pod":
            template = document
        if template:
            found[template["metadata"]["labels"]["app.kubernetes.io/component"]] = template["spec"]
    return found


def environment(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in pod["containers"][0]["env"]}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_object_is_valid_for_kubernetes(variant: str) -> None:
    linted = run("lint", VARIANTS[variant], "--strict")
    assert linted.returncode == 0, linted.stdout
    documents = rendered(VARIANTS[variant])
    assert len({(document["kind"], document["metadata"]["name"]) for document in documents}) == len(documents)
    for document in documents:
        for version in KUBERNETES:
            if document["kind"] not in WITHOUT_SCHEMA:
                kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "set secret.QE_DATABASE_URL, or existingSecret to a Secret that has it"),
        ({**GIVEN, "storage.url": ""}, "set storage.url to s3://"),
        ({**GIVEN, "secret.QE_SECRET": "short"}, "/secret/QE_SECRET"),
        ({**GIVEN, "workers.gpu.gpu": "2"}, "'gpu' not allowed"),
        ({**GIVEN, "settings.MAX_RUNNING_JOBS": "2"}, "'MAX_RUNNING_JOBS' does not match"),
        ({**GIVEN, "workers.gpu.once": "true"}, "workers.gpu.once needs workers.gpu.autoscaling.enabled"),
    ],
)
def test_values_that_cannot_work_are_refused_with_what_to_do(values: dict[str, str], said: str) -> None:
    done = run("template", values)
    assert done.returncode != 0
    assert said in done.stderr


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_pod_is_confined_and_has_an_image_that_the_dockerfile_makes(variant: str) -> None:
    user = int(re.findall(r"useradd --system --uid (\d+)", stages()["api"])[0])
    for component, pod in pods(rendered(VARIANTS[variant])).items():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == user
        assert pod["automountServiceAccountToken"] is False
        (container,) = pod["containers"]
        name = re.fullmatch(r"ghcr.io/quant-experts/quant-experts-(\w+?)(-cuda)?:\S+", container["image"])
        assert name
        assert name[1] in TARGETS, component
        assert (name[2] is not None) == ("nvidia.com/gpu" in container.get("resources", {}).get("limits", {}))
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "command" not in container, "it would take the place of the image's init process"
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        assert mounted <= {volume["name"] for volume in pod.get("volumes", [])}


def test_every_process_is_told_settings_that_exist_and_no_secret_that_it_does_not_need() -> None:
    known = {f"QE_{field.upper()}" for field in Settings.model_fields} | {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    found = pods(rendered(EVERYTHING))
    for component in ("api", "keeper", "worker", "migrate"):
        assert set(environment(found[component])) <= known, component
    assert {"QE_SECRET", "QE_API_KEY"} <= set(environment(found["api"]))
    assert "QE_API_KEY" not in environment(found["keeper"])
    assert not {"QE_SECRET", "QE_API_KEY"} & set(environment(found["worker"]))
    assert environment(found["worker"])["QE_MAX_RUNNING_JOBS"]["value"] == "64"


def test_what_needs_a_session_of_its_own_is_told_the_way_past_a_pooler() -> None:
    pooled = {"secret.QE_DATABASE_URL": "postgresql://qe@pgbouncer/qe?pgbouncer=true"}
    refused = run("template", {**SCALED, **pooled})
    assert refused.returncode != 0
    assert "set secret.QE_DIRECT_DATABASE_URL" in refused.stderr
    documents = rendered({**SCALED, **pooled, "secret.QE_DIRECT_DATABASE_URL": "postgresql://qe@db/qe"})
    found = pods(documents)
    told = {name for name in found if name != "test" and "QE_DIRECT_DATABASE_URL" in environment(found[name])}
    assert told == {"keeper", "migrate"}
    held = [each["stringData"] for each in documents if each["kind"] == "Secret"]
    assert [each["QE_DIRECT_DATABASE_URL"] for each in held] == ["postgresql://qe@db/qe"] * 2
    (keda,) = [each for each in documents if each["kind"] == "TriggerAuthentication"]
    assert keda["spec"]["secretTargetRef"][0]["key"] == "QE_DIRECT_DATABASE_URL"
    own = environment(pods(rendered(OWN_SECRET))["keeper"])["QE_DIRECT_DATABASE_URL"]
    assert own["valueFrom"]["secretKeyRef"] == {"name": "mine", "key": "QE_DIRECT_DATABASE_URL", "optional": True}


def test_migrations_run_before_everything_as_compose_does_it() -> None:
    documents = rendered(GIVEN)
    (job,) = [document for document in documents if document["kind"] == "Job"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert job["spec"]["template"]["spec"]["containers"][0]["args"] == COMPOSE["services"]["migrate"]["command"]
    told = environment(job["spec"]["template"]["spec"])
    secret = told["QE_DATABASE_URL"]["valueFrom"]["secretKeyRef"]["name"]
    (hook,) = [d for d in documents if d["kind"] == "Secret" and d["metadata"]["name"] == secret]
    weights = [int(each["metadata"]["annotations"]["helm.sh/hook-weight"]) for each in (hook, job)]
    assert weights == sorted(weights)
    assert weights[0] != weights[1]


def test_a_pod_of_workers_owns_its_gpus_and_has_time_for_a_block() -> None:
    worker = pods(rendered(SCALED))["worker"]
    (container,) = worker["containers"]
    assert container["args"] == ["qe", "worker"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert worker["terminationGracePeriodSeconds"] == 900
    assert "nvidia.com/gpu" not in pods(rendered(EVERYTHING))["worker"]["containers"][0]["resources"]["limits"]
    once = pods(rendered(ONCE))["worker"]
    assert once["containers"][0]["args"] == ["qe", "worker", "--once"]
    assert once["restartPolicy"] == "Never"


@pytest.mark.parametrize("variant", ["scaled", "once"])
def test_the_documented_query_counts_jobs_that_wait_and_jobs_that_run(variant: str, workshop: Workshop) -> None:
    (scaled,) = [d for d in rendered(VARIANTS[variant]) if d["kind"] in ("ScaledObject", "ScaledJob")]
    (trigger,) = scaled["spec"]["triggers"]
    query = trigger["metadata"]["query"]
    assert trigger["metadata"]["targetQueryValue"] == "4"
    documented = re.sub(r"\s+", " ", (CHART.parents[2] / "docs" / "kubernetes.md").read_text())
    assert query in documented

    jobs = [workshop.add_job() for _ in range(5)]
    assert workshop.claim().ref.job_id == jobs[0]
    with workshop.connect() as connection:
        connection.execute("UPDATE jobs SET run_after = clock_timestamp() + interval '1 h' WHERE id = %s", (jobs[1],))
        connection.execute("UPDATE jobs SET status = 'cancelled' WHERE id = %s", (jobs[2],))
    assert list(workshop.rows(query)[0].values()) == [3]  # one runs, two wait
