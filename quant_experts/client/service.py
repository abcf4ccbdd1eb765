"""Operations of a service as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from quant_experts.client import calls
from quant_experts.client.operation import Operations, operation
from quant_experts.client.steps import Steps
from quant_experts.client.views import HubTokenView, ModelList, RetentionView, Schemes, Usage, WorkerView


class ServiceOperations(Operations):
    @operation
    def schemes(self) -> Steps[Schemes]:
        """What a job may ask for."""
        return self._send(calls.schemes())

    @operation
    def models(self) -> Steps[ModelList]:
        """What a job may name as its model."""
        return self._send(calls.models())

    @operation
    def workers(self) -> Steps[list[WorkerView]]:
        """Those that were heard of lately."""
        return self._send(calls.workers())

    @operation
    def retention(self) -> Steps[RetentionView]:
        """For how many days jobs, events, blocks, audit entries and deliveries are kept."""
        return self._send(calls.retention())

    @operation
    def set_retention(self, changes: Mapping[str, int | None]) -> Steps[RetentionView]:
        """Change some of ``jobs_days``, ``events_days``, ``layers_days``, ``audit_days``, ``deliveries_days``; None
        goes back to the service's. What is older goes within minutes."""
        return self._send(calls.set_retention(changes))

    @operation
    def hub_token(self) -> Steps[HubTokenView]:
        """Whose token models and datasets of the hub are fetched with; never the token."""
        return self._send(calls.hub_token())

    @operation
    def set_hub_token(self, token: str) -> Steps[HubTokenView]:
        """Set or replace the tenant's own token for gated and private repositories of the hub."""
        return self._send(calls.set_hub_token(token))

    @operation
    def delete_hub_token(self) -> Steps[HubTokenView]:
        """Forget the tenant's own token; the service's is used again, if it has one."""
        return self._send(calls.delete_hub_token())

    @operation
    def usage(
        self, *, since: datetime | None = None, until: datetime | None = None, by: Literal["day", "month"] = "day"
    ) -> Steps[Usage]:
        """Jobs, seconds and bytes by day or month (30 days when nothing is said), and what is stored now."""
        return self._send(calls.usage(since=since, until=until, by=by))
