"""The Celery app of the workers of a cluster under faults.

``FAULTS_RUNNER``   ``standin``, ``real``, or ``dies``: a machine on which nothing computes
``FAULTS_STAGE``    directory that directs the stand-in
``FAULTS_UNDERSTOOD``  version of the spec that this worker understands, when it is older than the rest
``FAULTS_WITHOUT``  negative controls of ``safeguards_off``, comma-separated
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import tests.worker
from tests.faults.safeguards_off import WITHOUT
from worker.ledger import claims, workers
from worker.machine.context import RUNNER
from worker.queue.celery_app import create_celery

STANDIN = (sys.executable, str(Path(tests.worker.__path__[0]) / "standin.py"))

for _name in filter(None, os.environ.get("FAULTS_WITHOUT", "").split(",")):
    WITHOUT[_name]()
if "FAULTS_UNDERSTOOD" in os.environ:
    workers.UNDERSTOOD = int(os.environ["FAULTS_UNDERSTOOD"])
    claims.claim = partial(claims.claim, understood=workers.UNDERSTOOD)  # type: ignore[assignment]
RUNNERS = {
    "real": RUNNER,
    "standin": (*STANDIN, os.environ["FAULTS_STAGE"]),
    "dies": (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"),
}
app = create_celery(runner=RUNNERS[os.environ["FAULTS_RUNNER"]])
