"""Which URLs' hosts and addresses are allowed."""

from __future__ import annotations

import pytest

from service.allow_list import AllowList

LISTED = AllowList.of(
    ("example.org", "*.images.net", "api.test:8080", "10.1.0.0/16", "127.0.0.1:9000", "::1")
)
EVERY = AllowList.of(("*",))


@pytest.mark.parametrize(
    ("scheme", "host", "port", "allowed"),
    [
        ("https", "example.org", None, True),
        ("https", "example.org", 443, True),
        ("http", "example.org", None, True),
        ("http", "example.org", 8080, False),
        ("ftp", "example.org", None, False),
        ("https", "www.example.org", None, False),
        ("https", "example.org.evil.com", None, False),
        ("https", "example.org.", None, False),
        ("https", "a.images.net", None, True),
        ("https", "images.net", None, False),
        ("https", "evilimages.net", None, False),
        ("http", "api.test", 8080, True),
        ("http", "api.test", None, False),
        ("http", "10.1.2.3", None, True),
        ("http", "10.1.2.3", 22, False),
        ("http", "10.2.2.3", None, False),
        ("http", "127.0.0.1", 9000, True),
        ("http", "[::1]", None, True),
    ],
)
def test_hosts(scheme: str, host: str, port: int | None, allowed: bool) -> None:
    assert LISTED.has_host(scheme, host, port) == allowed


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("http://example.org", "without scheme and path"),
        ("example.org/photos", "without scheme and path"),
        ("10.0.0.1/8", "write 10.0.0.0/8"),
        ("example.org:x", "a port is a number"),
        ("exam ple", "such as example.org"),
    ],
)
def test_a_wrong_entry_says_what_to_write(entry: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        AllowList.of((entry,))


@pytest.mark.parametrize(
    "host", ["127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0x7f.1", "1.2.3.4.5", "fe80::1%1"]
)
def test_other_notations_of_addresses_are_refused_even_if_every_host_is_allowed(host: str) -> None:
    assert not EVERY.has_host("http", host, None) or not EVERY.has_address(host)


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        *((private, False) for private in ("127.0.0.1", "10.2.0.1", "192.168.0.1", "0.0.0.0")),
        *(
            (private, False)
            for private in ("169.254.169.254", "100.64.0.1", "224.0.0.1", "fc00::1")
        ),
        *((inside, False) for inside in ("::ffff:10.2.0.1", "64:ff9b::7f00:1", "2002:7f00:1::")),
        *((other, False) for other in ("fe80::1", "ff02::1", "::", "fd00:ec2::254", "not one")),
        ("::ffff:93.184.216.34", True),
    ],
)
def test_only_public_addresses_are_allowed(address: str, allowed: bool) -> None:
    assert EVERY.has_address(address) == allowed


def test_networks_that_are_listed_are_allowed() -> None:
    assert LISTED.has_address("10.1.9.9")
    assert LISTED.has_address("::ffff:10.1.9.9")
    assert LISTED.has_address("::1")
    assert not LISTED.has_address("10.2.0.1")


@pytest.mark.parametrize(
    "entry", ["http://example.org", "10.0.0.1/8", "a b", "example.org:0", "127.1", "x:port", ""]
)
def test_entries_that_mean_nothing_are_errors(entry: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        AllowList.of((entry,))
