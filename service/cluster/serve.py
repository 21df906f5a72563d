"""Run the HTTP application under Ray Serve, which adds and removes replicas with the load.

    python -m service.ray_serve --max-replicas 8 --cpus-per-replica 4
    serve run service.ray_serve:app max_replicas=8 cpus_per_replica=4

Each replica is a complete service in its own process, with its own models, batcher and
limits, on any node with free resources. Serve's proxies distribute the requests. The
settings are those of `python -m service` plus a few for the cluster.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from typing import Annotated, Any

import ray
from fastapi import FastAPI
from pydantic import Field, ValidationError
from pydantic_settings import SettingsConfigDict, SettingsError
from ray import serve
from ray.serve.config import AutoscalingConfig, HTTPOptions
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs
from service.doctor import check_runtime
from service.errors import StartupError
from service.http.app import create_app
from service.inference import models
from service.settings import Settings, from_command_line, wrong_settings

NAME = "deeplab"

log = logging.getLogger("service")


class ClusterSettings(Settings):
    """Serve the models in a folder over HTTP, with replicas on a Ray cluster.

    The settings of `python -m service` hold for each replica; those at the end are the
    cluster's. Each flag can also be set by an environment variable: --max-replicas by
    DEEPLAB_MAX_REPLICAS. Flags take precedence.

      python -m service.ray_serve --max-replicas 8 --cpus-per-replica 4
    """

    model_config = SettingsConfigDict(cli_prog_name="python -m service.ray_serve")

    min_replicas: Annotated[
        int, Field(ge=1, description="replicas when there is no load (default: 1)")
    ] = 1
    max_replicas: Annotated[
        int, Field(ge=1, description="most replicas at full load (default: 4)")
    ] = 4
    target_requests: Annotated[
        int,
        Field(
            ge=1,
            description="requests in progress per replica that Ray aims at: with more it adds "
            "replicas, with fewer it removes them (default: 8)",
        ),
    ] = 8
    cpus_per_replica: Annotated[
        int, Field(ge=1, description="CPUs of each replica, and its engine threads (default: 1)")
    ] = 1
    gpus_per_replica: Annotated[
        float, Field(ge=0, description="GPUs of each replica; 0.5 shares one (default: 0)")
    ] = 0
    address: Annotated[
        str | None,
        Field(
            description="address of the Ray cluster (default: RAY_ADDRESS, else a cluster on "
            "this machine)"
        ),
    ] = None


class Replica:
    """The methods that Serve calls on a replica, besides the application."""

    app: FastAPI  # set by serve.ingress

    def check_health(self) -> None:
        """Raise when an inference loop has died, so that Serve replaces the replica."""
        if not self.app.state.models.healthy:
            raise RuntimeError("a model no longer takes requests")


class WithoutRequestId:
    """ASGI middleware: leave X-Request-ID to Ray's proxy, which adds the same id once more."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def without(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["X-Request-ID"]
            await send(message)

        await self.app(scope, receive, without)


def application(settings: ClusterSettings) -> serve.Application:
    """Build the deployment."""

    def build() -> FastAPI:  # in the replica's process
        logs.configure(settings.log_level, settings.log_format)
        loaded = models.load(replica_settings(settings))
        application = create_app(settings, loaded)
        application.add_middleware(WithoutRequestId)
        application.state.models = loaded
        return application

    deployment = serve.deployment(
        name=NAME,
        max_ongoing_requests=settings.max_requests,
        max_queued_requests=settings.max_requests,  # per proxy; beyond it 503
        graceful_shutdown_timeout_s=settings.shutdown_timeout_s,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=5,
        ray_actor_options={
            "num_cpus": settings.cpus_per_replica,
            "num_gpus": settings.gpus_per_replica,
        },
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_replicas,
            max_replicas=settings.max_replicas,
            target_ongoing_requests=settings.target_requests,
        ),
    )
    return deployment(serve.ingress(build)(Replica)).bind()


def replica_settings(settings: ClusterSettings) -> ClusterSettings:
    """Set the engine threads to the replica's CPUs: Ray reserves CPUs but does not limit them."""
    threads = settings.threads or settings.cpus_per_replica
    return settings.model_copy(update={"threads": threads})


def app(arguments: dict[str, Any]) -> serve.Application:
    """Build the application for `serve run service.ray_serve:app key=value ...`."""
    return application(ClusterSettings(**arguments))


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Return 0 after a clean stop, 1 on failure, 2 for usage."""
    try:
        settings = from_command_line(ClusterSettings, sys.argv[1:] if argv is None else argv)
    except (ValidationError, SettingsError) as error:
        print(f"error: {wrong_settings(error)}", file=sys.stderr)
        return 2
    logs.configure(settings.log_level, settings.log_format)
    try:
        if settings.metrics_port is not None:
            raise StartupError("--metrics-port: Ray's own proxies listen here; use --port")
        if settings.jobs is not None:
            raise StartupError("--jobs: replicas cannot share a folder of jobs; leave it out")
        check_runtime()
        models.model_files(settings.models)  # fail here at once: a cluster would retry for minutes
        run(settings)
    except (StartupError, RuntimeError, OSError) as error:  # OSError: no cluster at this address
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(settings: ClusterSettings) -> None:
    """Deploy the application, wait for a signal, and remove it after the requests in progress.

    Other applications of the cluster are not affected. Raises RuntimeError if the
    application cannot be deployed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # send no usage statistics
    ray.init(address=settings.address, logging_level=logging.WARNING)
    stop = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):  # after Ray, which sets handlers of its own
        signal.signal(each, lambda *_: stop.set())
    try:
        serve.start(http_options=HTTPOptions(host=settings.host, port=settings.port))
        serve.run(application(settings), name=NAME, route_prefix="/")
        log.info("listening on http://%s:%d", settings.host, settings.port)
        stop.wait()
        serve.delete(NAME)
    finally:
        ray.shutdown()
