"""The dashboard's session: a signed cookie that names the digest of an API key, never the key.

The server stores nothing. Every request checks the key, so revoking it ends its sessions at once. Logging out removes
the cookie.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass

from fastapi import Request, Response

from app.access.auth import Keyring

COOKIE = "qe_session"
SECONDS = 12 * 3600
COOKIE_SECONDS = 7 * 24 * 3600
"""The cookie outlives its session, so that the login page can say that the session has ended."""
SEALED = re.compile(r"([0-9]{1,12})\.([0-9a-f]{64})\.([0-9a-f]{16})\.([0-9a-f]{64})")


@dataclass(frozen=True)
class Session:
    """``digest``: of the API key, as the database stores it. ``csrf``: the token of this session's forms."""

    digest: str
    csrf: str


def seal(keyring: Keyring, digest: str) -> str:
    payload = f"{int(time.time()) + SECONDS}.{digest}.{secrets.token_hex(8)}"
    return f"{payload}.{_mac(keyring, 'session', payload)}"


def unseal(keyring: Keyring, sealed: str | None) -> Session | None:
    """None for a cookie that is missing, forged or too old."""
    match = SEALED.fullmatch(sealed or "")
    if match is None:
        return None
    payload = match[0].rpartition(".")[0]
    if not hmac.compare_digest(match[4], _mac(keyring, "session", payload)) or int(match[1]) < time.time():
        return None
    return Session(digest=match[2], csrf=_mac(keyring, "csrf", payload))


def give(response: Response, request: Request, sealed: str) -> None:
    """Set the cookie. Scripts cannot read it, and requests from other sites do not carry it."""
    secure = request.url.scheme == "https"
    response.set_cookie(
        COOKIE, sealed, max_age=COOKIE_SECONDS, path="/", httponly=True, samesite="strict", secure=secure
    )


def take(response: Response) -> None:
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")


def _mac(keyring: Keyring, purpose: str, payload: str) -> str:
    return hmac.new(keyring.secret, f"ui-{purpose}\0{payload}".encode(), hashlib.sha256).hexdigest()
