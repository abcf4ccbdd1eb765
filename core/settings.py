"""Every setting of the service, from ``QE_*`` environment variables, read once by whoever starts a process."""

from __future__ import annotations

from functools import cached_property
from ipaddress import ip_network
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from core.logs import LogFormat
from quant_experts.spec.choices import MOST_EVALUATION_ROWS, MOST_NEW_TOKENS
from quant_experts.spec.limits import MOST_MEDIA_BYTES, MOST_PIXELS

MIN_SECRET = 32
"""Characters of a key or secret."""


class Settings(BaseSettings):
    """Durations are seconds. Lease, beat and self-kill belong together: beat < self-kill < lease."""

    model_config = SettingsConfigDict(env_prefix="QE_", env_ignore_empty=True, extra="ignore", frozen=True)

    home: Path = Field(default=Path(".qe"), description="Data directory: embedded servers, storage, work files.")
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = Field(default=None, description="Bootstrap key with every scope; at least 32 characters.")
    trusted_proxies: str = Field(
        default="127.0.0.1,::1",
        description="Addresses and networks whose X-Forwarded-Proto and X-Forwarded-For are believed; * for all.",
    )
    secret: str | None = Field(
        default=None,
        description="Key of the HMAC under which API keys are stored; made and kept in QE_HOME when absent.",
    )
    model_root: Path | None = Field(default=None, description="`local/<directory>` models resolve below it.")
    database_url: str | None = Field(default=None, description="postgresql://…; embedded PostgreSQL when absent.")
    direct_database_url: str | None = Field(
        default=None, description="PostgreSQL itself, for migrations and keepers, where QE_DATABASE_URL is a pooler's."
    )
    redis_url: str | None = Field(default=None, description="redis://…; embedded Redis when absent.")
    storage_url: str | None = Field(default=None, description="file:///… or s3://…; QE_HOME/storage when absent.")
    accel_prefix: str | None = Field(
        default=None,
        pattern=r"^/[A-Za-z0-9._/-]*$",
        description="Path of an internal nginx location over the storage directory; it then sends the files.",
    )
    redirect_downloads: bool = Field(
        default=False, description="Send clients to the object store for files, by links that are good for an hour."
    )
    workers: int = Field(default=1, ge=0, le=64, description="Celery workers of the embedded service.")
    hub_token: str | None = Field(
        default=None, description="Hugging Face token for all tenants that have not set one of their own."
    )
    hub_key: str | None = Field(
        default=None, description="Secret of API and workers under which tenants' own hub tokens are kept."
    )

    stall_seconds: float = Field(
        default=3600.0,
        ge=0,
        allow_inf_nan=False,
        description="A runner that gets nowhere for this long is killed; 0: never.",
    )
    step_seconds: float = Field(
        default=6 * 3600.0,
        ge=0,
        allow_inf_nan=False,
        description="Most time for one block, one reply to a task, or one phase without blocks; 0: any.",
    )
    drain_seconds: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Most time that a worker which is stopped waits for its block.",
    )
    runner_confinement: Literal["required", "best-effort", "off"] = Field(
        default="best-effort",
        description="Whether a worker starts where not every wall around its runners stands; off: raise none.",
    )
    hub_patience: float = Field(default=300.0, description="A hub download that does not grow for this long fails.")

    min_free_bytes: int = Field(
        default=256 * 1024 * 1024, description="A worker whose work directory has less free space takes no job."
    )

    lease: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    beat: float = Field(default=20.0, gt=0, allow_inf_nan=False)
    self_kill: float = Field(default=90.0, gt=0, allow_inf_nan=False)
    grace: float = Field(default=30.0, ge=0, allow_inf_nan=False)
    ring_again: float = Field(
        default=60.0,
        description="Seconds after which workers are notified again of a queued job that none has claimed.",
    )
    log_format: LogFormat = Field(default="auto", description="json, text, or auto: text on a terminal, else json.")
    metrics_port: int = Field(
        default=0, ge=0, le=65535, description="Port on which a worker or keeper serves its metrics; 0: none."
    )
    heartbeat_file: Path | None = Field(
        default=None, description="API, worker and keeper touch it every few seconds; health checks look at its age."
    )
    metrics_token: str | None = Field(
        default=None, min_length=16, description="Who asks the API for /metrics must send it as a bearer token."
    )
    tracing: bool = Field(
        default=False, description="Send traces to an OpenTelemetry collector; OTEL_* variables say where and how many."
    )
    keeper_interval: float = 5.0
    barren_attempts: int = Field(default=3, description="Attempts in a row without a new block that fail a job.")

    retry_delay: float = Field(
        default=10.0,
        ge=0,
        description="Wait before a job that failed without a new block is tried again; doubles with each such attempt.",
    )
    sick_after: int = Field(
        default=3, ge=0, description="Jobs in a row that fail by a worker's own fault before it is examined; 0: never."
    )

    webhook_timeout: float = Field(default=15.0, gt=0, le=45, description="Seconds for one attempt at a webhook.")
    webhook_rate: float = Field(
        default=20.0, ge=0, description="Messages a second to the webhooks of one tenant at one host; 0: no bound."
    )
    webhook_allow_http: bool = Field(default=False, description="For development: webhooks without TLS.")
    webhook_allow_private: bool = Field(
        default=False, description="For development: webhooks to this machine and private networks."
    )
    pushers: int = Field(default=2, ge=0, le=32, description="Pushes that one keeper carries at a time; 0: none.")
    push_allow_private: bool = Field(
        default=False,
        description="Tenants may push to buckets at this machine and in private networks, and without TLS.",
    )
    mlflow_tracking_uri: str | None = Field(
        default=None, description="Of the MLflow server that gets a run for each job; MLFLOW_TRACKING_* open it."
    )
    max_pushes: int = Field(default=100, ge=0, description="Unfinished pushes of one tenant.")
    requests_per_minute: int = Field(default=6000, ge=0, description="By one key at one API process; 0: no limit.")
    max_queued_jobs: int = Field(default=1000, ge=0, description="Waiting jobs of one tenant.")
    max_running_jobs: int | None = Field(default=32, ge=0, description="Workers that one tenant may hold.")
    max_stored_bytes: int = Field(default=1 << 40, ge=0, description="Datasets and artifacts of one tenant.")
    max_webhooks: int = Field(default=50, ge=0, description="Webhooks of one tenant.")

    keep_jobs_days: int | None = Field(default=None, ge=1, description="Finished jobs, from their end.")
    keep_events_days: int | None = Field(default=None, ge=1, description="Events of finished jobs but the last.")
    keep_layers_days: int | None = Field(default=None, ge=1, description="Reports of finished jobs' blocks.")
    keep_audit_days: int | None = Field(default=None, ge=30, description="Entries of the audit log.")
    keep_deliveries_days: int | None = Field(default=30, ge=1, description="Finished deliveries of webhooks.")
    keep_models_days: int = Field(
        default=30, ge=8, description="A worker's copies of a hub's models that no job has used; a job may take 7 days."
    )
    dataset_ttl: int | None = Field(
        default=None, ge=60, description="Uploads that do not say when they expire do so after this many seconds."
    )
    max_dataset_bytes: int = 512 * 1024 * 1024
    max_dataset_rows: int = 20_000
    max_body_bytes: int = 256 * 1024
    max_evaluation_rows: int = Field(
        default=MOST_EVALUATION_ROWS,
        ge=1,
        le=MOST_EVALUATION_ROWS,
        description="Rows that one job may be evaluated on.",
    )
    max_evaluation_tokens: int = Field(
        default=MOST_NEW_TOKENS, ge=1, le=MOST_NEW_TOKENS, description="Tokens of one reply that a job may ask for."
    )
    max_image_bytes: int = Field(
        default=20 * 1024 * 1024, ge=0, le=MOST_MEDIA_BYTES, description="Bytes of one image file."
    )
    max_image_pixels: int = Field(default=MOST_PIXELS, ge=0, le=MOST_PIXELS, description="Pixels of one image.")
    max_audio_bytes: int = Field(
        default=20 * 1024 * 1024, ge=0, le=MOST_MEDIA_BYTES, description="Bytes of one audio file."
    )

    @field_validator("api_key", "secret", "hub_key")
    @classmethod
    def _long_enough_to_be_safe(cls, value: str | None) -> str | None:
        if value is None or len(value) >= MIN_SECRET:
            return value
        raise ValueError(
            f"it has {len(value)} characters; at least {MIN_SECRET} random ones are needed: openssl rand -hex 32"
        )

    @field_validator("trusted_proxies")
    @classmethod
    def _every_proxy_is_an_address(cls, value: str) -> str:
        """uvicorn takes a value that it cannot read for the name of a socket, and then trusts nobody."""
        for part in [part.strip() for part in value.split(",") if part.strip() not in ("", "*")]:
            try:
                ip_network(part)
            except ValueError as error:
                raise ValueError(f"{error}: give addresses and networks, separated by commas, or *") from None
        return "*" if "*" in value else value

    @model_validator(mode="after")
    def _a_silent_worker_is_gone_before_its_job_is_anothers(self) -> Self:
        if self.beat < self.self_kill < self.lease:
            return self
        raise ValueError(
            f"QE_BEAT={self.beat:g}, QE_SELF_KILL={self.self_kill:g} and QE_LEASE={self.lease:g} must grow in this"
            " order: a worker renews its lease each beat, and one that cannot must have killed its own runner before"
            " the lease ends and another worker begins. docs/operations.md says how to choose them"
        )

    @cached_property
    def resolved_home(self) -> Path:
        return self.home.expanduser().resolve()

    @property
    def resolved_storage_url(self) -> str:
        return self.storage_url or (self.resolved_home / "storage").as_uri()

    @property
    def work_directory(self) -> Path:
        """Scratch space of running jobs. Nothing in it is needed once the job's worker is gone."""
        return self.resolved_home / "work"


def read_settings() -> Settings:
    """The settings from the environment, for a process that starts. Raises SystemExit with a line for each setting that
    is wrong."""
    try:
        return Settings()
    except ValidationError as error:
        raise SystemExit("\n".join(complaints(error))) from None


def complaints(error: ValidationError) -> list[str]:
    """What is wrong with which variable."""
    return [
        "".join(f"QE_{str(name).upper()}: " for name in each["loc"][:1]) + each["msg"].removeprefix("Value error, ")
        for each in error.errors(include_url=False)
    ]
