"""Where the service is and who we are: arguments, then ``QE_URL`` and ``QE_API_KEY``, then the config file.

``~/.config/quant-experts/config.toml`` (``XDG_CONFIG_HOME`` is honoured) holds ``url`` and ``api_key``. For a service
on this machine the key that ``qe serve`` keeps in ``QE_HOME/api_key`` is the last resort.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from quant_experts import __version__
from quant_experts.client.errors import MisconfiguredClient

LOCAL = "http://127.0.0.1:8000"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Access:
    url: str
    api_key: str = field(repr=False)


def headers(access: Access) -> dict[str, str]:
    """What every request carries."""
    return {"Authorization": f"Bearer {access.api_key}", "User-Agent": f"quant-experts-client/{__version__}"}


def config_file(environment: Mapping[str, str] = os.environ) -> Path:
    base = environment.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "quant-experts" / "config.toml"


def resolve(
    url: str | None = None, api_key: str | None = None, *, environment: Mapping[str, str] = os.environ
) -> Access:
    """Raises MisconfiguredClient that says what to set."""
    kept = _kept(config_file(environment))
    address = (url or environment.get("QE_URL") or kept.get("url") or LOCAL).rstrip("/")
    host = _host(address)
    key = api_key or environment.get("QE_API_KEY") or kept.get("api_key")
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
    """Whether environment or config file say where the service is. Raises MisconfiguredClient."""
    return bool(environment.get("QE_URL") or _kept(config_file(environment)).get("url"))


def _host(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise MisconfiguredClient(f"QE_URL {url!r} is not an address: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise MisconfiguredClient(f"QE_URL {url!r} is not an address: write http://host:port or https://host")
    return parsed.host


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
