"""X-Forwarded-Proto is believed from trusted proxies only; each test connects from an address of its own."""

from __future__ import annotations

import httpx
import pytest
from pydantic import ValidationError

from core.settings import Settings
from tests.app.conftest import BOOTSTRAP_KEY, served, started

FORWARDED = {"X-Forwarded-Proto": "https", "Host": "quant.example.org"}


async def cookie(settings: Settings, *, trusted: str, source: str, headers: dict[str, str] = FORWARDED) -> str:
    """The session cookie that a login from ``source`` brings."""
    async with started(settings.model_copy(update={"trusted_proxies": trusted})) as api, served(api) as client:
        transport = httpx.AsyncHTTPTransport(local_address=source)
        async with httpx.AsyncClient(transport=transport, base_url=client.base_url, headers=headers) as browser:
            answer = await browser.post("/login", data={"key": BOOTSTRAP_KEY})
        assert answer.status_code == 303, answer.text
        return answer.headers["set-cookie"]


@pytest.mark.parametrize("trusted", ["127.0.0.2", "10.0.0.0/8, 127.0.0.0/30", "*"])
async def test_behind_a_trusted_proxy_the_cookie_is_secure(settings: Settings, trusted: str) -> None:
    assert "Secure" in await cookie(settings, trusted=trusted, source="127.0.0.2")


async def test_from_anybody_else_the_header_means_nothing(settings: Settings) -> None:
    assert "Secure" not in await cookie(settings, trusted="127.0.0.2", source="127.0.0.3")
    assert "Secure" not in await cookie(settings, trusted="127.0.0.2", source="127.0.0.2", headers={})


@pytest.mark.parametrize("wrong", ["proxy", "10.0.0.1/8", "127.0.0.2;127.0.0.3", "300.0.0.1"])
def test_what_is_no_address_is_refused(wrong: str) -> None:
    with pytest.raises(ValidationError, match="give addresses and networks, separated by commas, or"):
        Settings(trusted_proxies=wrong)


def test_spaces_and_an_empty_list_are_taken() -> None:
    assert Settings(trusted_proxies=" 127.0.0.2 , ::1").trusted_proxies
    assert Settings(trusted_proxies="").trusted_proxies == ""
