"""The Celery app of the workers of a cluster under faults.

``FAULTS_RUNNER``   ``standin`` or ``real``
``FAULTS_STAGE``    directory that directs the stand-in
``FAULTS_WITHOUT``  negative controls of ``safeguards_off``, comma-separated
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import tests.worker
from tests.faults.safeguards_off import WITHOUT
from worker.celery_app import create_celery
from worker.hands import RUNNER

STANDIN = (sys.executable, str(Path(tests.worker.__path__[0]) / "standin.py"))

for _name in filter(None, os.environ.get("FAULTS_WITHOUT", "").split(",")):
    WITHOUT[_name]()
app = create_celery(runner=RUNNER if os.environ["FAULTS_RUNNER"] == "real" else (*STANDIN, os.environ["FAULTS_STAGE"]))
