"""``HEAD`` wherever ``GET`` is (RFC 9110, section 9.3.2): load balancers and ``curl -I`` ask so."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.web.kernel_copy import STATE
from app.web.problems import has_route


class HeadMiddleware:
    """Answers ``HEAD`` by the route of ``GET``, without the body, where no route of its own knows a cheaper way."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD" or has_route(scope, "HEAD"):
            await self._app(scope, receive, send)
            return

        # The kernel's way to the socket would go past what leaves the body out.
        scope["state"] = {name: value for name, value in scope.get("state", {}).items() if name != STATE}

        async def send_without_body(message: Message) -> None:
            # From here on it is what it was: the server counts the bytes of a GET against its Content-Length.
            scope["method"] = "HEAD"
            if message["type"] == "http.response.body":
                if message.get("more_body", False):
                    return
                message = {**message, "body": b""}
            await send(message)

        if has_route(scope, "GET"):
            scope["method"] = "GET"
        await self._app(scope, receive, send_without_body)
