"""Traces: one span per request with spans for its stages, exported only if configured."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from service import __main__ as cli
from service import logs
from service.http.app import create_app
from service.http.telemetry.tracing import Tracing
from service.inference import models
from service.settings import Settings, wants_traces
from tests.service import onnx_models
from tests.service.processes import LOG, running
from tests.service.web import photo, png, post

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
STAGES = ["decode", "queue", "infer", "encode"]


@contextmanager
def traced(folder: Path) -> Iterator[tuple[TestClient, InMemorySpanExporter]]:
    onnx_models.save(folder / "tiny.onnx")
    settings = Settings(models=folder, device="cpu", threads=1)
    exporter = InMemorySpanExporter()
    tracing = Tracing(SimpleSpanProcessor(exporter))
    with TestClient(create_app(settings, models.load(settings), tracing)) as client:
        yield client, exporter


def by_name(spans: tuple[ReadableSpan, ...]) -> dict[str, ReadableSpan]:
    assert len({span.name for span in spans}) == len(spans)
    return {span.name: span for span in spans}


@pytest.mark.slow
def test_a_request_is_a_span_of_its_callers_trace_with_its_stages_inside(tmp_path: Path) -> None:
    with traced(tmp_path) as (client, exporter):
        answer = post(client, png(photo()), headers={**CALLER, "X-Request-ID": "mine-1"})
        assert answer.status_code == 200
        spans = by_name(exporter.get_finished_spans())
    request = spans.pop("POST /segment")
    assert request.kind is SpanKind.SERVER
    assert request.parent is not None
    assert request.parent.span_id == int(PARENT, 16)
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/segment",
        "http.response.status_code": 200,
        "url.path": "/segment",
        "deeplab.model": "tiny",
        "deeplab.request_id": "mine-1",
    }
    assert list(spans) == STAGES
    end = request.start_time or 0
    for span in spans.values():
        assert span.context is not None
        assert span.parent is not None
        assert request.context is not None
        assert span.context.trace_id == int(TRACE, 16)
        assert span.parent.span_id == request.context.span_id
        assert span.start_time is not None
        assert span.end_time is not None
        # One after the other; clocks are read at different moments, hence the tolerance.
        assert end - 5_000_000 <= span.start_time <= span.end_time
        end = span.end_time
    assert end <= (request.end_time or 0)


@pytest.mark.slow
def test_a_failure_is_marked_with_its_code(tmp_path: Path) -> None:
    with traced(tmp_path) as (client, exporter):
        post(client, b"junk")
        post(client, png(photo()), model="none")
        first, second = exporter.get_finished_spans()
    assert first.attributes is not None
    assert second.attributes is not None
    assert (first.attributes["error.type"], first.status.status_code) == (
        "invalid-image",
        StatusCode.UNSET,  # the client's fault, not this service's
    )
    assert second.attributes["error.type"] == "unknown-model"


def test_probes_leave_no_spans_and_a_broken_header_no_trace(tmp_path: Path) -> None:
    with traced(tmp_path) as (client, exporter):
        for path in ("/livez", "/readyz", "/metrics"):
            assert client.get(path).status_code == 200
        assert not exporter.get_finished_spans()
        assert client.get("/models", headers={"traceparent": "00-nonsense"}).status_code == 200
        (span,) = exporter.get_finished_spans()
        assert span.parent is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "True"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_opentelemetrys_own_variables_decide(environment: dict[str, str], wanted: bool) -> None:
    assert wants_traces(environment) is wanted


@pytest.mark.slow
def test_without_the_libraries_the_service_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx_models.save(tmp_path / "tiny.onnx")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.delitem(sys.modules, "service.http.telemetry.tracing")
    monkeypatch.delattr("service.http.telemetry.tracing")
    assert cli.main(["--models", str(tmp_path), "--port", "0"]) == 1
    assert "install the otel extra" in capsys.readouterr().err


class Stuck(SpanProcessor):
    """Sends to a collector that never answers."""

    def __init__(self) -> None:
        self.entered, self.release = threading.Event(), threading.Event()

    def shutdown(self) -> None:
        self.entered.set()
        assert self.release.wait(20)


@pytest.mark.slow
def test_a_collector_that_is_down_does_not_hold_up_a_stop() -> None:
    stuck = Stuck()
    Tracing(stuck).close(timeout_s=0.05)
    assert stuck.entered.is_set()
    assert not stuck.release.is_set()
    stuck.release.set()


class Collector(HTTPServer):
    """A collector of traces that speaks OTLP over HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), CollectorHandler)
        self.names: list[str] = []
        self.service = ""


class CollectorHandler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            attributes = {
                each.key: each.value.string_value for each in resource.resource.attributes
            }
            self.server.service = attributes["service.name"]
            for scope in resource.scope_spans:
                self.server.names += [span.name for span in scope.spans]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.slow
def test_a_collector_gets_the_spans_before_the_process_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx_models.save(tmp_path / "tiny.onnx")
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        endpoint = f"http://127.0.0.1:{collector.server_port}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        # The serving environment has no exporter: it is an extra of its own.
        with running(tmp_path, program=sys.executable) as (url, process):
            headers = {"Content-Type": "image/png"}
            answer = httpx.post(f"{url}/segment", content=png(photo()), headers=headers)
            assert answer.status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        collector.shutdown()
        thread.join(10)
    assert collector.names == [*STAGES, "POST /segment"]
    assert collector.service == "deeplab"


@pytest.mark.slow
@pytest.mark.parametrize("given", [CALLER, {}, {"traceparent": "00-" + "0" * 32 + "-1-01"}])
def test_every_log_line_of_a_traced_request_has_its_trace_id(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, given: dict[str, str]
) -> None:
    lines: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        lines.append(logs.JsonFormatter().format(record))
        return True

    caplog.handler.addFilter(keep)
    caplog.set_level("INFO")
    with traced(tmp_path) as (client, exporter):
        assert client.get("/models", headers=given).status_code == 200
        (span,) = exporter.get_finished_spans()
    (line,) = [json.loads(line) for line in lines if '"/models"' in line]
    assert line["trace_id"] == format(span.context.trace_id, "032x")
    if given == CALLER:
        assert line["trace_id"] == TRACE


@pytest.mark.slow
def test_a_callers_trace_is_logged_without_tracing_too(tmp_path: Path) -> None:
    onnx_models.save(tmp_path / "tiny.onnx")
    with running(tmp_path, "--log-format", "json") as (url, process):
        httpx.get(f"{url}/models", headers=CALLER)
        httpx.get(f"{url}/v2", headers={"traceparent": "junk"})
        process.terminate()
        process.wait(20)
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    traces = {line["path"]: line.get("trace_id") for line in lines if "path" in line}
    assert (traces["/models"], traces["/v2"]) == (TRACE, None)
