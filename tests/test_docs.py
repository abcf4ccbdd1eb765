"""The docs site builds without a broken link, holds every page, and loads nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import readme

ROOT = Path(__file__).parent.parent
PACKAGES = ("app", "core", "worker", "quant_experts", "benchmarks", "tests", "demo", "migrations", "examples")
NO_MODULES = {"app.tenant", "worker.tasks.ring"}
"""A setting of a PostgreSQL session, and a task's name on the wire."""
IN_BACKTICKS = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"(?<![\w/.*…])[\w/]+\.py\b")
POINTER = re.compile(r"`([\w/]+\.py):([\w.]+)`")
MODULE = re.compile(rf"\b(?:{'|'.join(PACKAGES)})(?:\.\w+)+")
CITED = re.compile(r"method\.md,?\s+section\s+(\d)(?:,\s+steps?\s+(\d))?")
LOADED = re.compile(
    r"""<(?:script|img|iframe|source)[^>]+src="(?:https?:)?//"""
    r"""|<link[^>]+rel="(?:stylesheet|preconnect|icon)"[^>]+href="(?:https?:)?//"""
)


def test_the_docs_site_is_whole_and_stands_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {page.relative_to(tmp_path / "site").as_posix(): page.read_text() for page in tmp_path.rglob("*.html")}
    for source in (ROOT / "docs").rglob("*.md"):
        name = source.relative_to(ROOT / "docs").with_suffix(".html").as_posix().replace("README", "index")
        assert name in pages, source
        assert f'href="{name.rpartition("/")[2]}"' in pages[name] or name in pages["index.html"], f"{name}: not in nav"
    assert not [name for name, text in pages.items() if LOADED.search(text)]


def test_the_figures_of_the_readme_are_those_of_the_results() -> None:
    block = readme.BLOCK.search((ROOT / "README.md").read_text())

    assert block is not None
    assert block[0] == f"{block[1]}{readme.figures()}{block[2]}", "run `make readme`"


def test_every_file_and_module_that_the_texts_name_is_there() -> None:
    files = {"/" + path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    files |= {"/" + path.name for path in ROOT.glob("*.py")}
    gone = {
        f"{page.relative_to(ROOT)}: {name}"
        for page, text in _texts()
        for name in [*FILE.findall(text), *(MODULE.findall(text) if page.suffix in (".md", ".py") else [])]
        if not (any(file.endswith(f"/{name}") for file in files) or name in NO_MODULES or _is_module(name))
    }

    assert sorted(gone) == []


def test_every_function_that_the_docs_point_to_is_in_its_file() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    pointers = {pointer for page in pages for pointer in POINTER.findall(page.read_text())}
    sources = {
        path.relative_to(ROOT).as_posix(): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")
    }

    assert len(pointers) > 20
    for file, name in pointers:
        texts = [path.read_text() for place, path in sources.items() if f"/{place}".endswith(f"/{file}")]
        for part in name.split("."):
            assert any(re.search(rf"\b(?:def|class) {part}\b", text) for text in texts), f"{file}:{name}"


def _is_module(name: str) -> bool:
    """Whether the dotted name is a module or package, or a name in a module's file."""
    parts = name.split(".")
    modules = [ROOT.joinpath(*parts[:length]).with_suffix(".py") for length in range(2, len(parts) + 1)]
    return ROOT.joinpath(*parts).is_dir() or any(module.is_file() for module in modules)


def _texts() -> Iterator[tuple[Path, str]]:
    """What stands in backticks in documentation and docstrings, and whole templates and scripts."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    pages += [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    for page in pages:
        yield page, "\n".join(IN_BACKTICKS.findall(page.read_text()))
    for suffix in ("html", "js", "css"):
        for page in (ROOT / "app" / "ui").rglob(f"*.{suffix}"):
            yield page, page.read_text()


def test_sections_of_the_method_that_the_code_cites_are_there() -> None:
    method = (ROOT / "docs" / "method.md").read_text()
    sources = {source: source.read_text() for source in (ROOT / "quant_experts").rglob("*.py")}
    cited = [(source, *match.groups()) for source, text in sources.items() for match in CITED.finditer(text)]

    assert len(cited) > 10
    for source, section, step in cited:
        assert re.search(rf"^## {section}\. ", method, re.MULTILINE), source
        assert step is None or f"**Step {step}:" in method, source
