"""The docs site builds without a broken link, holds every page, and loads nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from benchmarks import readme

ROOT = Path(__file__).parent.parent
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


def test_sections_of_the_method_that_the_code_cites_are_there() -> None:
    method = (ROOT / "docs" / "method.md").read_text()
    sources = {source: source.read_text() for source in (ROOT / "quant_experts").rglob("*.py")}
    cited = [(source, *match.groups()) for source, text in sources.items() for match in CITED.finditer(text)]

    assert len(cited) > 10
    for source, section, step in cited:
        assert re.search(rf"^## {section}\. ", method, re.MULTILINE), source
        assert step is None or f"**Step {step}:" in method, source
