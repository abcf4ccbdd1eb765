"""Where an installed wheel keeps the service: ``app``, ``worker``, ``core`` and ``migrations``.

They are in one directory beside this package, outside the import path, so that a common name such as ``app`` stays free
for whoever installs the client. ``qe`` adds the directory for itself and the processes that it starts. A checkout has
no such directory and needs none.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

SERVICE = Path(__file__).resolve().parent.parent / "quant_experts_service"


def make_importable(*, for_children: bool = False) -> None:
    """Put the service's directory first on this process's path, and on that of the Pythons it starts."""
    if not SERVICE.is_dir():
        return
    if str(SERVICE) not in sys.path:
        sys.path.insert(0, str(SERVICE))
    entries = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if for_children and str(SERVICE) not in entries:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(SERVICE), *entries])
