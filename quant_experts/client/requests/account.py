"""Requests about what belongs to a tenant: keys, usage, retention, hub token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from quant_experts.client.requests.base import Params, Request, path_part, read_as, without_none
from quant_experts.client.views.account import CreatedKey, HubTokenView, KeyView, RetentionView, Usage
from quant_experts.client.views.base import Page


def create_key(
    *, name: str, scopes: Sequence[str], expires_at: datetime | None, tenant: str | None
) -> Request[CreatedKey]:
    body = without_none(name=name, scopes=list(scopes), expires_at=expires_at and expires_at.isoformat(), tenant=tenant)
    # A key whose answer was lost is lost: a second one would leave the first valid and unknown.
    return Request("POST", "/v1/keys", read_as(CreatedKey), json=body, repeatable=False)


def list_keys(*, tenant: str | None = None, page_size: int = 100) -> Request[Page[KeyView]]:
    params: Params = [("limit", page_size), *_of_tenant(tenant)]
    return Request("GET", "/v1/keys", read_as(Page[KeyView]), params=params)


def rotate_key(key_id: str, *, keep_previous_s: int | None, tenant: str | None) -> Request[CreatedKey]:
    # As with a new key: one whose answer was lost would be valid and unknown.
    path = f"{_key(key_id)}/rotate"
    body = without_none(keep_previous_s=keep_previous_s)
    return Request("POST", path, read_as(CreatedKey), params=_of_tenant(tenant), json=body, repeatable=False)


def revoke_key(key_id: str, *, tenant: str | None) -> Request[KeyView]:
    return Request("DELETE", _key(key_id), read_as(KeyView), params=_of_tenant(tenant))


def usage(*, since: datetime | None, until: datetime | None, by: str) -> Request[Usage]:
    span = without_none(since=since and since.isoformat(), until=until and until.isoformat(), by=by)
    return Request("GET", "/v1/usage", read_as(Usage), params=list(span.items()))


def retention() -> Request[RetentionView]:
    return Request("GET", "/v1/retention", read_as(RetentionView))


def set_retention(changes: Mapping[str, int | None]) -> Request[RetentionView]:
    return Request("PATCH", "/v1/retention", read_as(RetentionView), json=dict(changes))


def hub_token() -> Request[HubTokenView]:
    return Request("GET", "/v1/hub-token", read_as(HubTokenView))


def set_hub_token(token: str) -> Request[HubTokenView]:
    return Request("PUT", "/v1/hub-token", read_as(HubTokenView), json={"token": token})


def delete_hub_token() -> Request[HubTokenView]:
    return Request("DELETE", "/v1/hub-token", read_as(HubTokenView))


def _key(key_id: str) -> str:
    return f"/v1/keys/{path_part(key_id)}"


def _of_tenant(tenant: str | None) -> Params:
    return [] if tenant is None else [("tenant", tenant)]
