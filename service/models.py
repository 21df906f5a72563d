"""The models being served: each file with its engine and its batcher."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from service import cpus
from service.batcher import Batcher
from service.engine import Engine, EngineOptions
from service.errors import StartupError, UnknownModel
from service.settings import Settings

log = logging.getLogger("service.models")


@dataclass(frozen=True)
class ServedModel:
    """One model, warmed up and ready for requests."""

    name: str
    engine: Engine
    batcher: Batcher


class Models:
    """All served models by name."""

    def __init__(self, engines: list[Engine], settings: Settings) -> None:
        self._settings = settings
        self._models = {
            engine.name: ServedModel(
                engine.name,
                engine,
                Batcher(engine.run, max_batch=settings.max_batch, max_wait_ms=settings.max_wait_ms),
            )
            for engine in engines
        }
        self.default = settings.default_model or min(self._models)
        self.get(self.default)
        self.ready = False

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def get(self, name: str | None) -> ServedModel:
        """The model of that name, or the default; raises UnknownModel naming the others."""
        name = name or self.default
        if name not in self._models:
            raise UnknownModel(
                f"model {name!r} is not served; there are: {', '.join(self._models)}"
            )
        return self._models[name]

    @property
    def healthy(self) -> bool:
        """Whether every model takes requests."""
        return self.ready and all(model.batcher.alive for model in self)

    async def start(self) -> None:
        """Warm up every engine, then open for requests."""
        for model in self:
            await asyncio.to_thread(model.engine.warm_up, self._settings.max_batch)
            model.batcher.start()
            log.info("serving %s on %s", model.name, model.engine.provider)
        self.ready = True

    async def stop(self) -> None:
        """Readiness goes red; what is accepted is finished or failed by the deadline."""
        self.ready = False
        timeout = self._settings.shutdown_timeout_s
        await asyncio.gather(*(model.batcher.close(timeout) for model in self))


def load(settings: Settings) -> Models:
    """Load every .onnx file of the models folder; raises StartupError."""
    engines = [Engine(path, _options(settings)) for path in model_files(settings.models)]
    try:
        return Models(engines, settings)
    except UnknownModel as error:
        raise StartupError(f"--default-model: {error.detail}") from None


def model_files(folder: Path) -> list[Path]:
    """The .onnx files in a folder, sorted; raises StartupError when there is none."""
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix == ".onnx")
    except OSError as error:
        raise StartupError(f"--models {folder}: {error.strerror}") from None
    if not files:
        raise StartupError(f"--models {folder}: no .onnx file; make one with `python -m export`")
    return files


def _options(settings: Settings) -> EngineOptions:
    return EngineOptions(
        device=settings.device,
        threads=settings.threads or cpus.available(),
        gpu_mem_limit_mb=settings.gpu_mem_limit_mb,
    )
