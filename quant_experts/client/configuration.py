"""URL and API key of the service: arguments, then ``QE_URL`` and ``QE_API_KEY``, then the config file.

``~/.config/quant-experts/config.toml`` (``XDG_CONFIG_HOME`` is honoured) holds ``url`` and ``api_key``. For a service
on this machine the key that ``qe serve`` keeps in ``QE_HOME/api_key`` is the last resort.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

from quant_experts import __version__
from quant_experts.client.errors import MisconfiguredClient

LOCAL = "http://127.0.0.1:8000"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)


@dataclass(frozen=True)
class Access:
    url: str
    api_key: str = field(repr=False)


def connected(kind: type[Http], access: Access, **how: Any) -> Http:
    """A client of httpx for this service. Raises MisconfiguredClient for a proxy that cannot be used.

    A service on this machine is asked directly whatever the proxies of the environment: none of them could reach it.
    """
    near = _host(access.url) in LOOPBACK
    settings: dict[str, Any] = {
        "base_url": access.url,
        "headers": {
            "Authorization": f"Bearer {access.api_key}",
            "User-Agent": f"quant-experts-client/{__version__}",
        },
        "follow_redirects": False,
        **how,
    }
    try:
        return kind(**settings, mounts={f"all://{_bracketed(access.url)}": None} if near else None)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        if near:
            return kind(**settings, trust_env=False)
        raise MisconfiguredClient(f"HTTP_PROXY, HTTPS_PROXY or ALL_PROXY cannot be used: {error}") from error


def _bracketed(url: str) -> str:
    host = _host(url)
    return f"[{host}]" if ":" in host else host


def config_file(environment: Mapping[str, str] = os.environ) -> Path:
    return of_the_user("XDG_CONFIG_HOME", ".config", environment) / "config.toml"


def of_the_user(variable: str, below_home: str, environment: Mapping[str, str] = os.environ) -> Path:
    """Our directory of this kind (XDG Base Directory Specification); below ``/`` for a user without a home."""
    try:
        home = Path.home()
    except RuntimeError:  # a container that runs under an unknown user id
        home = Path("/")
    return Path(environment.get(variable) or home / below_home) / "quant-experts"


def resolve(
    url: str | None = None, api_key: str | None = None, *, environment: Mapping[str, str] = os.environ
) -> Access:
    """URL and key. Raises MisconfiguredClient, which says what to set."""
    stored_key = _kept(config_file(environment))
    address = (url or environment.get("QE_URL") or stored_key.get("url") or LOCAL).strip().rstrip("/")
    host = _host(address)
    key = api_key or environment.get("QE_API_KEY") or stored_key.get("api_key")
    if not key and host in LOOPBACK:
        key = _key_of_serve(Path(environment.get("QE_HOME", ".qe")))
    if not key:
        raise MisconfiguredClient(
            f'no API key for {address}: set QE_API_KEY, or write api_key = "qe_…" to {config_file(environment)}'
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise MisconfiguredClient("the API key has characters that no key has: was it copied whole and alone?")
    return Access(url=address, api_key=key)


def names_a_service(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment or the config file has a URL. Raises MisconfiguredClient."""
    return bool(environment.get("QE_URL") or _kept(config_file(environment)).get("url"))


def _host(url: str) -> str:
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise MisconfiguredClient(f"QE_URL {url!r} is not an address: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.host:
        raise MisconfiguredClient(f"QE_URL {url!r} is not an address: write http://host:port or https://host")
    if parts.userinfo or parts.query or parts.fragment:
        # httpx would turn a user into an Authorization header, in place of our key, and append paths to a query.
        raise MisconfiguredClient("QE_URL has a user, a ? or a #: write http://host:port or https://host, without them")
    return parts.host


def _kept(path: Path) -> dict[str, str]:
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise MisconfiguredClient(f"{path} cannot be read: {error}") from error
    for name, value in content.items():
        if name not in ("url", "api_key") or not isinstance(value, str):
            raise MisconfiguredClient(f"{path}: {name} is not a setting; it takes url and api_key, both strings")
    return content


def _key_of_serve(home: Path) -> str | None:
    try:
        return (home.expanduser() / "api_key").read_text().strip()
    except OSError:
        return None
