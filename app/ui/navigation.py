"""The entries of the menu: the work first, then the tenant's account."""

from __future__ import annotations

from dataclasses import dataclass

from app.access.auth import Caller, Scope
from app.web import problems
from app.web.problems import Problem


@dataclass(frozen=True)
class Entry:
    """``below``: prefix of the paths that belong to the entry."""

    href: str
    title: str
    scope: Scope
    below: str

    def holds(self, path: str) -> bool:
        return path == self.href or path.startswith(self.below)


WORK = (
    Entry("/", "Jobs", Scope.JOBS_READ, "/jobs/"),
    Entry("/comparisons", "Comparisons", Scope.JOBS_READ, "/comparisons/"),
    Entry("/datasets", "Datasets", Scope.DATASETS_READ, "/datasets/"),
    Entry("/workers", "Workers", Scope.WORKERS_READ, "/workers/"),
)
TENANT = (
    Entry("/usage", "Usage", Scope.USAGE_READ, "/usage/"),
    Entry("/webhooks", "Webhooks", Scope.WEBHOOKS_READ, "/webhooks/"),
    Entry("/keys", "Keys", Scope.KEYS_ADMIN, "/keys/"),
    Entry("/audit", "Audit", Scope.AUDIT_READ, "/audit/"),
)


def menu(caller: Caller) -> list[list[Entry]]:
    """The groups of the menu, with the entries that the key may read."""
    groups = ([entry for entry in group if entry.scope in caller.scopes] for group in (WORK, TENANT))
    return [group for group in groups if group]


def first_page(caller: Caller) -> str:
    """Raises Problem 403 for a key that may read no page."""
    groups = menu(caller)
    if not groups:
        raise Problem(problems.MISSING_SCOPE, "this key cannot read anything: it has no scope that ends in :read")
    return groups[0][0].href
