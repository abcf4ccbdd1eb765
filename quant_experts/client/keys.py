"""API keys."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from quant_experts.client.effects import Operation, Stream
from quant_experts.client.operation import Awaited, Blocking, Operations, listing, operation
from quant_experts.client.requests import account as requests
from quant_experts.client.views.account import CreatedKey, KeyView


class KeyOperations(Operations):
    def __init__(self, transport: Any) -> None:
        self._transport = transport

    @operation
    def create(
        self, *, name: str, scopes: Sequence[str], expires_at: datetime | None = None, tenant: str | None = None
    ) -> Operation[CreatedKey]:
        """The answer is the only place where the key ever stands."""
        return self._send(requests.create_key(name=name, scopes=scopes, expires_at=expires_at, tenant=tenant))

    @listing
    def list(self, *, tenant: str | None = None) -> Stream[KeyView]:
        """Keys, newest first, revoked ones included. ``tenant``: another one's, for the bootstrap key alone."""
        return self._pages(requests.list_keys(tenant=tenant))

    @operation
    def rotate(
        self, key_id: str, *, keep_previous_s: int | None = None, tenant: str | None = None
    ) -> Operation[CreatedKey]:
        """A new key that does what this one does, shown this once; for so long (a day) the one before opens the same.
        Raises Conflict for a key that has ended."""
        return self._send(requests.rotate_key(key_id, keep_previous_s=keep_previous_s, tenant=tenant))

    @operation
    def revoke(self, key_id: str, *, tenant: str | None = None) -> Operation[KeyView]:
        """Takes effect with the next request; revoking again changes nothing."""
        return self._send(requests.revoke_key(key_id, tenant=tenant))


class Keys(Blocking, KeyOperations):
    pass


class AsyncKeys(Awaited, KeyOperations):
    pass
