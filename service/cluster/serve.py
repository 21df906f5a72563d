"""The same HTTP application under Ray Serve: replicas that come and go with the load.

    python -m service.ray_serve --max-replicas 8 --cpus-per-replica 4
    serve run service.ray_serve:app max_replicas=8 cpus_per_replica=4

Every replica is the whole service with its own models, batcher and limits, in a
process of its own, on whatever node has room; Serve's proxies stand in front.
The settings are those of `python -m service` and a few of the cluster's.
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
from pydantic_settings import CliApp, SettingsConfigDict, SettingsError
from ray import serve
from ray.serve.config import AutoscalingConfig, HTTPOptions

from service import logs
from service.doctor import check_runtime
from service.errors import StartupError
from service.http.app import create_app
from service.inference import models
from service.settings import Settings, wrong_settings

NAME = "deeplab"

log = logging.getLogger("service")


class ClusterSettings(Settings):
    """Settings of `python -m service.ray_serve`: the service's, for every replica, and these."""

    model_config = SettingsConfigDict(cli_prog_name="python -m service.ray_serve")

    min_replicas: Annotated[int, Field(ge=1, description="replicas without any load")] = 1
    max_replicas: Annotated[int, Field(ge=1, description="replicas under full load")] = 4
    target_requests: Annotated[
        int, Field(ge=1, description="requests in progress that one replica is meant to have")
    ] = 8
    cpus_per_replica: Annotated[
        int, Field(ge=1, description="CPUs of a replica, and its engine threads")
    ] = 1
    gpus_per_replica: Annotated[float, Field(ge=0, description="GPUs of a replica")] = 0
    address: Annotated[
        str | None, Field(description="the Ray cluster; none: RAY_ADDRESS, else one here")
    ] = None


class Replica:
    """What Serve asks of a replica beside the application itself."""

    app: FastAPI  # given by serve.ingress

    def check_health(self) -> None:
        """Raises when the inference loop has died: Serve then replaces the replica."""
        if not self.app.state.models.healthy:
            raise RuntimeError("a model takes no requests any more")


def application(settings: ClusterSettings) -> serve.Application:
    """The deployment, ready to run."""

    def build() -> FastAPI:  # in the replica's process
        logs.configure(settings.log_level, settings.log_format)
        loaded = models.load(replica_settings(settings))
        application = create_app(settings, loaded)
        application.state.models = loaded
        return application

    deployment = serve.deployment(
        name=NAME,
        max_ongoing_requests=settings.max_requests,
        max_queued_requests=settings.max_requests,  # in each proxy; then 503
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
    """Ray bounds a replica's CPUs by agreement only, so its engine must be told."""
    threads = settings.threads or settings.cpus_per_replica
    return settings.model_copy(update={"threads": threads})


def app(arguments: dict[str, Any]) -> serve.Application:
    """For `serve run service.ray_serve:app key=value ...`, and in configuration files."""
    return application(ClusterSettings(**arguments))


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; 0 after a clean stop, 1 when it cannot start, 2 for usage."""
    try:
        settings = CliApp.run(ClusterSettings, cli_args=sys.argv[1:] if argv is None else argv)
    except (ValidationError, SettingsError) as error:
        print(f"error: {wrong_settings(error)}", file=sys.stderr)
        return 2
    logs.configure(settings.log_level, settings.log_format)
    try:
        check_runtime()
        models.model_files(settings.models)  # here: a cluster would try to start it for long
        run(settings)
    except (StartupError, RuntimeError, OSError) as error:  # the last: no cluster there
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(settings: ClusterSettings) -> None:
    """Deploy, wait for a signal, take the application down again; what is in progress ends first.

    Other applications of the cluster stay. Raises RuntimeError when it cannot be deployed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no word to anybody outside
    ray.init(address=settings.address, logging_level=logging.WARNING)
    stop = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):  # after Ray, which takes them for itself
        signal.signal(each, lambda *_: stop.set())
    try:
        serve.start(http_options=HTTPOptions(host=settings.host, port=settings.port))
        serve.run(application(settings), name=NAME, route_prefix="/")
        log.info("listening on http://%s:%d", settings.host, settings.port)
        stop.wait()
        serve.delete(NAME)
    finally:
        ray.shutdown()
