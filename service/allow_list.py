"""Which hosts and addresses the service may fetch photos from: the setting --allow-url-hosts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Self

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

ANY = "*"
PORTS = {"http": 80, "https": 443}
NAME = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*")
# Texts that a resolver may read as an IPv4 address: 127.1, 2130706433, 0x7f.1, 0177.0.0.1.
NUMERIC = re.compile(r"(^|\.)(\d+|0x[0-9a-f]*)$")
# IPv6 addresses that contain an IPv4 address, which a gateway would reach: NAT64, 6to4, Teredo.
GATEWAYS = tuple(map(IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")))


@dataclass(frozen=True)
class AllowList:
    """Hosts by name, and the networks whose private addresses are allowed."""

    names: tuple[tuple[str, int | None], ...]  # host and port; None: the scheme's own
    networks: tuple[Network, ...]

    @classmethod
    def of(cls, entries: tuple[str, ...]) -> Self:
        """Parse `example.org`, `*.example.org:8080`, `*`, `10.0.0.0/8`; raises ValueError."""
        names: list[tuple[str, int | None]] = []
        networks: list[Network] = []
        for entry in entries:
            if "/" in entry:
                networks.append(network(entry))
                continue
            host, port = _host_and_port(entry.lower())
            if literal := _literal(host):
                networks.append(ip_network(literal))
                host = str(literal)
            elif host != ANY and (not NAME.fullmatch(host) or NUMERIC.search(host)):
                raise ValueError(f"{entry!r}: give a host such as example.org, or a network")
            names.append((host, port))
        return cls(tuple(names), tuple(networks))

    def has_host(self, scheme: str, host: str, port: int | None) -> bool:
        """Return whether this host and port are allowed; `has_address` checks the address."""
        if scheme not in PORTS:
            return False
        literal = _literal(host)
        if literal is None and NUMERIC.search(host):
            return False
        host, wanted = str(literal or host), port or PORTS[scheme]
        if literal and wanted == PORTS[scheme] and any(literal in net for net in self.networks):
            return True
        return any(
            _matches(name, host) and wanted == (allowed or PORTS[scheme])
            for name, allowed in self.names
        )

    def has_address(self, text: str) -> bool:
        """Return whether an address that a host resolved to is global or in a listed network."""
        address = _literal(text)
        if address is None:
            return False
        if any(address in network for network in self.networks):
            return True
        if isinstance(address, IPv6Address):
            inside = address.ipv4_mapped
            if inside is not None:
                return self.has_address(str(inside))
            if any(address in network for network in GATEWAYS):
                return False
        return address.is_global and not address.is_multicast and not address.is_reserved


def network(text: str) -> Network:
    """Parse a network such as 10.0.0.0/8; raises a ValueError that says what to change."""
    try:
        nearest = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            f"{text!r}: give an address or a network, such as 10.0.0.0/8, and hosts without "
            "scheme and path"
        ) from None
    try:
        return ip_network(text)
    except ValueError:
        raise ValueError(f"{text!r} is an address in a network: write {nearest}") from None


def _matches(name: str, host: str) -> bool:
    if name == ANY:
        return True
    return host.endswith(name[1:]) if name.startswith("*.") else host == name


def _literal(host: str) -> Address | None:
    """Parse an address in its one standard form; None for names and all other forms."""
    try:
        return None if "%" in host else ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def _host_and_port(entry: str) -> tuple[str, int | None]:
    if _literal(entry):
        return entry, None
    host, _, port = entry.rpartition(":")
    if not host:
        return entry, None
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{entry!r}: a port is a number from 1 to 65535")
    return host, int(port)
