"""Choose the proxy and the certificates from environment variables.

httpx reads the same variables, but it fails on values that other programs accept, uses the proxy
for requests to this machine too, and its errors do not name the variable.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.request import getproxies

import httpx

from service.client.errors import UsageError

PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
BAD_CERTIFICATE = "CERTIFICATE_VERIFY_FAILED"  # as OpenSSL words it
NO_TLS = ("WRONG_VERSION_NUMBER", "record layer failure")  # as OpenSSL 3.0 and newer ones word it
REFUSED = "All connection attempts failed"  # as anyio words it
UNKNOWN_NAMES = frozenset(
    {getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA") if hasattr(socket, name)}
)  # not EAI_AGAIN, which is an outage of the name server


class UnknownHostError(httpx.ConnectError):
    """The name server knows no such host."""


@dataclass(frozen=True)
class Route:
    """The proxy and certificates for a service."""

    proxy: httpx.Proxy | None
    tls: ssl.SSLContext | bool  # True: httpx's own certificates
    via: str  # " through the proxy http://proxy:3128 (HTTPS_PROXY)"; empty without one
    authorities: str  # which certificates are trusted, for an error about them

    def explained(self, error: httpx.RequestError) -> httpx.RequestError:
        """Return the same error with the proxy or the certificates that caused it."""
        reason = str(error) or type(error).__name__
        if isinstance(error, httpx.ConnectError) and _is_unknown_host(error):
            return UnknownHostError(f"unknown host{self.via} ({reason})", request=error.request)
        if isinstance(error, httpx.ConnectError) and REFUSED in reason and not self.via:
            reason = f"{reason}: is the service running there?"
        if any(words in reason for words in NO_TLS):
            reason = f"{reason}: no TLS is spoken there: is it http:// and not https://?"
        hint = f"; {self.authorities}" if BAD_CERTIFICATE in reason else ""
        return type(error)(f"{reason}{self.via}{hint}", request=error.request)


def route(url: str, environment: Mapping[str, str] = os.environ) -> Route:
    """Return the route to a service; raises UsageError naming an invalid variable."""
    target = httpx.URL(url)
    name, address = _proxy(target)
    trusts = _trusted(environment) if "https" in {target.scheme, address and address.scheme} else ""
    tls = _context(environment) if trusts else True
    authorities = f"{trusts} decides which certificates are trusted" if trusts else _UNSET
    if address is None:
        return Route(None, tls, "", authorities)
    context = tls if isinstance(tls, ssl.SSLContext) else None
    proxy = httpx.Proxy(address, ssl_context=context if address.scheme == "https" else None)
    return Route(proxy, tls, f" through the proxy {shown(address)} ({name})", authorities)


_UNSET = "set SSL_CERT_FILE to a PEM file with the certificate of the authority that signed it"


def _proxy(target: httpx.URL) -> tuple[str, httpx.URL | None]:
    """Return the variable that sets the proxy, and the proxy, or None."""
    proxies = getproxies()  # of the environment, on macOS and Windows also of the system
    if is_here(target.host) or _is_direct(target, proxies.get("no", "")):
        return "", None
    kind = next((kind for kind in (target.scheme, "all") if proxies.get(kind)), None)
    if kind is None:
        return "", None
    name = next(
        (n for n in (f"{kind}_proxy", f"{kind.upper()}_PROXY") if n in os.environ), "system"
    )
    return name, _address(name, proxies[kind], target.host)


def _address(name: str, value: str, host: str) -> httpx.URL:
    instead = f"correct it, or set NO_PROXY={host} to go without a proxy"
    try:
        address = httpx.URL(value if "://" in value else f"http://{value}")
    except (httpx.InvalidURL, ValueError) as error:
        raise UsageError(f"{name} is not the address of a proxy ({error}): {instead}") from None
    if address.scheme not in PROXY_SCHEMES or not address.host:
        raise UsageError(
            f"{name}={shown(address)} is no {', '.join(PROXY_SCHEMES)} proxy: {instead}"
        )
    if address.raw_path != b"/":  # as in `http:/proxy:3128`, and the address of a PAC file
        raise UsageError(
            f"{name}={_without_password(value)} is not the address of a proxy, which is "
            f"http://HOST:PORT without a path: {instead}"
        )
    if address.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        needs = "needs socksio: pip install 'httpx[socks]'"
        raise UsageError(f"{name}={shown(address)} {needs}; or {instead}")
    return address


def shown(address: httpx.URL) -> str:
    """Return the address without user name and password."""
    return str(address.copy_with(username=None, password=None)).rstrip("/")


def _without_password(value: str) -> str:
    return re.sub(r"^([\w+.-]+:/+)?.*@", r"\1", value)


def _is_unknown_host(error: BaseException | None) -> bool:
    """Return whether this error, or one that caused it, says that a host has no address."""
    while error is not None:
        if isinstance(error, socket.gaierror):
            return error.errno in UNKNOWN_NAMES
        error = error.__cause__ or error.__context__
    return False


def is_here(host: str) -> bool:
    """Return whether a host is this machine, which no proxy can reach."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = _ip(name)
    return address is not None and (address.is_loopback or address.is_unspecified)


def _is_direct(target: httpx.URL, no_proxy: str) -> bool:
    """Return whether NO_PROXY covers the host: `*`, domains, addresses or networks."""
    entries = filter(None, re.split(r"[,\s]+", no_proxy.lower()))
    return any(_covers(entry, target) for entry in entries)


def _covers(entry: str, target: httpx.URL) -> bool:
    host = target.host.lower().rstrip(".")
    if entry == "*":
        return True
    entry = entry.partition("://")[2] or entry
    address = _ip(host)
    try:
        network = ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        pass
    else:
        return address is not None and address in network
    name, _, port = entry.rpartition(":") if re.search(r":\d+$", entry) else (entry, "", "")
    if port and int(port) != (target.port or {"http": 80, "https": 443}[target.scheme]):
        return False
    name = name.strip("[]").removeprefix("*").lstrip(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None


def _trusted(environment: Mapping[str, str]) -> str:
    """Return the variable that is set, as `SSL_CERT_FILE=/x.pem`; the file takes precedence."""
    names = ("SSL_CERT_FILE", "SSL_CERT_DIR")
    return next((f"{name}={environment[name]}" for name in names if environment.get(name)), "")


def _context(environment: Mapping[str, str]) -> ssl.SSLContext:
    file, folder = environment.get("SSL_CERT_FILE"), environment.get("SSL_CERT_DIR")
    if not file and folder and not Path(folder).is_dir():
        raise UsageError(f"SSL_CERT_DIR={folder}: no such folder: correct or unset it")
    try:
        if file:
            return ssl.create_default_context(cafile=file)
        return ssl.create_default_context(capath=folder)
    except OSError as error:  # ssl.SSLError too: no certificate in it
        reason = error.strerror or error
        raise UsageError(
            f"{_trusted(environment)}: {reason}: name a file of PEM certificates, or unset it"
        ) from error
