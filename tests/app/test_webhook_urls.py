"""A webhook's URL is read strictly: what could mean this machine or its network, in any notation, is refused."""

from __future__ import annotations

import ipaddress

import pytest

from core.contract.webhook_url import BadUrl, is_public, read_url

REFUSED = [
    # not https
    "http://example.com/", "ftp://example.com/", "//example.com/", "example.com", "javascript:alert(1)", "https:///x", "https://",
    "https:example.com", "file:///etc/passwd", "gopher://example.com:6379/_x",
    # users, fragments, ports
    "https://user@example.com/", "https://user:pw@example.com/", "https://example.com@10.0.0.1/", "https://@example.com/",
    "https://example.com/#x", "https://example.com/#", "https://example.com:0/", "https://example.com:22/",
    "https://example.com:99999/", "https://example.com:-1/", "https://example.com:4 43/", "https://example.com:x/",
    "https://example.com:80/",
    # loopback and private, plainly
    "https://127.0.0.1/", "https://10.1.2.3/", "https://172.16.0.1/", "https://192.168.1.1/", "https://169.254.169.254/latest",
    "https://0.0.0.0/", "https://100.64.0.1/", "https://198.18.0.1/", "https://224.0.0.1/", "https://255.255.255.255/",
    "https://192.0.2.1/", "https://240.0.0.1/",
    # the same in other notations
    "https://2130706433/", "https://0x7f000001/", "https://0x7f.1/", "https://0177.0.0.1/", "https://127.1/", "https://127.0.0.1./",
    "https://017700000001/", "https://0/", "https://1.2.3.4.5/", "https://127.0.0.0x1/", "https://00000127.0.0.1/", "https://0x/",
    "https://%31%32%37.0.0.1/", "https://127%2e0%2e0%2e1/",
    # IPv6
    "https://[::1]/", "https://[::]/", "https://[::ffff:127.0.0.1]/", "https://[::ffff:8.8.8.8]/", "https://[::ffff:7f00:1]/",
    "https://[::127.0.0.1]/", "https://[fe80::1]/", "https://[fe80::1%25eth0]/", "https://[fc00::1]/", "https://[fd00:ec2::254]/",
    "https://[ff02::1]/", "https://[64:ff9b::7f00:1]/", "https://[64:ff9b:1::a]/", "https://[2002:7f00:1::]/",
    "https://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/", "https://[2001:db8::1]/", "https://[::1/", "https://::1/", "https://[::1]x/",
    "https://[1.2.3.4]/", "https://[]/",
    # names of one's own network
    "https://localhost/", "https://LOCALHOST/", "https://localhost./", "https://a.localhost/", "https://intranet/", "https://db/",
    "https://printer.local/", "https://metadata.google.internal/", "https://router.lan/", "https://x.home.arpa/",
    "https://1.0.0.127.in-addr.arpa/",
    # letters that only look like it
    "https://ｅxample.com/", "https://１２７.0.0.1/", "https://①②⑦.0.0.1/", "https://127。0。0。1/", "https://münchen.example/",
    "https://exa\u00admple.com/", "https://\u202eexample.com/", "https://example\u3002com/",
    # what splits and smuggles
    "https://example.com\\@10.0.0.1/", "https://example.com\r\nHost: x/", "https://exa mple.com/", "https://example.com/\x00",
    "https://example.com/a b",
    "\thttps://example.com/", "https://example.com\n", "https://-example.com/", "https://example-.com/",
    "https://exam..ple.com/", "https://.example.com/", "https://" + "a" * 64 + ".com/",
    "https://" + "a." * 130 + "com/",
    "https://example.com/" + "a" * 2000, "https://exa<mple.com/", "https://example.com:443:443/",
]  # fmt: skip


@pytest.mark.parametrize("url", REFUSED)
def test_it_is_refused_with_a_reason(url: str) -> None:
    with pytest.raises(BadUrl) as refused:
        read_url(url)
    assert str(refused.value)


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("https://example.com", "example.com", 443, "/"),
        ("https://Hooks.Example.COM:8443/a/b?c=d", "hooks.example.com", 8443, "/a/b?c=d"),
        ("https://xn--mnchen-3ya.example/x", "xn--mnchen-3ya.example", 443, "/x"),
        ("https://example.com./", "example.com", 443, "/"),
        ("https://example.com?x=1", "example.com", 443, "/?x=1"),
        ("https://8.8.8.8/", "8.8.8.8", 443, "/"),
        ("https://[2606:4700:4700::1111]:8443/", "2606:4700:4700::1111", 8443, "/"),
        ("https://127.0.0.1.nip.io/", "127.0.0.1.nip.io", 443, "/"),  # a name; its address is judged when it is sent to
    ],
)
def test_it_is_read_as_it_will_be_used(url: str, host: str, port: int, path: str) -> None:
    target = read_url(url)
    assert (target.host, target.port, target.path) == (host, port, path)


def test_the_host_field_names_the_port_only_where_it_is_not_the_schemes() -> None:
    assert read_url("https://example.com:443/").authority == "example.com"
    assert read_url("https://[2606:4700:4700::1111]:8443/").authority == "[2606:4700:4700::1111]:8443"


def test_development_may_use_its_own_machine() -> None:
    assert read_url("http://localhost:5000/x", allow_http=True, allow_private=True).port == 5000
    with pytest.raises(BadUrl):
        read_url("http://localhost:5000/x", allow_http=True)
    with pytest.raises(BadUrl):
        read_url("http://user@localhost:5000/x", allow_http=True, allow_private=True)


@pytest.mark.parametrize(
    "network",
    ["10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "224.0.0.0/4",
     "240.0.0.0/4", "0.0.0.0/8", "fc00::/7", "fe80::/10", "ff00::/8", "::ffff:0:0/96", "64:ff9b::/96", "2002::/16",
     "2001::/32"],
)  # fmt: skip
def test_no_address_of_a_network_that_is_not_the_internets_is_public(network: str) -> None:
    block = ipaddress.ip_network(network)
    for number in (0, 1, block.num_addresses // 2, block.num_addresses - 1):
        assert not is_public(block[number]), block[number]


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "2a00:1450:4001:81b::200e"])
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))
