"""Downloads work over networks that cut, redirect and lie about sizes; full disks are errors."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import httpx
import numpy as np
import pytest

from model.weights.download import ATTEMPTS, DownloadError, _require_secure, download
from tests.model.weights.server import Behaviour, serving

CONTENT = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(300_000)


def no_pause(_: float) -> None:
    pass


def get(behaviour: Behaviour, target: Path, *, exact_size: bool = True) -> None:
    with serving(behaviour) as address:
        download(
            f"{address}/file", target, size=len(CONTENT), exact_size=exact_size, pause=no_pause
        )


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("length", [True, False])
def test_a_file_arrives_whole_and_alone(length: bool, tmp_path: Path) -> None:
    get(Behaviour(CONTENT, length=length), tmp_path / "new" / "file")
    assert (tmp_path / "new" / "file").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


@pytest.mark.parametrize("length", [True, False])
def test_cut_connections_are_resumed_where_they_stopped(length: bool, tmp_path: Path) -> None:
    """Each request fetches only the rest; there may be more cuts than attempts.

    Proxies that speak HTTP/1.0 send no length: a cut then looks like the end.
    """
    how = Behaviour(CONTENT, cut_after=40_000, length=length)
    get(how, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    starts = [int(asked[6:-1] or 0) if asked else 0 for _, asked in how.seen]
    assert len(starts) > ATTEMPTS
    assert starts == sorted(set(starts))


def test_a_later_run_resumes_what_an_earlier_one_left(tmp_path: Path) -> None:
    first = Behaviour(CONTENT, cut_after=100_000, cuts=1)

    def refuse(_: float) -> None:
        first.statuses = [503]

    with serving(first) as address:
        url = f"{address}/file"
        with pytest.raises(DownloadError, match="100000 bytes are kept: run it again to resume"):
            download(url, tmp_path / "file", size=len(CONTENT), pause=refuse)
    assert not (tmp_path / "file").exists()
    second = Behaviour(CONTENT)
    get(second, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert second.seen == [("/file", "bytes=100000-")]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_another_version_on_the_server_is_not_mixed_with_the_old_part(tmp_path: Path) -> None:
    """If-Range: the server then sends the new file from its start."""
    how = Behaviour(OTHER, cut_after=100_000, cuts=1)

    def replace(_: float) -> None:
        how.content, how.etag = CONTENT, '"v2"'

    with serving(how) as address:
        download(f"{address}/file", tmp_path / "file", size=len(CONTENT), pause=replace)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_without_ranges_is_asked_again_from_the_start(tmp_path: Path) -> None:
    get(Behaviour(CONTENT, ranges=False, cut_after=100_000, cuts=2), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_busy_servers_are_asked_again(tmp_path: Path) -> None:
    get(Behaviour(CONTENT, statuses=[503, 429, 502]), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize(("statuses", "says"), [([404], "404 Not Found.*--from"), ([403], "403")])
def test_refusals_are_not_retried(statuses: list[int], says: str, tmp_path: Path) -> None:
    how = Behaviour(CONTENT, statuses=statuses)
    with pytest.raises(DownloadError, match=says):
        get(how, tmp_path / "file")
    assert len(how.seen) == 1
    assert not [*tmp_path.iterdir()]


def test_an_unreachable_server_is_named(tmp_path: Path) -> None:
    with serving(Behaviour()) as address:
        pass
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1.*could not be downloaded"):
        download(f"{address}/file", tmp_path / "file", size=1, pause=no_pause)
    assert not [*tmp_path.iterdir()]


def test_redirects_are_followed(tmp_path: Path) -> None:
    how = Behaviour(CONTENT, redirect="/moved/file")
    get(how, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [path for path, _ in how.seen] == ["/file", "/moved/file"]


def test_redirects_in_a_circle_end(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="redirects"):
        get(Behaviour(CONTENT, redirect="/file"), tmp_path / "file")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("content", "exact_size"),
    [
        (CONTENT[:-1], True),
        (CONTENT + b"x", True),
        (b"<html>Please log in</html>", False),
        (CONTENT * 3, False),
    ],
    ids=["short", "long", "a login page", "three times as long"],
)
def test_a_file_of_another_size_is_refused_and_not_kept(
    content: bytes, exact_size: bool, tmp_path: Path
) -> None:
    with pytest.raises(DownloadError, match="nothing was kept"):
        get(Behaviour(content), tmp_path / "file", exact_size=exact_size)
    assert not [*tmp_path.iterdir()]


def test_a_rounded_size_may_differ_a_little(tmp_path: Path) -> None:
    get(Behaviour(CONTENT + b"x" * 5000), tmp_path / "file", exact_size=False)
    assert (tmp_path / "file").stat().st_size == len(CONTENT) + 5000


def test_the_proxy_of_the_environment_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy gets the whole address; hosts in NO_PROXY are asked directly."""
    how = Behaviour(CONTENT)
    with serving(how) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy)
        download("http://weights.invalid/file", tmp_path / "a", size=len(CONTENT))
        assert how.seen == [("http://weights.invalid/file", "")]
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        direct = Behaviour(CONTENT)
        get(direct, tmp_path / "b")
        assert direct.seen == [("/file", "")]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == CONTENT


@pytest.mark.parametrize("proxy", ["ftp://proxy", "socks5://127.0.0.1:1", "http://[bad"])
def test_a_proxy_that_cannot_be_used_is_a_clear_error(
    proxy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SOCKS needs a package. If it is missing, the error names it; else the connection fails."""
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(DownloadError, match=r"weights\.invalid/file"):
        download("http://weights.invalid/file", tmp_path / "file", size=1, pause=no_pause)


def test_a_dead_proxy_is_named_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://user:secret@127.0.0.1:9")
    with pytest.raises(
        DownloadError, match=r"the proxy http://127\.0\.0\.1:9 \(ALL_PROXY\)"
    ) as told:
        download("http://weights.invalid/file", tmp_path / "file", size=1, pause=no_pause)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("entries", ["::1,fe80::/10", "[::1]:x,,/,*.", "10.0.0.0/8,127.0.0.1"])
def test_networks_in_no_proxy_are_no_error(
    entries: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """httpx by itself fails on some of them, for every host."""
    monkeypatch.setenv("NO_PROXY", entries)
    get(Behaviour(CONTENT), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_certificates_that_cannot_be_read_are_named(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were told as `No such file or directory` of the file to be written."""
    authority = tmp_path / "authority.pem"
    if content is not None:
        authority.write_text(content, encoding="ascii")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    with pytest.raises(DownloadError, match=r"SSL_CERT_FILE=.*authority\.pem: .*name a file"):
        download("http://weights.invalid/file", tmp_path / "file", size=1, pause=no_pause)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_named_and_nothing_stays(tmp_path: Path) -> None:
    """The part goes to /dev/full, where every write fails as on a full disk."""
    (tmp_path / ".file.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device.*file'"):
        get(Behaviour(CONTENT), tmp_path / "file")
    assert not [*tmp_path.iterdir()]


def test_a_disk_that_fills_up_during_a_download_keeps_nothing(tmp_path: Path) -> None:
    """A limit of file sizes stands for the disk: writing fails after 100 kB.

    It is lifted at the end, for the coverage data that the process writes when it exits.
    """
    code = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from model.weights.download import download
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            download(sys.argv[1], Path(sys.argv[2]), size=300_000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    """)
    with serving(Behaviour(CONTENT)) as address:
        command = [sys.executable, "-c", code, f"{address}/file", str(tmp_path / "file")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"File too large: '{tmp_path / 'file'}'" in done.stderr
    assert not [*tmp_path.iterdir()]


def test_a_file_larger_than_the_disk_is_not_started(tmp_path: Path) -> None:
    how = Behaviour(CONTENT)
    with serving(how) as address, pytest.raises(DownloadError, match=r"make room.*-o"):
        download(f"{address}/file", tmp_path / "file", size=10**18)
    assert how.seen == []


def test_a_redirect_to_http_is_refused_before_it_is_followed() -> None:
    """Whoever changes the unencrypted answer in the middle chooses where the next one leads."""
    plain = httpx.Request("GET", "http://b.example/file")
    with pytest.raises(DownloadError, match=r"http://b\.example/file, which is not encrypted"):
        _require_secure("https://a.example/file", plain)
    _require_secure("https://a.example/file", httpx.Request("GET", "https://c.example/file"))
    _require_secure("http://a.example/file", plain)
