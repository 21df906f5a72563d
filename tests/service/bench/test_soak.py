"""The soak test passes on a correct service, and names every failed check."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from service.bench import soak
from service.bench.hostile import Case, Manner, bomb
from service.bench.soak import Sample, Seen, SoakOptions, SoakResult
from service.bench.vitals import Vitals
from tests.service import onnx_models

QUIET = Vitals(cpu_s=1, rss_mib=100, peak_rss_mib=120, threads=8, open_files=17)
SOUND = {
    "status 200": 90.0,
    "status 400": 5.0,
    "status 499": 3.0,
    "problems": 5.0,
    "deeplab_requests_in_flight": 0.0,
    "deeplab_queue_depth": 0.0,
    "deeplab_ready": 1.0,
}
ANY = SoakOptions(Path("models"))


def seen() -> Seen:
    return Seen(sent=100, left=5, statuses=Counter({200: 90, 400: 5}))


def result(**changes: object) -> SoakResult:
    samples = [Sample(number, 100.0) for number in range(20)]
    sound = SoakResult(10.0, seen(), samples, QUIET, QUIET, SOUND, log="", exit_code=0)
    return replace(sound, **changes)  # type: ignore[arg-type] # fields by name, of any type


def found(**changes: object) -> str:
    return "; ".join(soak.problems(result(**changes), ANY))


@pytest.mark.slow
def test_a_few_hundred_requests_lose_and_leak_nothing(tmp_path: Path) -> None:
    onnx_models.save(tmp_path / "tiny.onnx", confidence=True, on_request=True)
    options = SoakOptions(tmp_path, requests=400, clients=8, body_timeout_s=0.5)
    result = soak.run(options)
    assert result.problems == []
    assert result.seen.sent >= 400
    assert result.seen.statuses[200] > 300
    assert {400, 413} <= result.seen.statuses.keys()
    assert result.seen.left > 0
    assert json.loads(json.dumps(result.json()))["problems"] == []


@pytest.mark.slow
def test_memory_beyond_its_bound_is_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx_models.save(tmp_path / "tiny.onnx")
    arguments = ["--model-dir", str(tmp_path), "--requests", "20", "--max-growth-mib", "-1000"]
    assert soak.main(arguments) == 1
    assert "FAILED: memory grew by" in capsys.readouterr().out


def test_a_correct_run_has_no_findings() -> None:
    assert found() == ""


def test_growth_is_measured_from_the_second_quarter_to_the_last() -> None:
    assert soak.growth([0, 0, 50, 50, 60, 70, 80, 90]) == 35
    assert soak.growth([10, 900]) == 0
    samples = [Sample(number, 100.0 + 4 * number) for number in range(40)]
    assert "memory grew by 80.0 MiB" in found(samples=samples)


def test_threads_and_files_that_are_not_released_are_named() -> None:
    leaky = replace(QUIET, threads=9, open_files=30)
    assert found(after=leaky) == "8 threads before, 9 after; 17 open files before, 30 after"
    assert found(after=replace(QUIET, threads=7, open_files=12)) == ""


def test_wrong_and_missing_answers_are_named() -> None:
    clients = seen()
    case = Case("bomb", frozenset({413}), "/segment", {}, b"")
    clients.note(case, 413)
    clients.note(case, 503)
    assert not clients.wrong
    clients.note(case, 500)
    clients.unanswered["mask: closed"] += 1
    text = found(seen=clients)
    assert "wrong answer, 1 times: bomb: 500, not 413" in text
    assert "no answer, 1 times: mask: closed" in text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"status 200": 89.0}, "clients saw 90 answers with status 200, the metrics have 89"),
        ({"status 200": 96.0}, "clients saw 90 answers with status 200, the metrics have 96"),
        (
            {"status 500": 9.0, "problems": 14.0},
            "clients saw 0 answers with status 500, the metrics have 9",
        ),
        ({"status 499": 6.0}, "95 answers and 5 disconnects, the metrics have 101"),
        ({"problems": 4.0}, "5 answers of 400 and above, but 4 problems"),
        ({"deeplab_requests_in_flight": 2.0}, "deeplab_requests_in_flight is 2.0 after the run"),
        ({"deeplab_ready": 0.0}, "deeplab_ready is 0.0 after the run"),
    ],
)
def test_metrics_that_differ_from_what_clients_saw_are_named(
    changes: dict[str, float], reason: str
) -> None:
    assert reason in found(metrics=SOUND | changes)


def test_a_client_that_left_may_have_been_answered() -> None:
    assert found(metrics=SOUND | {"status 200": 93.0, "status 499": 0.0}) == ""


def test_errors_in_the_log_and_a_wrong_exit_are_named() -> None:
    assert "the log has errors" in found(log='{"level": "error", "message": "a batch failed"}')
    assert "SIGTERM ended the service with exit code 1" in found(exit_code=1)


def test_requests_are_valid_http() -> None:
    case = Case("a", frozenset({200}), "/segment", {"Content-Type": "image/png"}, b"12345")
    assert case.head().startswith(b"POST /segment HTTP/1.1\r\n")
    assert b"Content-Length: 5\r\n" in case.head()
    chunked = replace(case, manner=Manner.CHUNKED).head()
    assert b"Transfer-Encoding: chunked\r\n" in chunked
    assert b"Content-Length" not in chunked


def test_the_bomb_is_small() -> None:
    assert len(bomb()) < 10_000
