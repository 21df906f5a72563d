"""All settings of the service, read once at start from flags and DEEPLAB_* variables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

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
    """Serve the models in a folder over HTTP. Each flag can also be set by an environment
    variable: --max-batch by DEEPLAB_MAX_BATCH. Flags take precedence. Example:
    python -m service --models exported/ --host 0.0.0.0. `python -m service doctor` checks the
    installation; `python -m service build-engines` builds the engines for --device tensorrt.
    """

    model_config = SettingsConfigDict(
        env_prefix="DEEPLAB_",
        frozen=True,
        cli_kebab_case=True,
        cli_prog_name="python -m service",
        cli_hide_none_type=True,
        cli_implicit_flags=True,
    )

    models: Annotated[Path, Field(description="folder with exported .onnx files")] = BUNDLED
    default_model: Annotated[
        str | None,
        Field(description="model for requests that do not name one (default: the first by name)"),
    ] = None
    host: Annotated[str, Field(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="port to listen on; 0 picks one")] = 8000
    metrics_port: Annotated[
        int | None,
        Field(
            ge=1,
            le=65535,
            description="additional port for /metrics and the probes only, without a key; "
            "default: none, they are on --port",
        ),
    ] = None
    trusted_proxies: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description="comma-separated addresses or networks of proxies whose X-Forwarded-For "
            "is trusted, such as 10.0.0.0/8; empty: none"
        ),
    ] = ()
    device: Annotated[
        Literal["auto", "cpu", "openvino", "cuda", "tensorrt"],
        Field(
            description="cuda and tensorrt do not start without a GPU; cpu is ONNX Runtime; auto "
            "uses CUDA, else OpenVINO if it is installed, else the CPU"
        ),
    ] = "auto"
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        Field(description="what OpenVINO computes in; auto: bf16 where the CPU has it, else fp32"),
    ] = "auto"
    openvino_cache: Annotated[
        Path | None, Field(description="folder where OpenVINO keeps compiled models")
    ] = None
    gpus: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...],
        NoDecode,
        Field(
            min_length=1, description="comma-separated numbers of the GPUs that serve every model"
        ),
    ] = (0,)
    sessions: Annotated[
        int,
        Field(
            ge=0,
            description="engine sessions per model, on each GPU or on the CPU; 0: one per GPU; on "
            "the CPU one per thread, at most 4, and a single request still uses all threads",
        ),
    ] = 0
    threads: Annotated[
        int,
        Field(
            ge=0,
            description="engine threads per model, shared by its sessions; 0: one per CPU",
        ),
    ] = 0
    gpu_mem_limit_mb: Annotated[
        int, Field(ge=0, description="limit of the GPU memory arena; 0: no limit")
    ] = 0
    trt_cache: Annotated[
        Path | None,
        Field(description="folder of TensorRT engines, made by `python -m service build-engines`"),
    ] = None
    trt_fp16: Annotated[bool, Field(description="use half precision in TensorRT engines")] = False

    max_batch: Annotated[
        int, Field(ge=0, description="most images per engine run; 0: 4 on a GPU, 1 on a CPU")
    ] = 0
    max_wait_ms: Annotated[
        float, Field(ge=0, description="how long the first image of a batch waits for more")
    ] = 2.0
    max_requests: Annotated[
        int, Field(ge=1, description="most requests in progress; beyond it 503")
    ] = 64
    max_pending_pixels: Annotated[
        int,
        Field(
            ge=1, description="most decoded pixels in progress, over all requests; beyond it 503"
        ),
    ] = 200_000_000
    max_pixels: Annotated[
        int, Field(ge=1, le=PILLOW_MAX_PIXELS, description="most pixels per image; beyond it 413")
    ] = 50_000_000
    max_body_bytes: Annotated[
        int, Field(ge=1, description="most bytes per body; beyond it 413")
    ] = 32 * 1024 * 1024
    max_files: Annotated[int, Field(ge=1, description="most photos per form; beyond it 400")] = 16
    fit: Annotated[Fit, Field(description="default for photos larger than the model's input")] = (
        "resize"
    )
    max_windows: Annotated[
        int, Field(ge=1, description="most sliding windows per photo; beyond it 413")
    ] = 64
    request_timeout_ms: Annotated[
        int, Field(ge=1, description="deadline for requests that set none; beyond it 504")
    ] = 30_000
    body_timeout_s: Annotated[
        float, Field(gt=0, description="how long a request body may take to arrive; beyond it 408")
    ] = 30.0
    header_timeout_s: Annotated[
        float,
        Field(gt=0, description="how long the request headers may take to arrive; beyond it 408"),
    ] = 10.0
    send_timeout_s: Annotated[
        float,
        Field(gt=0, description="close a connection whose client reads nothing for this long"),
    ] = 60.0
    keep_alive_s: Annotated[
        int, Field(ge=1, description="close a connection that is idle this long between requests")
    ] = 5
    drain_delay_s: Annotated[
        float,
        Field(ge=0, description="on SIGTERM, keep serving this long while /readyz answers 503"),
    ] = 0.0
    shutdown_timeout_s: Annotated[
        float,
        Field(ge=0, description="on SIGTERM, how long requests in progress may take to finish"),
    ] = 20.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="lowest level to log")
    ] = "info"
    log_format: Annotated[
        LogFormat, Field(description="plain text, or one JSON object per line")
    ] = "console"

    api_keys: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description="comma-separated SHA-256 digests of the API keys; none: no key is required"
        ),
    ] = ()
    admin_keys: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description="comma-separated SHA-256 digests of the keys that may reload models; "
            "none: only requests sent from this host directly may"
        ),
    ] = ()
    rate_limit_per_minute: Annotated[
        int,
        Field(
            ge=0, description="most POST requests per minute and key; beyond it 429; 0: no limit"
        ),
    ] = 0
    cors_origins: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description="comma-separated origins whose pages may call the API, such as "
            "https://example.org; *: every origin; empty: only the service's own page"
        ),
    ] = ()
    watch_models_s: Annotated[
        float, Field(ge=0, description="check for new model files every so many seconds; 0: never")
    ] = 0.0

    @field_validator(
        "api_keys", "admin_keys", "cors_origins", "gpus", "trusted_proxies", mode="before"
    )
    @classmethod
    def _split(cls, listed: object) -> object:
        if not isinstance(listed, str):
            return listed
        return [part.strip() for part in listed.split(",") if part.strip()]

    @field_validator("api_keys", "admin_keys", mode="before")
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
    def _ports_differ(self) -> Self:
        if self.metrics_port == self.port:
            raise ValueError("--metrics-port must differ from --port")
        return self

    @model_validator(mode="after")
    def _rate_limit_needs_keys(self) -> Self:
        if self.rate_limit_per_minute and not self.api_keys:
            raise ValueError("--rate-limit-per-minute applies to each key: set --api-keys too")
        return self

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in proxies:
            ip_network(proxy)  # raises a clear ValueError
        return proxies

    @field_validator("api_keys", "admin_keys")
    @classmethod
    def _digests(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        for key in keys:
            if not re.fullmatch(r"[0-9a-fA-F]{64}", key):
                raise ValueError("not a SHA-256 digest; compute it with: printf %s KEY | sha256sum")
        return tuple(key.lower() for key in keys)


def wrong_settings(error: ValidationError | SettingsError) -> str:
    """Say which flags have which wrong values."""
    if isinstance(error, SettingsError):
        return str(error)
    return mistakes(error.errors(), name=lambda where: "--" + str(where[0]).replace("_", "-"))


SAMPLES = Path(__file__).parent / "samples"
