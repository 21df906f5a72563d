"""The models being served: each file with its engine and its batcher."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from service import cpus
from service.batcher import Batcher
from service.engine import Engine, EngineOptions, Prediction
from service.errors import ModelUnusable, StartupError, UnknownModel
from service.settings import Settings

log = logging.getLogger("service.models")


class ServedModel:
    """One engine and the batcher in front of it."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.name = engine.name
        self.engine = engine
        self._max_batch = settings.max_batch or engine.usual_batch
        self.batcher: Batcher[Prediction] = Batcher(
            engine.predict, max_batch=self._max_batch, max_wait_ms=settings.max_wait_ms
        )
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @property
    def headers(self) -> dict[str, str]:
        """What answers say about the model."""
        return {
            "X-Model": self.name,
            "X-Model-Digest": self.engine.digest,
            "X-Execution-Provider": self.engine.provider,
        }

    async def start(self) -> None:
        """Warm up, then take requests."""
        await asyncio.to_thread(self.engine.warm_up, self._max_batch)
        self.batcher.start()
        log.info("serving %s on %s", self.name, self.engine.provider)

    @contextmanager
    def used(self) -> Iterator[ServedModel]:
        """Keep the model running until the request that uses it is answered."""
        self._users += 1
        self._unused.clear()
        try:
            yield self
        finally:
            self._users -= 1
            if self._users == 0:
                self._unused.set()

    async def retire(self, timeout_s: float) -> None:
        """Stop once nobody uses the model any more, at the latest after the timeout."""
        try:
            await asyncio.wait_for(self._unused.wait(), timeout_s)
        except TimeoutError:
            log.warning("%s (%.12s) is still in use, stopping it", self.name, self.engine.digest)
        await self.batcher.close(timeout_s)


class Models:
    """All served models by name."""

    def __init__(self, engines: list[Engine], settings: Settings) -> None:
        self._settings = settings
        self._models = {engine.name: ServedModel(engine, settings) for engine in engines}
        self.default = settings.default_model or min(self._models)
        self.get(self.default)
        self.ready = False
        self.draining = False
        self._loading = asyncio.Lock()  # one reload at a time
        self._retiring: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(list(self._models.values()))

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
        """Whether every model takes requests, and will for a while."""
        return self.ready and not self.draining and all(model.batcher.alive for model in self)

    async def start(self) -> None:
        """Warm up every engine, then open for requests."""
        for model in self:
            await model.start()
        self.ready = True

    async def reload(self, name: str, digest: str | None = None) -> bool:
        """Load the model's file again; whether what is served has changed.

        The new engine is warmed up before it takes over; requests in progress
        finish on the old one. Raises UnknownModel when there is no such file, and
        ModelUnusable when it is not sound or not the one of `digest`; then the
        old one stays.
        """
        async with self._loading:
            served = self._models.get(name)
            engine = await asyncio.to_thread(self._load, name)
            if digest not in {None, engine.digest}:
                raise ModelUnusable(f"{name}: the file has digest {engine.digest}, not {digest}")
            if served is not None and engine.digest == served.engine.digest:
                return False
            fresh = ServedModel(engine, self._settings)
            try:
                await fresh.start()
            except Exception as error:  # ONNX Runtime raises its own classes, not all of one root
                raise ModelUnusable(f"{name} stays as it was: it does not run: {error}") from error
            self._models[name] = fresh
            if served is not None:
                self._retire(served)
            return True

    def _load(self, name: str) -> Engine:
        try:
            files = {path.stem: path for path in model_files(self._settings.models)}
            if name not in files:
                raise UnknownModel(f"no file {name}.onnx; there are: {', '.join(files)}")
            return Engine(files[name], _options(self._settings))
        except StartupError as error:
            raise ModelUnusable(f"{name} stays as it was: {error}") from None

    def _retire(self, model: ServedModel) -> None:
        timeout_s = self._settings.request_timeout_ms / 1000 + 1
        task = asyncio.create_task(model.retire(timeout_s))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Take up new and changed files of the folder in the meantime, where set to."""
        if not self._settings.watch_models_s:
            yield
            return
        watcher = asyncio.create_task(self._watch(self._settings.watch_models_s))
        try:
            yield
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)

    async def _watch(self, every_s: float) -> None:
        seen = await asyncio.to_thread(_stamps, self._settings.models)
        while True:
            await asyncio.sleep(every_s)
            now = await asyncio.to_thread(_stamps, self._settings.models)
            for name in (name for name, stamp in now.items() if seen.get(name) != stamp):
                try:
                    await self.reload(name)
                except (ModelUnusable, UnknownModel) as error:
                    log.warning("%s", error)
                except Exception:
                    log.exception("%s stays as it was", name)
            seen = now

    def drain(self) -> None:
        """Readiness goes red, while requests are still served."""
        self.draining = True

    async def stop(self) -> None:
        """Readiness goes red; what is accepted is finished or failed by the deadline."""
        self.ready = False
        timeout = self._settings.shutdown_timeout_s
        await asyncio.gather(*(model.batcher.close(timeout) for model in self))
        for task in tuple(self._retiring):
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)


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


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Name -> size and time of every model file; empty while there are none."""
    try:
        stats = {path.stem: path.stat() for path in model_files(folder)}
    except (StartupError, OSError):
        return {}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def _options(settings: Settings) -> EngineOptions:
    return EngineOptions(
        device=settings.device,
        threads=settings.threads or cpus.available(),
        gpu_mem_limit_mb=settings.gpu_mem_limit_mb,
    )
