"""Every setting of the service, from flags and DEEPLAB_* variables, built once at start."""

from __future__ import annotations

import re
from collections.abc import Mapping
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
    """Whether OpenTelemetry's own variables ask for traces to be sent."""
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if not any(environment.get(name) for name in endpoints):
        return False
    disabled = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not disabled and environment.get("OTEL_TRACES_EXPORTER", "otlp") != "none"


class Settings(BaseSettings):
    """Serve the models of a folder over HTTP. Each flag is also a variable, --max-batch is
    DEEPLAB_MAX_BATCH; a flag wins. Example: python -m service --models exported/ --host 0.0.0.0.
    `python -m service doctor` says what is wrong with an installation,
    `python -m service build-engines` makes the engines for --device tensorrt.
    """

    model_config = SettingsConfigDict(
        env_prefix="DEEPLAB_",
        frozen=True,
        cli_kebab_case=True,
        cli_prog_name="python -m service",
        cli_hide_none_type=True,
        cli_implicit_flags=True,
    )

    models: Annotated[Path, Field(description="folder of exported .onnx files")] = BUNDLED
    default_model: Annotated[
        str | None, Field(description="model of requests that name none (default: first by name)")
    ] = None
    host: Annotated[str, Field(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="port to listen on; 0 picks one")] = 8000
    device: Annotated[
        Literal["auto", "cpu", "cuda", "tensorrt"],
        Field(
            description="cuda and tensorrt refuse to start without a GPU; auto takes CUDA or "
            "falls back to the CPU"
        ),
    ] = "auto"
    gpus: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...],
        NoDecode,
        Field(min_length=1, description="comma list of the GPUs that serve every model, by number"),
    ] = (0,)
    sessions: Annotated[
        int,
        Field(
            ge=0,
            description="engine sessions of each model, on each GPU or on the CPU; 0: one on a "
            "GPU, on the CPU one for each of up to 4 threads, which all work on a lone request",
        ),
    ] = 0
    threads: Annotated[
        int,
        Field(
            ge=0,
            description="engine threads of a model, shared by its sessions; 0: one for each CPU",
        ),
    ] = 0
    gpu_mem_limit_mb: Annotated[
        int, Field(ge=0, description="memory arena limit on the GPU; 0: none")
    ] = 0
    trt_cache: Annotated[
        Path | None,
        Field(description="folder of TensorRT engines, made by `python -m service build-engines`"),
    ] = None
    trt_fp16: Annotated[bool, Field(description="TensorRT engines of half precision")] = False

    max_batch: Annotated[
        int, Field(ge=0, description="images in one run of the engine; 0: 4 on a GPU, 1 on a CPU")
    ] = 0
    max_wait_ms: Annotated[
        float, Field(ge=0, description="how long the first image of a batch waits for others")
    ] = 2.0
    max_requests: Annotated[int, Field(ge=1, description="requests in progress; else 503")] = 64
    max_pending_pixels: Annotated[
        int, Field(ge=1, description="decoded pixels in progress, over all requests; else 503")
    ] = 200_000_000
    max_pixels: Annotated[
        int, Field(ge=1, le=PILLOW_MAX_PIXELS, description="pixels of one image; else 413")
    ] = 50_000_000
    max_body_bytes: Annotated[int, Field(ge=1, description="bytes of one body; else 413")] = (
        32 * 1024 * 1024
    )
    max_files: Annotated[int, Field(ge=1, description="photos in one form; else 400")] = 16
    fit: Annotated[
        Fit, Field(description="what to do with photos larger than the model, unless asked")
    ] = "resize"
    max_windows: Annotated[
        int, Field(ge=1, description="sliding windows of one photo; else 413")
    ] = 64
    request_timeout_ms: Annotated[
        int, Field(ge=1, description="deadline of a request without its own; else 504")
    ] = 30_000
    body_timeout_s: Annotated[
        float, Field(gt=0, description="how long a request's body may take to come in; else 408")
    ] = 30.0
    header_timeout_s: Annotated[
        float, Field(gt=0, description="how long a request's headers may take; else 408")
    ] = 10.0
    send_timeout_s: Annotated[
        float, Field(gt=0, description="how long a client may take nothing of its answer")
    ] = 60.0
    keep_alive_s: Annotated[
        int, Field(ge=1, description="how long a connection may be idle between requests")
    ] = 5
    drain_delay_s: Annotated[
        float,
        Field(ge=0, description="on SIGTERM, how long to serve on while /readyz is red already"),
    ] = 0.0
    shutdown_timeout_s: Annotated[
        float, Field(ge=0, description="how long requests in progress may finish on SIGTERM")
    ] = 20.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="least severe log lines")
    ] = "info"
    log_format: Annotated[
        LogFormat, Field(description="lines for people, or one JSON object a line")
    ] = "console"

    api_keys: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(description="comma list of SHA-256 digests of the keys that are let in; none: all"),
    ] = ()
    rate_limit_per_minute: Annotated[
        int, Field(ge=0, description="requests a minute of one key; else 429; 0: no limit")
    ] = 0
    cors_origins: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description="comma list of the origins whose pages may ask, as https://example.org; "
            "*: all; none: this service's own page only"
        ),
    ] = ()
    watch_models_s: Annotated[
        float, Field(ge=0, description="how often to look for new model files; 0: never")
    ] = 0.0

    @field_validator("api_keys", "cors_origins", "gpus", mode="before")
    @classmethod
    def _split(cls, listed: object) -> object:
        if not isinstance(listed, str):
            return listed
        return [part.strip() for part in listed.split(",") if part.strip()]

    @field_validator("gpus")
    @classmethod
    def _no_gpu_twice(cls, gpus: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(gpus)) < len(gpus):
            raise ValueError("name a GPU once, and set --sessions for several sessions on each")
        return gpus

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not re.fullmatch(r"https?://[^/]+", origin):
                raise ValueError("an origin is scheme, host and port, as https://example.org:8443")
        return origins

    @model_validator(mode="after")
    def _engines_have_a_place(self) -> Self:
        if self.device == "tensorrt" and self.trt_cache is None:
            raise ValueError("--device tensorrt needs --trt-cache, the folder of its engines")
        return self

    @model_validator(mode="after")
    def _a_quota_has_a_holder(self) -> Self:
        if self.rate_limit_per_minute and not self.api_keys:
            raise ValueError("--rate-limit-per-minute counts by key: give --api-keys with it")
        return self

    @field_validator("api_keys")
    @classmethod
    def _digests(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        for key in keys:
            if not re.fullmatch(r"[0-9a-fA-F]{64}", key):
                raise ValueError("not a SHA-256 digest; make one with: printf %s KEY | sha256sum")
        return tuple(key.lower() for key in keys)


def wrong_settings(error: ValidationError | SettingsError) -> str:
    """Say which flags have which wrong values."""
    if isinstance(error, SettingsError):
        return str(error)
    return mistakes(error.errors(), name=lambda where: "--" + str(where[0]).replace("_", "-"))


SAMPLES = Path(__file__).parent / "samples"
