"""``HEAD`` for every route that has ``GET`` (RFC 9110, section 9.3.2). Load balancers and ``curl -I`` send it."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.web.error_handlers import has_route
from app.web.kernel_copy import STATE


class HeadMiddleware:
    """Answers ``HEAD`` with the headers of the ``GET`` route, unless a cheaper route for ``HEAD`` exists."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD" or has_route(scope, "HEAD"):
            await self._app(scope, receive, send)
            return

        # `sendfile` writes to the socket directly, so the body could not be left out.
        scope["state"] = {name: value for name, value in scope.get("state", {}).items() if name != STATE}

        async def send_without_body(message: Message) -> None:
            # The server compares the bytes of a GET with its Content-Length, so it must see a HEAD again.
            scope["method"] = "HEAD"
            if message["type"] == "http.response.body":
                if message.get("more_body", False):
                    return
                message = {**message, "body": b""}
            await send(message)

        if has_route(scope, "GET"):
            scope["method"] = "GET"
        await self._app(scope, receive, send_without_body)
