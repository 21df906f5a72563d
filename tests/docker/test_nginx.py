"""The documented nginx block, running in front of two services, under overload."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.settings import Settings
from tests.docker import proxies
from tests.docker.proxies import Front

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("nginx") is None or shutil.which("openssl") is None,
        reason="nginx and openssl are not installed (Debian packages of these names)",
    ),
]


def command(here: Path, ports: dict[str, str]) -> list[str]:
    folders = "".join(
        f"{kind}_temp_path {here}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    block = proxies.documented("nginx", ports).replace("/etc/ssl", str(here))
    (here / "nginx.conf").write_text(
        f"daemon off; pid {here}/pid; error_log stderr warn;\n"
        "events { worker_connections 1024; }\n"
        f"http {{ access_log off;\n{folders}{block} }}\n"
    )
    return ["nginx", "-p", str(here), "-c", str(here / "nginx.conf"), "-e", "stderr"]


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with proxies.in_front_of_two(tmp_path_factory, command) as front:
        yield front


def test_overload_is_503_with_retry_after_and_never_502(front: Front) -> None:
    """With nginx's default max_fails=1, it stopped using busy replicas: 584 of 600 got 502."""
    answers = proxies.flood(front)
    statuses = proxies.statuses_of(answers)
    assert statuses.keys() == {200, 503}, statuses
    assert statuses[200] >= 5, statuses  # the rest is refused at once
    for answer in answers:
        if answer.status_code == 503:
            assert answer.json()["code"] == "overloaded"
            assert int(answer.headers["retry-after"]) >= 1
    with front.client() as client:
        answer = client.post("/segment", content=proxies.PHOTO, headers=proxies.HEADERS)
    assert answer.status_code == 200
    assert "temporary file" not in front.log.read_text()


def test_without_a_replica_the_answer_is_503_as_its_body_says(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Without "=" in `error_page`, nginx answered 502 with a body that said 503."""
    proxies.check_without_replicas(tmp_path_factory, command)


def test_nginx_closes_idle_connections_before_the_services_do() -> None:
    """Else a request may go out on a connection that a busy service is closing: a reset."""
    (seconds,) = re.findall(r"keepalive_timeout (\d+)s;", proxies.documented("nginx", {}))
    assert int(seconds) < Settings().keep_alive_s


def test_both_replicas_see_the_address_of_the_client(front: Front) -> None:
    proxies.check_client_address(front)


def test_the_proxys_own_refusal_has_the_form_of_the_services(front: Front) -> None:
    proxies.check_refusal(front)


def test_metrics_and_reload_are_not_reachable_through_the_proxy(front: Front) -> None:
    proxies.check_inside(front)


def test_jobs_reach_the_one_service_that_has_them(front: Front) -> None:
    proxies.check_jobs(front)
