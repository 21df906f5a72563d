"""Download a file over HTTP: a cut connection is resumed, and no partial file gets its name.

Proxies come from the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY), and SSL_CERT_FILE
adds certificates. The part that has arrived is in `.NAME.partial`. A file beside it identifies the
server's version, so that a later run resumes the same version or starts over.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import ssl
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO
from urllib.request import getproxies, proxy_bypass

import httpx
from tqdm import tqdm

from model import files

log = logging.getLogger("model.weights")

TIMEOUT_S = 30.0  # to connect, and between two packets
ATTEMPTS = 5  # attempts in a row without progress
PAUSE_S = 1.0  # before the second attempt; doubles with each further one
BUSY = (429, 500, 502, 503, 504)
ENCODING = {"Accept-Encoding": "identity"}  # sizes and ranges are the file's own


class DownloadError(RuntimeError):
    """A file could not be downloaded; the message names its address and says what to do."""


class _Interrupted(Exception):
    """This attempt ended early; another one may continue."""


def download(
    url: str,
    target: Path,
    *,
    size: int,
    exact_size: bool = False,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Write the file at `url` to `target`; raises DownloadError, or OSError for a full disk.

    `size` is expected, to the byte with `exact_size`. Less than half or more than twice of
    it is always refused: it may be a login page or an endless stream.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = files.beside(target)
    _require_space(target, size - _length(partial))
    limits = (size, size) if exact_size else (size // 2, size * 2)
    try:
        _fetch(url, partial, limits, pause)
        files.flush(partial)
    except OSError as error:  # a full disk: do not leave the partial file on it
        _forget(partial)
        raise OSError(error.errno, error.strerror, str(target)) from error
    if not limits[0] <= _length(partial) <= limits[1]:
        found = _length(partial)
        _forget(partial)
        raise DownloadError(
            f"{url} has {found} bytes, and {'' if exact_size else 'about '}{size} are expected: "
            "this is another file; nothing was kept"
        )
    partial.replace(target)
    _forget(partial)


def _fetch(
    url: str, partial: Path, limits: tuple[int, int], pause: Callable[[float], None]
) -> None:
    """Try until the file is complete; raises DownloadError after some attempts without progress."""
    failures = 0
    with _client(url) as client:
        while True:
            before = _length(partial)
            try:
                return _attempt(client, url, partial, limits)
            except (httpx.InvalidURL, httpx.TooManyRedirects) as error:
                raise DownloadError(f"{url}: {error}") from error
            except (httpx.TransportError, _Interrupted) as error:
                failures = 0 if _length(partial) > before else failures + 1
                if failures == ATTEMPTS:
                    raise DownloadError(_gave_up(url, partial, error)) from error
                wait = PAUSE_S * 2 ** max(failures - 1, 0)
                log.warning("%s: trying again in %.0f s", _reason(error), wait)
            pause(wait)


def _client(url: str) -> httpx.Client:
    """Return a client with the environment's proxy and certificates; raises DownloadError.

    httpx reads these variables too, but it fails on networks in NO_PROXY, such as `fe80::/10`.
    """
    name, proxy = _proxy(url)
    try:
        return httpx.Client(
            follow_redirects=True,
            timeout=TIMEOUT_S,
            headers=ENCODING,
            event_hooks={"request": [lambda request: _require_secure(url, request)]},
            proxy=proxy,
            verify=_certificates(),
            trust_env=False,
        )
    # ImportError: httpx needs another package for a SOCKS proxy, and its message says so.
    except (httpx.InvalidURL, ImportError, ValueError) as error:
        said = str(error).rstrip(".")
        raise DownloadError(f"{url}: {name} is no proxy that can be used: {said}") from error


def _proxy(url: str) -> tuple[str, str | None]:
    """Return the variable that sets the proxy, and the proxy; None for a host in NO_PROXY."""
    target = httpx.URL(url)
    proxies = getproxies()
    kind = next((each for each in (target.scheme, "all") if proxies.get(each)), None)
    if kind is None or proxy_bypass(target.host):
        return "", None
    proxy = proxies[kind]
    return f"{kind.upper()}_PROXY", proxy if "://" in proxy else f"http://{proxy}"


def _certificates() -> ssl.SSLContext:
    """Return the certificates of SSL_CERT_FILE or SSL_CERT_DIR, else those of certifi."""
    try:
        return httpx.create_ssl_context()
    except OSError as error:  # ssl.SSLError too: no certificate in the file
        raise DownloadError(
            f"SSL_CERT_FILE={os.environ.get('SSL_CERT_FILE')}: {error.strerror or error}: "
            "name a file of PEM certificates, or unset it"
        ) from error


def _gave_up(url: str, partial: Path, error: Exception) -> str:
    kept = f"; {_length(partial)} bytes are kept: run it again to resume" * partial.exists()
    name, proxy = _proxy(url)
    via = f" through the proxy {_without_password(proxy)} ({name})" if proxy else ""
    advice = f"correct {name}" if proxy else "behind a proxy, set HTTPS_PROXY"
    advice += "; a file from elsewhere is taken with --from"
    return f"{url} could not be downloaded{via} ({_reason(error)}){kept}; {advice}"


def _without_password(proxy: str) -> str:
    return str(httpx.URL(proxy).copy_with(username=None, password=None))


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _attempt(client: httpx.Client, url: str, partial: Path, limits: tuple[int, int]) -> None:
    """Make one request, from where the last one stopped if the server has the same version."""
    have, version = _length(partial), _version(partial)
    headers = {"Range": f"bytes={have}-", "If-Range": version} if have and version else {}
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code in BUSY:
            raise _Interrupted(f"status {response.status_code}")
        if response.status_code == 416:  # nothing follows: the file is complete, or wrong
            partial.unlink(missing_ok=True)
            raise _Interrupted("the server has no such part")
        if response.status_code not in (200, 206):
            raise DownloadError(
                f"{url} answered {response.status_code} {response.reason_phrase}: has it moved? "
                "Get the file elsewhere and give it with --from"
            )
        start = _start(response)
        if start not in (0, have):
            partial.unlink(missing_ok=True)
            raise _Interrupted(f"the server sent the part from {start}, not from {have}")
        if start == 0:
            _note_version(partial, response)
        with partial.open("r+b" if start else "wb") as file:
            file.seek(start)
            _copy(response, file, start, limits)


def _copy(response: httpx.Response, file: BinaryIO, start: int, limits: tuple[int, int]) -> None:
    """Write what arrives, with a progress bar on a terminal; raises _Interrupted if it is cut."""
    length = response.headers.get("Content-Length", "")
    total = start + int(length) if length.isdecimal() else None
    with tqdm(
        total=total,
        initial=start,
        unit="B",
        unit_scale=True,
        desc=str(response.url).rpartition("/")[2],
        disable=not sys.stderr.isatty(),
    ) as bar:
        # Written as it arrives, so that a cut connection loses nothing.
        for chunk in response.iter_raw():
            file.write(chunk)
            bar.update(len(chunk))
            if file.tell() > limits[1]:
                return  # the caller then refuses the size
    if total is not None and file.tell() != total:
        raise _Interrupted(f"{file.tell()} of {total} bytes arrived")
    if total is None and file.tell() < limits[0]:  # without a length a cut looks like the end
        raise _Interrupted(f"{file.tell()} bytes arrived, at least {limits[0]} are expected")


def _start(response: httpx.Response) -> int:
    """Return the position in the file where the content begins."""
    if response.status_code == 200:
        return 0
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else -1


def _require_secure(url: str, request: httpx.Request) -> None:
    """Refuse a redirect away from https before it is followed: it could have been changed."""
    if url.startswith("https:") and request.url.scheme != "https":
        raise DownloadError(f"{url} redirects to {request.url}, which is not encrypted")


def _version_file(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}-version")


def _version(partial: Path) -> str:
    """Return the ETag or date of the part that has arrived; empty if there was none."""
    file = _version_file(partial)
    return file.read_text(encoding="ascii") if file.exists() else ""


def _note_version(partial: Path, response: httpx.Response) -> None:
    etag = response.headers.get("ETag", "")
    strong = "" if etag.startswith("W/") else etag  # a weak ETag says nothing about bytes
    version = strong or response.headers.get("Last-Modified", "")
    _version_file(partial).write_text(version.encode("ascii", "ignore").decode(), encoding="ascii")


def _forget(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _version_file(partial).unlink(missing_ok=True)


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _require_space(target: Path, size: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if size > free:
        raise DownloadError(
            f"{target} needs {size / 1e6:.1f} MB, and {target.parent} has {free / 1e6:.1f} MB "
            "free: make room, or choose another folder with -o"
        )
