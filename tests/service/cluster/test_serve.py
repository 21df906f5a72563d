"""The deployment's settings, without a cluster."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the extra `ray`: pip install -e '.[ray]'")

from service.settings import Settings
from tests.test_architecture import loaded_by

pytestmark = pytest.mark.slow

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray Serve's own models use what pydantic will drop
    from ray.serve.schema import LoggingConfig  # noqa: F401 - loads what `application` needs

    from service.cluster import serve as ray_serve
    from service.cluster.serve import ClusterSettings, application, replica_settings


def test_the_services_settings_hold_by_flag_and_by_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEEPLAB_MAX_BATCH", "7")
    monkeypatch.setenv("DEEPLAB_MAX_REPLICAS", "9")
    settings = ClusterSettings()
    assert isinstance(settings, Settings)
    assert (settings.max_batch, settings.max_replicas) == (7, 9)


def test_a_replicas_engine_has_the_threads_that_ray_counts_for_it() -> None:
    assert replica_settings(ClusterSettings(cpus_per_replica=3)).threads == 3
    assert replica_settings(ClusterSettings(cpus_per_replica=3, threads=2)).threads == 2


def test_the_deployment_scales_and_stops_by_its_settings() -> None:
    settings = ClusterSettings(
        min_replicas=2,
        max_replicas=5,
        target_requests=6,
        max_requests=11,
        shutdown_timeout_s=13,
        cpus_per_replica=4,
        gpus_per_replica=0.5,
    )
    deployment = application(settings)._bound_deployment
    scaling = deployment._deployment_config.autoscaling_config
    assert scaling is not None
    assert (scaling.min_replicas, scaling.max_replicas) == (2, 5)
    assert scaling.target_ongoing_requests == 6
    assert deployment.max_ongoing_requests == 11
    assert deployment._deployment_config.graceful_shutdown_timeout_s == 13
    assert deployment.ray_actor_options == {"num_cpus": 4, "num_gpus": 0.5}


def test_serve_run_takes_settings_as_key_and_value() -> None:
    deployment = ray_serve.app({"max_replicas": "3", "cpus_per_replica": "2"})._bound_deployment
    scaling = deployment._deployment_config.autoscaling_config
    assert scaling is not None
    assert scaling.max_replicas == 3
    assert deployment.ray_actor_options == {"num_cpus": 2, "num_gpus": 0}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--max-replicas", "0"], 2, "--max-replicas='0'"),
        (["--models", "/nonexistent"], 1, "--models /nonexistent: No such file"),
    ],
)
def test_what_cannot_start_says_why_before_it_joins_a_cluster(
    arguments: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ray_serve.main(arguments) == code
    assert says in capsys.readouterr().err


def test_a_dead_inference_loop_makes_a_replica_unhealthy(tmp_path: Path) -> None:
    """Call the health check as Serve does, with the application in its place."""

    class Models:
        healthy = True

    class State:
        models = Models()

    class App:
        state = State()

    replica = ray_serve.Replica()
    replica.app = App()  # type: ignore[assignment] # all that is looked at
    replica.check_health()
    State.models.healthy = False
    with pytest.raises(RuntimeError, match="no longer takes requests"):
        replica.check_health()


def test_the_service_itself_loads_nothing_of_the_cluster() -> None:
    heavy = {"ray", "pyarrow", "fsspec", "simpy"}
    assert loaded_by("import service.http.app, service.__main__, service.cluster.scale").isdisjoint(
        heavy
    )
