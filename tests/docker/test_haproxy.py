"""The documented HAProxy file, running in front of two services, under overload."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker import proxies
from tests.docker.proxies import Front

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("haproxy") is None or shutil.which("openssl") is None,
        reason="haproxy and openssl are not installed (Debian packages of these names)",
    ),
]


def command(here: Path, ports: dict[str, str]) -> list[str]:
    path = here / "haproxy.cfg"
    changes = ports | {"maxconn 60": "maxconn 1"}  # as --max-requests of these services
    path.write_text(proxies.documented("haproxy", changes).replace("/etc/ssl", str(here)))
    return ["haproxy", "-db", "-f", str(path)]


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with proxies.in_front_of_two(tmp_path_factory, command) as front:
        yield front


def test_requests_wait_for_a_replica_and_none_is_refused(front: Front) -> None:
    """16 clients at once, and replicas that take one request each."""
    assert proxies.statuses_of(proxies.flood(front)) == {200: 120}


def test_without_a_replica_the_answer_has_the_form_of_the_services(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    proxies.check_without_replicas(tmp_path_factory, command)


def test_both_replicas_know_who_asked(front: Front) -> None:
    proxies.check_client_address(front)


def test_the_proxys_own_refusal_has_the_form_of_the_services(front: Front) -> None:
    proxies.check_refusal(front)


def test_metrics_and_reload_stay_inside(front: Front) -> None:
    proxies.check_inside(front)


def test_jobs_reach_the_one_service_that_has_them(front: Front) -> None:
    proxies.check_jobs(front)
