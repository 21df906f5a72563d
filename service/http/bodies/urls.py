"""Fetch a photo from a URL whose host is allowed: within limits of bytes, time and redirects.

A name is resolved once and the connection goes to the address that was checked, so that a name
server cannot give another one in between. Every redirect is checked like the first URL. Nothing
of the caller's request is forwarded, and no proxy or password of the environment is used.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx

from service.allow_list import PORTS, AllowList
from service.errors import BodyTooLarge, InvalidRequest, Overloaded, StartupError

TIMEOUT_S = 10.0  # of one photo, with all redirects
MOST_REDIRECTS = 3
MOST_AT_ONCE = 16  # fetches: a slow server holds one up for TIMEOUT_S
LONGEST = 2048  # characters
REDIRECTS = {301, 302, 303, 307, 308}
HEADERS = {"User-Agent": "deeplab", "Accept": "image/*", "Accept-Encoding": "identity"}


class Fetcher:
    """Fetches photos from allowed hosts."""

    def __init__(self, allowed: AllowList, max_bytes: int) -> None:
        """Read the root certificates, once; raises StartupError if they cannot be read."""
        self._allowed = allowed
        self._max_bytes = max_bytes
        self._running = 0
        self._tls = _certificates()
        # Threads of its own: a look-up at a slow name server blocks one and cannot be cancelled.
        self._resolvers = ThreadPoolExecutor(MOST_AT_ONCE, thread_name_prefix="resolver")

    async def fetch(self, url: str) -> bytes:
        """Return the content behind a URL; raises InvalidRequest, BodyTooLarge or Overloaded."""
        if self._running >= MOST_AT_ONCE:
            raise Overloaded(f"{self._running} URLs are being fetched: try again in a moment")
        self._running += 1
        try:
            async with asyncio.timeout(TIMEOUT_S) as limit:
                return await self._follow(url)
        except TimeoutError:
            if not limit.expired():
                raise
            raise InvalidRequest(f"url: no photo came within {TIMEOUT_S:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
            reason = str(error) or type(error).__name__
            raise InvalidRequest(f"url: the photo cannot be fetched: {reason}") from None
        finally:
            self._running -= 1

    async def _follow(self, url: str) -> bytes:
        for _ in range(MOST_REDIRECTS + 1):
            target = self.check(url)
            addresses = await self._addresses(target)
            async with self._connection() as client:
                answer = await self._first_answer(client, target, addresses)
                try:
                    if answer.status_code not in REDIRECTS:
                        return await self._content(answer)
                    onward = target.join(answer.headers.get("location", ""))
                finally:
                    await answer.aclose()
            if target.scheme == "https" and onward.scheme != "https":
                raise InvalidRequest("url: it redirects from https to http")
            url = str(onward)
        raise InvalidRequest(f"url: it redirects more than {MOST_REDIRECTS} times")

    def check(self, url: str) -> httpx.URL:
        """Parse a URL; raises InvalidRequest unless its host is allowed."""
        if len(url) > LONGEST:
            raise InvalidRequest(f"url: it has {len(url)} characters, the limit is {LONGEST}")
        try:
            target = httpx.URL(url)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise InvalidRequest(f"url: {error}") from None
        if target.userinfo:
            raise InvalidRequest("url: it has a user name, which would be forwarded: remove it")
        host = target.raw_host.decode("ascii").lower()
        if not self._allowed.has_host(target.scheme, host, target.port):
            raise InvalidRequest(
                f"url: {target.scheme}://{target.netloc.decode('ascii')} is not in the service's "
                "--allow-url-hosts: send the photo itself"
            )
        return target

    async def _addresses(self, target: httpx.URL) -> list[str]:
        """Resolve the host; raises InvalidRequest unless all of its addresses are allowed."""
        host = target.raw_host.decode("ascii").strip("[]")
        loop = asyncio.get_running_loop()
        port = target.port or PORTS[target.scheme]
        resolve = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await loop.run_in_executor(self._resolvers, resolve)
        addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
        if not addresses or not all(map(self._allowed.has_address, addresses)):
            raise InvalidRequest(
                f"url: {host} is at an address that is not public, and its network is not in "
                "--allow-url-hosts"
            )
        return addresses

    async def _first_answer(
        self, client: httpx.AsyncClient, target: httpx.URL, addresses: list[str]
    ) -> httpx.Response:
        """Send the request to the first of the checked addresses that takes connections."""
        headers = {**HEADERS, "Host": target.netloc.decode("ascii")}
        name = {"sni_hostname": target.raw_host.decode("ascii")}  # for TLS and its certificate
        for address in addresses:
            pinned = target.copy_with(host=address)
            request = httpx.Request("GET", pinned, headers=headers, extensions=name)
            try:
                return await client.send(request, stream=True)
            except httpx.ConnectError:
                if address == addresses[-1]:
                    raise
        raise InvalidRequest("url: its host has no address")

    async def _content(self, answer: httpx.Response) -> bytes:
        if answer.status_code != 200:
            raise InvalidRequest(f"url: its server answered {answer.status_code}")
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            raise InvalidRequest("url: its server compresses the photo though asked not to")
        length = answer.headers.get("content-length", "")
        self._check(int(length) if length.isascii() and length.isdigit() else 0)
        content = bytearray()
        async for piece in answer.aiter_raw():
            content += piece
            self._check(len(content))
        return bytes(content)

    def _check(self, size: int) -> None:
        if size > self._max_bytes:
            raise BodyTooLarge(
                f"url: the photo has more than {self._max_bytes} bytes: send a smaller one"
            )

    def _connection(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            trust_env=False,
            verify=self._tls,
            timeout=TIMEOUT_S,
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=0),
        )


def _certificates() -> ssl.SSLContext:
    """Return the certificates of SSL_CERT_FILE or SSL_CERT_DIR, else those of certifi."""
    try:
        return httpx.create_ssl_context()
    except OSError as error:  # ssl.SSLError too: no certificate in the file
        raise StartupError(
            f"SSL_CERT_FILE={os.environ.get('SSL_CERT_FILE')}: {error.strerror or error}: "
            "name a file of PEM certificates, or unset it"
        ) from None
