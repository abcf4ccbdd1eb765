"""Operations of a service as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from quant_experts.client.effects import Operation
from quant_experts.client.operation import Operations, operation
from quant_experts.client.requests import account as account_requests
from quant_experts.client.requests import pushes as push_requests
from quant_experts.client.requests import service as service_requests
from quant_experts.client.views.account import HubTokenView, RetentionView, Usage
from quant_experts.client.views.pushes import BucketList, BucketView
from quant_experts.client.views.service import ModelList, Schemes, WorkerView


class ServiceOperations(Operations):
    @operation
    def schemes(self) -> Operation[Schemes]:
        """What a job may ask for."""
        return self._send(service_requests.schemes())

    @operation
    def models(self) -> Operation[ModelList]:
        """What a job may name as its model."""
        return self._send(service_requests.models())

    @operation
    def workers(self) -> Operation[list[WorkerView]]:
        """Those that were heard of lately."""
        return self._send(service_requests.workers())

    @operation
    def retention(self) -> Operation[RetentionView]:
        """For how many days jobs, events, blocks, audit entries and deliveries are kept."""
        return self._send(account_requests.retention())

    @operation
    def set_retention(self, changes: Mapping[str, int | None]) -> Operation[RetentionView]:
        """Change some of ``jobs_days``, ``events_days``, ``layers_days``, ``audit_days``, ``deliveries_days``; None
        goes back to the service's. What is older goes within minutes."""
        return self._send(account_requests.set_retention(changes))

    @operation
    def hub_token(self) -> Operation[HubTokenView]:
        """Which token fetches from the hub, the tenant's or the service's; never the token itself."""
        return self._send(account_requests.hub_token())

    @operation
    def set_hub_token(self, token: str) -> Operation[HubTokenView]:
        """Set or replace the tenant's own token for gated and private repositories of the hub."""
        return self._send(account_requests.set_hub_token(token))

    @operation
    def delete_hub_token(self) -> Operation[HubTokenView]:
        """Forget the tenant's own token; the service's is used again, if it has one."""
        return self._send(account_requests.delete_hub_token())

    @operation
    def buckets(self) -> Operation[BucketList]:
        """The buckets that the tenant has a key for; never their secrets."""
        return self._send(push_requests.buckets())

    @operation
    def set_bucket(
        self,
        name: str,
        *,
        access_key_id: str,
        secret_access_key: str,
        endpoint_url: str | None = None,
        region: str | None = None,
        path_style: bool = False,
    ) -> Operation[BucketView]:
        """Set or replace the key with which jobs are pushed to ``s3://name/…``; Amazon's without ``endpoint_url``."""
        request = push_requests.set_bucket(
            name,
            access_key_id=access_key_id,
            secret_access_key=secret_access_key,
            endpoint_url=endpoint_url,
            region=region,
            path_style=path_style,
        )
        return self._send(request)

    @operation
    def delete_bucket(self, name: str) -> Operation[None]:
        """Forget the key of a bucket; what was pushed stays there."""
        return self._send(push_requests.delete_bucket(name))

    @operation
    def usage(
        self, *, since: datetime | None = None, until: datetime | None = None, by: Literal["day", "month"] = "day"
    ) -> Operation[Usage]:
        """Jobs, seconds and bytes by day or month (30 days when nothing is said), and what is stored now."""
        return self._send(account_requests.usage(since=since, until=until, by=by))
