"""The Celery app of a worker whose runner is the stand-in; the stage comes from STANDIN_STAGE."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from worker.machine import health
from worker.queue.celery_app import create_celery

health.probe_device = lambda kind, device: 1  # the GPUs of ``gpus.py`` are an nvidia-smi and no driver

app = create_celery(
    runner=(sys.executable, str(Path(__file__).with_name("standin.py")), os.environ["STANDIN_STAGE"]),
)
