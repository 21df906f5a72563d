"""Run the service in the process of the batch client: `deeplab-client --local`.

Requests pass through the same application as those of a server, without a socket, so that
answers are the same byte for byte. The client loads this module by its name.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from pydantic import ValidationError
from pydantic_settings import SettingsError

from service import doctor
from service.client.errors import ClientError, UsageError
from service.errors import StartupError
from service.http.app import create_app
from service.inference.models import Models, load_engines, model_files
from service.pydantic_errors import mistakes
from service.settings import Settings

# Settings that protect a port, or other users of a service, have no meaning here.
WITHOUT_A_PORT: dict[str, Any] = {
    "api_keys": (),
    "admin_keys": (),
    "rate_limit_per_minute": 0,
    "cors_origins": (),
    "trusted_proxies": (),
    "metrics_port": None,
    "watch_models_s": 0.0,
    "drain_delay_s": 0.0,
}


@asynccontextmanager
async def transport(
    folder: Path | None, model: str | None, timeout_s: float
) -> AsyncIterator[httpx.AsyncBaseTransport]:
    """Load one model and return a transport to it for httpx; raises UsageError or ClientError.

    `folder` and `model` replace the DEEPLAB_* variables, which set everything else as for
    the service. `timeout_s` is the deadline of a request.
    """
    settings = _settings(folder, timeout_s)
    loaded = await asyncio.to_thread(_load, settings, model)
    app = create_app(settings, loaded)
    async with app.router.lifespan_context(app):
        yield httpx.ASGITransport(app, raise_app_exceptions=False)


def _settings(folder: Path | None, timeout_s: float) -> Settings:
    given: dict[str, Any] = {} if folder is None else {"models": folder}
    deadline_ms = max(1, round(timeout_s * 1000))
    try:
        return Settings(**WITHOUT_A_PORT, request_timeout_ms=deadline_ms, **given)
    except ValidationError as error:
        found = mistakes(error.errors(), name=lambda where: f"DEEPLAB_{str(where[0]).upper()}")
        raise UsageError(found) from None
    except SettingsError as error:
        raise UsageError(error) from None


def _load(settings: Settings, model: str | None) -> Models:
    """Load only the model that is used: a folder may hold many."""
    try:
        doctor.check_runtime()
        files = {path.stem: path for path in model_files(settings.models)}
        name = model or settings.default_model or min(files)
        if name not in files:
            raise UsageError(f"--model {name}: --models {settings.models} has {', '.join(files)}")
        chosen = settings.model_copy(update={"default_model": name})
        return Models([load_engines(files[name], chosen)], chosen)
    except StartupError as error:
        raise ClientError(error) from None
