"""Proxies and certificates by environment variables, and errors that name the variable."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from service.client import Client, RetryPolicy, StatusError, UnreachableError
from service.client.cli import main
from service.client.route import _covers, is_here, route

from .flaky_server import Answer, FlakyServer, running

HASTE = RetryPolicy(first_s=0.01, give_up_after_s=0.1)
VARIABLES = [
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"),
]
DEAD = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "variable",
    [
        *(f"HTTP_PROXY={DEAD}", f"ALL_PROXY={DEAD}", "ALL_PROXY=socks5://127.0.0.1:9"),
        *("NO_PROXY=::1,fe80::/10", "NO_PROXY=[::1]:x,,/,*.", "HTTP_PROXY=::bad"),
        *("HTTP_PROXY=teapot://x", "SSL_CERT_FILE=/nowhere", "SSL_CERT_DIR=/nowhere"),
    ],
)
def test_this_machine_is_reached_whatever_the_variables_say(
    server: FlakyServer,
    photos: Path,
    tmp_path: Path,
    variable: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(*variable.split("=", 1))
    assert main([server.url, str(photos / "cat.jpg"), "-o", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "a.localhost", "127.8.9.1", "::1"])
def test_names_and_addresses_of_this_machine_are_known(host: str) -> None:
    assert is_here(host)
    assert not is_here(f"x{host}y")


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_other_machines_are_reached_through_the_proxy(
    server: FlakyServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server stands in for a proxy: the request names the service in its target."""
    monkeypatch.setenv(name, server.url.removeprefix("http://"))
    with Client("http://photos.invalid:8000") as client:
        assert client.ready()
    assert [request.headers["host"] for request in server.requests] == ["photos.invalid:8000"]


@pytest.mark.parametrize(
    ("variable", "says"),
    [
        ("ALL_PROXY=socks5://u:pass@h:1", "ALL_PROXY=socks5://h:1 needs socksio: pip install"),
        ("HTTPS_PROXY=::bad", "HTTPS_PROXY is not the address of a proxy"),
        ("https_proxy=ftp://h", "https_proxy=ftp://h is no http, https, socks5, socks5h proxy"),
        (
            "https_proxy=htp:/bad",
            "https_proxy=htp:/bad is not the address of a proxy, which is http://H",
        ),
        ("ALL_PROXY=http:/u:pass@proxy:3128", "ALL_PROXY=http:/"),
        (
            "HTTPS_PROXY=http://u:pass@h/proxy.pac",
            "HTTPS_PROXY=http://h/proxy.pac is not the address",
        ),
        ("SSL_CERT_FILE=/nowhere", "SSL_CERT_FILE=/nowhere: No such file"),
        (f"SSL_CERT_FILE={__file__}", f"SSL_CERT_FILE={__file__}: "),
        ("SSL_CERT_DIR=/nowhere", "SSL_CERT_DIR=/nowhere: no such folder"),
    ],
)
def test_an_unusable_variable_is_a_usage_error_that_names_it(
    variable: str,
    says: str,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "socksio" in says and importlib.util.find_spec("socksio"):
        pytest.skip("socksio is installed here")
    monkeypatch.setenv(*variable.split("=", 1))
    assert main(["https://photos.invalid", str(photos), "-o", str(photos.parent / "out")]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "pass" not in said


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_dead_proxy_is_named_without_its_password(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://user:secret@127.0.0.1:9")
    client = Client(f"{scheme}://photos.invalid", retry=HASTE)
    with client, pytest.raises(UnreachableError) as caught:
        client.models()
    assert "through the proxy http://127.0.0.1:9 (ALL_PROXY)" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_refuses_is_named_and_asked_once(
    server: FlakyServer, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", server.url)
    server.misbehave = lambda request, nth: Answer(407, b"<html>who are you?</html>", "text/html")
    client = Client(f"{scheme}://photos.invalid")
    with client, pytest.raises((StatusError, UnreachableError)) as caught:
        client.models()
    assert "407" in str(caught.value)
    assert f"through the proxy {server.url} (ALL_PROXY)" in str(caught.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("entry", "url", "covers"),
    [
        ("*", "http://any.host", True),
        ("host.org", "http://host.org", True),
        ("host.org", "http://a.HOST.org.", True),
        ("host.org", "http://ahost.org", False),
        (".host.org", "http://a.host.org", True),
        ("*.host.org", "http://a.host.org", True),
        ("host.org:8000", "http://host.org:8000", True),
        ("host.org:8000", "http://host.org", False),
        ("host.org:443", "https://host.org", True),
        ("10.1.2.3", "http://10.1.2.3:8000", True),
        ("10.0.0.0/8", "http://10.1.2.3", True),
        ("10.0.0.0/8", "http://11.1.2.3", False),
        ("10.0.0.0/8", "http://host.org", False),
        ("fe80::/10", "http://[fe80::1]:8000", True),
        ("[fd00::1]", "http://[fd00::1]", True),
        ("::1", "http://host.org", False),
        ("https://host.org", "https://host.org", True),
        *((odd, "http://host.org", False) for odd in (".", ":", "[", "/", "*.", ":80", "a:b")),
    ],
)
def test_no_proxy_lists_names_addresses_and_networks(entry: str, url: str, covers: bool) -> None:
    assert _covers(entry, httpx.URL(url)) == covers


def test_no_proxy_takes_precedence_over_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", DEAD)
    monkeypatch.setenv("NO_PROXY", "::1,fe80::/10, photos.invalid")
    assert route("http://photos.invalid").proxy is None
    assert route("http://other.invalid").proxy is not None


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a self-signed certificate for 127.0.0.1."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", "-"]
    made = subprocess.run([*command.split(), *names], capture_output=True, check=True)
    path.write_bytes(path.read_bytes() + made.stdout)
    return path


@pytest.fixture
def secure(certificate: Path) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with running(tls=context) as server:
        yield server.url.replace("http:", "https:")


def test_a_private_certificate_is_trusted_if_the_variable_names_it(
    secure: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with Client(secure) as client:
        assert [model.name for model in client.models()] == ["light"]


@pytest.mark.parametrize("variable", [None, "SSL_CERT_FILE"])
def test_a_certificate_that_is_not_trusted_is_not_retried(
    secure: str, variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error comes at once and names the variable that caused it."""
    import certifi

    if variable is not None:
        monkeypatch.setenv(variable, certifi.where())
    began = time.monotonic()
    with Client(secure) as client, pytest.raises(UnreachableError) as caught:
        client.models()
    assert time.monotonic() - began < 5
    expected = "set SSL_CERT_FILE to" if variable is None else f"{certifi.where()} decides"
    assert expected in str(caught.value)


def refuse_all(listener: socket.socket) -> None:
    """Answer every connection as an HTTP server answers bytes that are no request."""
    with suppress(OSError):  # the listener was closed
        while True:
            with listener.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def test_https_to_a_service_without_tls_is_told_as_that() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=refuse_all, args=(listener,), daemon=True).start()
        address = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with Client(address, retry=HASTE) as client, pytest.raises(UnreachableError) as caught:
            client.models()
        listener.shutdown(socket.SHUT_RDWR)
    assert "no TLS is spoken there: is it http:// and not https://?" in str(caught.value)
