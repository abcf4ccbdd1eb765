"""The navigation of the docs site: tutorials and guides in this order, what nobody named after them, then decisions."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

FIRST = ("index.md", "tutorial.md", "tutorial-pipeline.md")
LINK = re.compile(r"\[([^\]]+)\]\(([^)#:\s]+)\)")
GUIDES = (
    "dashboard.md",
    "api.md",
    "client.md",
    "library.md",
    "evaluation.md",
    "hub.md",
    "pushes.md",
    "checkpoint.md",
    "serving.md",
    "downloads.md",
)


def on_config(config: Any) -> Any:
    """Called by mkdocs. A new page appears without anybody listing it."""
    docs = Path(config["docs_dir"])
    pages = {page.name for page in docs.glob("*.md")}
    guides = [name for name in GUIDES if name in pages]
    others = sorted(pages - set(FIRST) - set(guides))
    decisions = sorted(f"adr/{page.name}" for page in (docs / "adr").glob("[0-9]*.md"))
    config["nav"] = [
        *(name for name in FIRST if name in pages),
        {"Use it": guides},
        {"Run it and understand it": others},
        {"Decisions": ["adr/README.md", *decisions]},
    ]
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links into the rest of the repository are plain words here: the site has only docs/."""
    folder = posixpath.dirname(page.file.src_uri)

    def unlinked(link: re.Match[str]) -> str:
        leaves = posixpath.normpath(posixpath.join(folder, link[2])).startswith("..")
        return link[1] if leaves else link[0]

    return LINK.sub(unlinked, markdown)
