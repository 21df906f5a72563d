"""All settings of the service, read once at start from flags and DEEPLAB_* variables."""

from __future__ import annotations

import re
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Mapping
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliSettingsSource,
    NoDecode,
    SettingsConfigDict,
    SettingsError,
)

from service.allow_list import AllowList, network
from service.logs import LogFormat
from service.pydantic_errors import mistakes

Fit = Literal["resize", "sliding"]

BUNDLED = Path(__file__).parent / "models"
PILLOW_MAX_PIXELS = 178_956_970  # 2 * Image.MAX_IMAGE_PIXELS: Pillow refuses larger images


def wants_traces(environment: Mapping[str, str]) -> bool:
    """Return whether OpenTelemetry's own variables turn tracing on."""
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if not any(environment.get(name) for name in endpoints):
        return False
    disabled = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not disabled and environment.get("OTEL_TRACES_EXPORTER", "otlp") != "none"


class Settings(BaseSettings):
    """Serve the models in a folder over HTTP.

    Each flag can also be set by an environment variable: --max-batch by DEEPLAB_MAX_BATCH.
    Flags take precedence.

      python -m service                       serve the bundled models on port 8000
      python -m service --models exported/ --host 0.0.0.0
      python -m service doctor                check the installation
      python -m service build-engines         build the engines for --device tensorrt
    """

    model_config = SettingsConfigDict(
        env_prefix="DEEPLAB_",
        frozen=True,
        cli_kebab_case=True,
        cli_prog_name="python -m service",
        cli_hide_none_type=True,
        cli_implicit_flags=True,
    )

    models: Annotated[
        Path,
        Field(
            description="folder of the exported .onnx files to serve (default: the bundled models)"
        ),
    ] = BUNDLED
    default_model: Annotated[
        str | None,
        Field(description="model for requests that name none (default: the first by name)"),
    ] = None
    quality: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description="models of one network from the most exact to the cheapest, separated by "
            "commas: requests with quality=auto get the most exact one that their deadline and the "
            "load allow (default: none)"
        ),
    ] = ()
    host: Annotated[
        str,
        Field(
            description="address to listen on; 0.0.0.0 is every network (default: 127.0.0.1, this "
            "machine only)"
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int,
        Field(ge=0, le=65535, description="port to listen on; 0 picks a free one (default: 8000)"),
    ] = 8000
    metrics_port: Annotated[
        int | None,
        Field(
            ge=1,
            le=65535,
            description="serve /metrics and the probes on this port too, without a key and nothing"
            " else (default: only on --port)",
        ),
    ] = None
    grpc_port: Annotated[
        int | None,
        Field(
            ge=1,
            le=65535,
            description="serve the Open Inference Protocol over gRPC on this port too; needs the "
            "extra grpc (default: none)",
        ),
    ] = None
    trusted_proxies: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description="addresses or networks of proxies whose X-Forwarded-For header is "
            "believed, separated by commas, such as 10.0.0.0/8 (default: none)"
        ),
    ] = ()
    device: Annotated[
        Literal["auto", "cpu", "openvino", "cuda", "tensorrt"],
        Field(
            description="where models run: cpu is ONNX Runtime on the CPU; cuda and tensorrt do "
            "not start without a GPU; auto uses CUDA, else OpenVINO if it is installed, else the "
            "CPU (default: auto)"
        ),
    ] = "auto"
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        Field(
            description="number format in which OpenVINO computes; auto is bf16 on a CPU that has "
            "it, else fp32 (default: auto)"
        ),
    ] = "auto"
    openvino_cache: Annotated[
        Path | None,
        Field(
            description="folder in which OpenVINO keeps compiled models, so that the next start is"
            " faster (default: none)"
        ),
    ] = None
    gpus: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...],
        NoDecode,
        Field(
            min_length=1,
            description="numbers of the GPUs to use, separated by commas; each of them serves "
            "every model (default: 0)",
        ),
    ] = (0,)
    sessions: Annotated[
        int,
        Field(
            ge=0,
            description="engine sessions of each model, on each GPU or on the CPU (default: 0, "
            "which is one per GPU, and on the CPU one per thread up to 4; a single request still "
            "uses all threads)",
        ),
    ] = 0
    threads: Annotated[
        int,
        Field(
            ge=0,
            description="engine threads of each model, shared by its sessions (default: 0, which "
            "is one per CPU)",
        ),
    ] = 0
    gpu_mem_limit_mb: Annotated[
        int,
        Field(ge=0, description="most GPU memory of a session, in MiB (default: 0, no limit)"),
    ] = 0
    trt_cache: Annotated[
        Path | None,
        Field(
            description="folder of TensorRT engines, made by `python -m service build-engines`; "
            "--device tensorrt needs it (default: none)"
        ),
    ] = None
    trt_fp16: Annotated[
        bool, Field(description="compute in half precision in TensorRT engines (default: no)")
    ] = False

    max_batch: Annotated[
        int,
        Field(
            ge=0,
            description="most images in one run of the engine (default: 0, which is 4 on a GPU and"
            " 1 on a CPU)",
        ),
    ] = 0
    max_wait_ms: Annotated[
        float,
        Field(
            ge=0,
            description="milliseconds for which the first image of a batch waits for more images "
            "(default: 2)",
        ),
    ] = 2.0
    decoders: Annotated[
        int | None,
        Field(
            ge=0,
            description="processes that decode photos; half as many more decode photos of much "
            "work; 0: decode in threads, which cannot be ended at the deadline (default: one per "
            "CPU and one more; 0 except on Linux)",
        ),
    ] = None
    max_requests: Annotated[
        int,
        Field(
            ge=1, description="most requests in progress; more are answered with 503 (default: 64)"
        ),
    ] = 64
    max_pending_pixels: Annotated[
        int,
        Field(
            ge=1,
            description="most decoded pixels of all requests in progress; beyond that 503 "
            "(default: 200000000)",
        ),
    ] = 200_000_000
    max_pixels: Annotated[
        int,
        Field(
            ge=1,
            le=PILLOW_MAX_PIXELS,
            description="most pixels of one photo; larger ones are answered with 413 (default: "
            "50000000)",
        ),
    ] = 50_000_000
    max_body_bytes: Annotated[
        int,
        Field(
            ge=1,
            description="most bytes of a request's body; larger ones are answered with 413 "
            "(default: 33554432, which is 32 MiB)",
        ),
    ] = 32 * 1024 * 1024
    max_pending_bytes: Annotated[
        int,
        Field(
            ge=1,
            description="most bytes of request bodies and of answers not yet read by their "
            "clients, over all requests; beyond that 503 (default: 268435456, which is 256 MiB)",
        ),
    ] = 256 * 1024 * 1024
    max_files: Annotated[
        int,
        Field(
            ge=1, description="most photos in one form; more are answered with 400 (default: 16)"
        ),
    ] = 16
    fit: Annotated[
        Fit,
        Field(
            description="what happens to a photo larger than the model's input, unless the request"
            " says: resize shrinks it, sliding cuts it into windows (default: resize)"
        ),
    ] = "resize"
    max_windows: Annotated[
        int,
        Field(
            ge=1, description="most sliding windows of one photo; beyond that 413 (default: 128)"
        ),
    ] = 128  # 12 megapixels take 88 windows of 513 x 513 pixels
    request_timeout_ms: Annotated[
        int,
        Field(
            ge=1,
            description="milliseconds that a request may take unless it sets its own deadline; "
            "beyond that 504 (default: 30000)",
        ),
    ] = 30_000
    body_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            description="seconds that a request's body may take to arrive; beyond that 408 "
            "(default: 30)",
        ),
    ] = 30.0
    header_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            description="seconds that a request's headers may take to arrive; beyond that 408 "
            "(default: 10)",
        ),
    ] = 10.0
    send_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            description="close a connection whose client reads nothing for this many seconds "
            "(default: 60)",
        ),
    ] = 60.0
    min_bytes_per_s: Annotated[
        int,
        Field(
            ge=0,
            description="least bytes per second at which a client must send a body, after 5 "
            "seconds, and read an answer; 0: no limit (default: 1000)",
        ),
    ] = 1000
    max_connections: Annotated[
        int,
        Field(
            ge=0,
            description="most open connections; a further one closes the one that is idle for "
            "longest, or gets 503 if all have a request in progress; 0: no limit (default: 2000)",
        ),
    ] = 2000
    max_requests_per_client: Annotated[
        int,
        Field(
            ge=0,
            description="most requests in progress of one API key or, without keys, of one "
            "address, which may be that of a proxy; more get 429; 0: no limit (default: 0)",
        ),
    ] = 0
    refusals_per_s: Annotated[
        float,
        Field(
            ge=0,
            description="answer this many refused requests a second, and four times as many "
            "requests for pages; more wait up to 2 seconds; 0: no limit (default: 50)",
        ),
    ] = 50.0
    keep_alive_s: Annotated[
        int,
        Field(
            ge=1,
            description="close a connection without a request for this many seconds (default: 5)",
        ),
    ] = 5
    drain_delay_s: Annotated[
        float,
        Field(
            ge=0,
            description="seconds after SIGTERM in which requests are still accepted while /readyz "
            "answers 503 (default: 0)",
        ),
    ] = 0.0
    shutdown_timeout_s: Annotated[
        float,
        Field(
            ge=0,
            description="seconds that requests in progress may take to finish after SIGTERM "
            "(default: 20)",
        ),
    ] = 20.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Field(description="least severe messages to log (default: info)"),
    ] = "info"
    log_format: Annotated[
        LogFormat,
        Field(
            description="log plain text (console) or one JSON object per line (json) (default: "
            "console)"
        ),
    ] = "console"

    api_keys: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description="SHA-256 digests of the API keys, separated by commas (default: none, "
            "requests need no key)"
        ),
    ] = ()
    admin_keys: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description="SHA-256 digests of the keys that may reload models, separated by commas "
            "(default: none, only requests sent directly from this machine may)"
        ),
    ] = ()
    rate_limit_per_minute: Annotated[
        int,
        Field(
            ge=0,
            description="most POST requests per minute with one key; more are answered with 429 "
            "(default: 0, no limit)",
        ),
    ] = 0
    cors_origins: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description="origins whose pages may call the API, separated by commas, such as "
            "https://example.org; * is every origin (default: only the service's own page)"
        ),
    ] = ()
    jobs: Annotated[
        Path | None,
        Field(
            description="folder in which jobs of many photos and their results are kept; POST "
            "/jobs needs it (default: none, no jobs)"
        ),
    ] = None
    job_inputs: Annotated[
        Path | None,
        Field(description="folder whose files a job may name as paths (default: none)"),
    ] = None
    max_job_bytes: Annotated[
        int,
        Field(
            ge=1,
            description="most bytes of the body of a job; larger ones are answered with 413 "
            "(default: 1073741824, which is 1 GiB)",
        ),
    ] = 1024 * 1024 * 1024
    max_jobs_bytes: Annotated[
        int,
        Field(
            ge=1,
            description="most bytes of all jobs on the disk; beyond that 503 (default: "
            "10737418240, which is 10 GiB)",
        ),
    ] = 10 * 1024 * 1024 * 1024
    max_job_photos: Annotated[
        int,
        Field(
            ge=1, description="most photos of a job; more are answered with 400 (default: 10000)"
        ),
    ] = 10_000
    job_ttl_s: Annotated[
        int,
        Field(
            ge=1,
            description="seconds after its end for which a job and its result are kept (default: "
            "86400, a day)",
        ),
    ] = 86_400
    allow_url_hosts: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description="hosts from which the service may fetch photos that a request names by URL,"
            " separated by commas: example.org, *.example.org:8080, * for every public host, and "
            "networks such as 10.0.0.0/8 for hosts at private addresses (default: none, URLs are "
            "refused)"
        ),
    ] = ()
    watch_models_s: Annotated[
        float,
        Field(
            ge=0, description="look for new model files every so many seconds (default: 0, never)"
        ),
    ] = 0.0

    @field_validator(
        "api_keys",
        "allow_url_hosts",
        "admin_keys",
        "cors_origins",
        "gpus",
        "quality",
        "trusted_proxies",
        mode="before",
    )
    @classmethod
    def _split(cls, listed: object) -> object:
        if not isinstance(listed, str):
            return listed
        return [part.strip() for part in listed.split(",") if part.strip()]

    @field_validator("api_keys", "admin_keys", "quality", mode="before")
    @classmethod
    def _not_empty(cls, listed: object) -> object:
        # Runs before `_split`: pydantic calls the last `before` validator first.
        if isinstance(listed, str) and not listed.replace(",", " ").strip():
            # A secret may not have been mounted; the service must not be open to everyone then.
            raise ValueError("set, but empty: set digests, or remove the setting")
        return listed

    @field_validator("gpus")
    @classmethod
    def _no_gpu_twice(cls, gpus: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(gpus)) < len(gpus):
            raise ValueError("list each GPU once; --sessions sets the sessions per GPU")
        return gpus

    @field_validator("quality")
    @classmethod
    def _points(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(names) == 1 or len(set(names)) < len(names):
            raise ValueError("name two models or more, each once")
        return names

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not re.fullmatch(r"https?://[^/]+", origin):
                raise ValueError(
                    "an origin is scheme, host and port, such as https://example.org:8443"
                )
        return origins

    @model_validator(mode="after")
    def _check_precision(self) -> Self:
        if self.precision == "bf16" and self.device not in {"auto", "openvino"}:
            raise ValueError("--precision bf16 needs --device openvino (or auto)")
        return self

    @model_validator(mode="after")
    def _tensorrt_needs_a_cache(self) -> Self:
        if self.device == "tensorrt" and self.trt_cache is None:
            raise ValueError("--device tensorrt needs --trt-cache, the folder with its engines")
        return self

    @model_validator(mode="after")
    def _folders_of_jobs(self) -> Self:
        if self.job_inputs is None:
            return self
        if self.jobs is None:
            raise ValueError("--job-inputs is the folder of photos for jobs: set --jobs too")
        if not self.job_inputs.is_dir():
            raise ValueError(f"--job-inputs {self.job_inputs}: there is no such folder")
        own, theirs = self.jobs.resolve(), self.job_inputs.resolve()
        if own.is_relative_to(theirs) or theirs.is_relative_to(own):
            raise ValueError("--jobs and --job-inputs must be apart: neither may contain the other")
        return self

    @model_validator(mode="after")
    def _a_job_fits_on_the_disk(self) -> Self:
        if self.max_job_bytes > self.max_jobs_bytes:
            raise ValueError("--max-job-bytes of one job exceeds --max-jobs-bytes of all")
        return self

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.metrics_port == self.port:
            raise ValueError("--metrics-port must differ from --port")
        if self.grpc_port is not None and self.grpc_port in {self.port, self.metrics_port}:
            raise ValueError("--grpc-port must differ from --port and --metrics-port")
        return self

    @model_validator(mode="after")
    def _rate_limit_needs_keys(self) -> Self:
        if self.rate_limit_per_minute and not self.api_keys:
            raise ValueError("--rate-limit-per-minute applies to each key: set --api-keys too")
        return self

    @field_validator("allow_url_hosts")
    @classmethod
    def _allow_list(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        AllowList.of(hosts)  # raises a clear ValueError
        return hosts

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in proxies:
            network(proxy)  # raises a clear ValueError
        return proxies

    @field_validator("api_keys", "admin_keys")
    @classmethod
    def _digests(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        for key in keys:
            if not re.fullmatch(r"[0-9a-fA-F]{64}", key):
                raise ValueError("not a SHA-256 digest; compute it with: printf %s KEY | sha256sum")
        return tuple(key.lower() for key in keys)


S = TypeVar("S", bound=BaseSettings)

# How --help names a value: by its type, or by the unit that ends the setting's name.
METAVARS = {"Path": "DIR", "int": "N", "float": "N", "str": "NAME"}
UNITS = {"ms": "MS", "s": "SECONDS", "mb": "MB", "bytes": "BYTES", "pixels": "PIXELS"}


def from_command_line(kind: type[S], arguments: list[str]) -> S:
    """Read settings from flags and environment; raises ValidationError or SettingsError.

    --help shows each field's description, which says the default in words.
    """
    source: CliSettingsSource[ArgumentParser] = CliSettingsSource(kind)
    parser = source.root_parser
    parser.description = cleandoc(kind.__doc__ or "")
    parser.formatter_class = RawDescriptionHelpFormatter
    for action in parser._actions:
        if action.dest not in kind.model_fields:
            continue
        action.help = kind.model_fields[action.dest].description
        if action.metavar is not None and not str(action.metavar).startswith("{"):
            rate = action.dest.endswith("_per_s")
            unit = None if rate else UNITS.get(action.dest.rpartition("_")[2])
            action.metavar = unit or METAVARS.get(str(action.metavar), "LIST")
    return CliApp.run(kind, cli_args=arguments, cli_settings_source=source)


def wrong_settings(error: ValidationError | SettingsError) -> str:
    """Say which flags have which wrong values."""
    if isinstance(error, SettingsError):
        return str(error)
    return mistakes(error.errors(), name=lambda where: "--" + str(where[0]).replace("_", "-"))


SAMPLES = Path(__file__).parent / "samples"
