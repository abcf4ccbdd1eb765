"""API keys."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from quant_experts.client import calls
from quant_experts.client.operation import Awaited, Blocking, Operations, listing, operation
from quant_experts.client.steps import Steps, Stream
from quant_experts.client.views import CreatedKey, KeyView


class KeyOperations(Operations):
    def __init__(self, transport: Any) -> None:
        self._transport = transport

    @operation
    def create(
        self, *, name: str, scopes: Sequence[str], expires_at: datetime | None = None, tenant: str | None = None
    ) -> Steps[CreatedKey]:
        """The answer is the only place where the key ever stands."""
        return self._send(calls.create_key(name=name, scopes=scopes, expires_at=expires_at, tenant=tenant))

    @listing
    def list(self) -> Stream[KeyView]:
        return self._pages(calls.list_keys())

    @operation
    def revoke(self, key_id: str) -> Steps[KeyView]:
        return self._send(calls.revoke_key(key_id))


class Keys(Blocking, KeyOperations):
    pass


class AsyncKeys(Awaited, KeyOperations):
    pass
