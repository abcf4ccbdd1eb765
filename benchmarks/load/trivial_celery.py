"""The Celery app of the load benchmark's workers: everything real but the runner."""

from __future__ import annotations

from pathlib import Path

from worker.queue.celery_app import create_celery

app = create_celery(runner=("/bin/sh", str(Path(__file__).with_name("trivial_runner.sh"))))
