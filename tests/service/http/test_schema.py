"""The service keeps what its OpenAPI schema promises, tested with schemathesis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.service import onnx_models
from tests.service.processes import running

pytestmark = pytest.mark.slow

EXAMPLES = 20  # of every operation

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("models")
    onnx_models.save(folder / "tiny.onnx")
    jobs = ("--jobs", str(folder / "jobs"))
    with running(folder, "--log-level", "error", *jobs) as (url, _):
        yield url


def test_no_request_meets_a_5xx_or_an_undocumented_answer(address: str) -> None:
    tried: Counter[int] = Counter()
    for found in schemathesis.openapi.from_url(f"{address}/openapi.json").get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def holds(case: Case[Any]) -> None:
            answer = case.call()
            tried[answer.status_code] += 1
            case.validate_response(answer, checks=CHECKS)

        holds()
    assert tried[200]
    assert tried[400]
    assert tried[404]


def test_every_error_is_documented_as_a_problem(address: str) -> None:
    paths = httpx.get(f"{address}/openapi.json").json()["paths"]
    for path, operations in paths.items():
        for operation in operations.values():
            assert "422" not in operation["responses"]
            for status, answer in operation["responses"].items():
                if int(status) >= 400 and "content" in answer:
                    assert list(answer["content"]) == ["application/problem+json"], (path, status)
