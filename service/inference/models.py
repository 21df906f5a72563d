"""The served models: load, reload, replace and stop them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from service.errors import ModelUnusable, StartupError, UnknownModel
from service.inference import cpus, heap, trt_engines
from service.inference.batcher import Batcher
from service.inference.engine import Engine, EngineOptions, Prediction, file_digest
from service.inference.quality import Quality, mismatch
from service.inference.shadow import Report, Shadow, Trial, Verdict, resident_bytes, unlike
from service.inference.trt_engines import TrtOptions
from service.settings import Settings

log = logging.getLogger("service.models")

MOST_LANES = 4  # concurrent runs on a CPU: each needs memory for its activations
REVIVE_EVERY_S = 10.0  # between attempts to reload a model whose sessions have died


class ServedModel:
    """A model: its identical engines and their batcher."""

    def __init__(self, engines: Sequence[Engine], settings: Settings) -> None:
        self.engine = engines[0]  # describes the model; all engines run
        self.name = self.engine.name
        self.revive: Callable[[], None] = lambda: None  # called when no session is left
        self.max_batch = settings.max_batch or self.engine.usual_batch
        self.batcher: Batcher[Prediction] = Batcher(
            *(run for engine in engines for run in engine.runs),
            max_batch=self.max_batch,
            max_wait_ms=settings.max_wait_ms,
            alone=self.engine.predict_alone if self.engine.lanes > 1 else None,
            on_death=self._died,
        )
        self.engines = engines
        self.shadow: Shadow | None = None  # a new file that is being tried out
        self.past_trial: Report | None = None  # of the last shadow that has ended
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    def _died(self) -> None:
        self.revive()

    @property
    def whole(self) -> bool:
        """Whether all sessions are alive."""
        return self.batcher.live_sessions == len(self.batcher.sessions)

    async def start(self) -> None:
        """Warm up the engines, then accept requests."""
        for engine in self.engines:
            await asyncio.to_thread(engine.warm_up, self.max_batch)
        self.batcher.start()
        sessions = len(self.batcher.sessions)
        several = f", {sessions} sessions" if sessions > 1 else ""
        precision = self.engine.execution_precision
        log.info("serving %s on %s in %s%s", self.name, self.engine.provider, precision, several)

    @contextmanager
    def used(self) -> Iterator[ServedModel]:
        """Keep the model running while a request uses it."""
        self._users += 1
        self._unused.clear()
        try:
            yield self
        finally:
            self._users -= 1
            if self._users == 0:
                self._unused.set()

    async def retire(self, timeout_s: float) -> None:
        """Stop when no request uses the model any more, at the latest after the timeout."""
        try:
            await asyncio.wait_for(self._unused.wait(), timeout_s)
        except TimeoutError:
            log.warning("%s (%.12s) is still in use, stopping it", self.name, self.engine.digest)
        await self.batcher.close(timeout_s)
        await asyncio.to_thread(self.release)

    def release(self) -> None:
        """Free the memory of the sessions now.

        Model, batcher and engines refer to each other, so Python would free hundreds of
        megabytes only at some later garbage collection.
        """
        for engine in self.engines:
            engine.release()
        heap.trim()


class Models:
    """All served models, by name."""

    def __init__(self, engines: Sequence[Sequence[Engine]], settings: Settings) -> None:
        """`engines`: the engines of each model."""
        self._settings = settings
        self._models = {each[0].name: self._served(each) for each in engines}
        self.default = settings.default_model or min(self._models)
        self.get(self.default)
        self.quality = self._quality(settings.quality) if settings.quality else None
        self.ready = False
        self.draining = False
        self.others_healthy: Callable[[], bool] = lambda: (
            True
        )  # the optional outputs that requests need
        self._loading = asyncio.Lock()  # one reload at a time
        self._background: set[asyncio.Task[None]] = set()

    def _served(self, engines: Sequence[Engine]) -> ServedModel:
        model = ServedModel(engines, self._settings)
        model.revive = partial(self._revive, model)
        return model

    def _quality(self, names: Sequence[str]) -> Quality:
        """The operating points; raises UnknownModel, or ModelUnusable if they do not fit."""
        for name in names:
            self._check_point(self.get(name), names)
        return Quality(names, lambda name: self.get(name).batcher)

    def _check_point(self, model: ServedModel, names: Sequence[str]) -> None:
        """Raise ModelUnusable if a model is one of the points and does not fit the others."""
        if model.name not in names:
            return
        contract = model.engine.contract
        for other in (self.get(name) for name in names if name != model.name):
            if problem := mismatch(model.name, contract, other.name, other.engine.contract):
                raise ModelUnusable(problem)

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(list(self._models.values()))

    def get(self, name: str | None) -> ServedModel:
        """Return a model by name, or the default model; raises UnknownModel."""
        name = name or self.default
        if name not in self._models:
            raise UnknownModel(
                f"there is no model {name!r}; the models are: {', '.join(self._models)}"
            )
        return self._models[name]

    @property
    def healthy(self) -> bool:
        """Whether every model takes requests and the service is not shutting down."""
        alive = all(model.batcher.alive for model in self)
        return self.ready and not self.draining and alive and self.others_healthy()

    @property
    def loading(self) -> bool:
        """Whether a file is being loaded."""
        return self._loading.locked()

    async def start(self) -> None:
        """Warm up all engines, then accept requests."""
        for model in self:
            await model.start()
        self.ready = True

    async def reload(self, name: str, digest: str | None = None) -> bool:
        """Load the model's file again; return whether the model was replaced.

        It is not replaced if the file is the same and all sessions are alive. The new
        model is warmed up first; requests in progress finish on the old one. Raises
        UnknownModel if there is no such file, and ModelUnusable if it cannot be used
        or has another digest than `digest`; the old model then stays.
        """
        async with self._loading:
            served = self._models.get(name)
            engines = await asyncio.to_thread(self._load, name, digest)
            fresh = self._served(engines)
            try:
                if not await self._takes_over(fresh, served, digest):
                    return False
                self._models[name] = fresh
            finally:
                if self._models.get(name) is not fresh:
                    await asyncio.to_thread(fresh.release)
            if served is not None:
                self._end_trial(served, "dropped", "the model was reloaded")
                fresh.past_trial = served.past_trial
                self._retire(served)
            return True

    async def try_out(self, name: str, digest: str | None, trial: Trial) -> None:
        """Run the model's new file as its shadow, which ends one that is already running.

        Raises UnknownModel, or ModelUnusable if the file cannot be used or compared, or if it is
        the one that is served.
        """
        async with self._loading:
            served, before = self.get(name), resident_bytes()
            fresh = self._served(await asyncio.to_thread(self._load, name, digest))
            try:
                problem = unlike(fresh.engine.contract, served.engine.contract)
                if problem:
                    raise ModelUnusable(f"{name} gets no shadow of this file: {problem}")
                if not await self._takes_over(fresh, served, digest):
                    raise ModelUnusable(f"{name} gets no shadow: its file is the served one")
                self._end_trial(served, "dropped", "another trial began")
                served.shadow = Shadow(
                    fresh,
                    served,
                    trial,
                    memory_bytes=max(0, resident_bytes() - before),
                    on_verdict=partial(self._judged, served),
                )
            finally:
                if served.shadow is None or served.shadow.candidate is not fresh:
                    await fresh.batcher.close(0)
                    await asyncio.to_thread(fresh.release)

    async def settle(self, name: str, verdict: Verdict, reason: str) -> None:
        """Promote or drop a model's shadow; raises UnknownModel, or ModelUnusable without one."""
        async with self._loading:
            served = self.get(name)
            if served.shadow is None:
                raise ModelUnusable(
                    f"{name} has no shadow: POST /models/{name}/reload?shadow=0.1 starts one"
                )
            self._settle(served, verdict, reason)

    def _settle(self, served: ServedModel, verdict: Verdict, reason: str) -> None:
        assert served.shadow is not None
        candidate = served.shadow.candidate
        self._end_trial(served, verdict, reason)
        if verdict == "promoted":
            candidate.past_trial = served.past_trial
            self._models[served.name] = candidate
            self._retire(served)

    async def _judged(
        self, served: ServedModel, shadow: Shadow, verdict: Verdict, reason: str
    ) -> None:
        async with self._loading:
            if served.shadow is shadow and self._models.get(served.name) is served:
                self._settle(served, verdict, reason)

    def _end_trial(self, served: ServedModel, verdict: Verdict, reason: str) -> None:
        """Stop comparing, keep the report, and free the candidate unless it is promoted."""
        shadow, served.shadow = served.shadow, None
        if shadow is None:
            return
        served.past_trial = shadow.report(verdict, reason)
        shadow.stop()
        log.info("the shadow of %s was %s: %s", served.name, verdict, reason)
        if verdict != "promoted":
            log.info(
                "the file of the dropped shadow is still in the folder: put the served one back "
                "before a restart"
            )
            self._retire(shadow.candidate)

    async def _takes_over(
        self, fresh: ServedModel, served: ServedModel | None, digest: str | None
    ) -> bool:
        """Start a loaded model and return True, unless the same model is already served."""
        found = fresh.engine.digest
        _check_digest(fresh.name, found, digest)
        if served is not None and found == served.engine.digest and served.whole:
            return False
        self._check_point(fresh, self._settings.quality)
        try:
            await fresh.start()
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            raise ModelUnusable(
                f"{fresh.name} was not replaced, the new file does not run: {error}"
            ) from error
        return True

    def _load(self, name: str, digest: str | None) -> list[Engine]:
        """Load a model's file, unless it has another digest than `digest`."""
        try:
            files = {path.stem: path for path in model_files(self._settings.models)}
            if name not in files:
                raise UnknownModel(
                    f"there is no file {name}.onnx; the models are: {', '.join(files)}"
                )
            if digest is not None:  # check before the file takes any memory or runs
                _check_digest(name, file_digest(files[name]), digest)
            return load_engines(files[name], self._settings)
        except StartupError as error:
            raise ModelUnusable(f"{name} was not replaced: {error}") from None

    def _retire(self, model: ServedModel) -> None:
        timeout_s = self._settings.request_timeout_ms / 1000 + 1
        self._in_background(model.retire(timeout_s))

    def _revive(self, model: ServedModel) -> None:
        self._in_background(self._load_again(model))

    async def _load_again(self, model: ServedModel) -> None:
        """Replace a model whose sessions have all died; until then /readyz answers 503.

        It only loads the file that was served: the folder may have one that was never tried out,
        or that was dropped.
        """
        await asyncio.to_thread(model.release)  # they may have run out of this memory
        while self._models.get(model.name) is model:
            log.warning("reloading %s: all its sessions have died", model.name)
            try:
                await self.reload(model.name, model.engine.digest)
            except (ModelUnusable, UnknownModel) as error:
                log.error(
                    "%s: put the file that was served back, or POST /models/%s/reload to serve "
                    "what is in the folder",
                    error,
                    model.name,
                )
                await asyncio.sleep(REVIVE_EVERY_S)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Load new and changed files of the folder in the background, as --watch-models-s says."""
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
                    log.exception("%s was not replaced", name)
            seen = now

    def drain(self) -> None:
        """Make /readyz answer 503 while requests are still served."""
        self.draining = True

    async def stop(self) -> None:
        """Stop accepting requests; finish those in progress, or fail them at the deadline."""
        self.ready = False
        timeout = self._settings.shutdown_timeout_s
        for model in self:
            self._end_trial(model, "dropped", "the service stops")
        await asyncio.gather(*(model.batcher.close(timeout) for model in self))
        for task in tuple(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)


def load(settings: Settings) -> Models:
    """Load every .onnx file in the models folder; raises StartupError."""
    files = model_files(settings.models)
    _check_names(files, settings)
    heap.keep_large_blocks_apart()
    engines = [load_engines(path, settings) for path in files]
    try:
        return Models(engines, settings)
    except ModelUnusable as error:
        raise StartupError(error.detail) from None


def _check_names(files: Sequence[Path], settings: Settings) -> None:
    """Raise StartupError if a setting names a model that is not in the folder."""
    names = [path.stem for path in files]
    chosen = [("--default-model", settings.default_model)] if settings.default_model else []
    for flag, name in (*chosen, *(("--quality", each) for each in settings.quality)):
        if name not in names:
            raise StartupError(
                f"{flag}: there is no model {name!r} in {settings.models}; the models are: "
                f"{', '.join(names)}"
            )


def load_engines(path: Path, settings: Settings) -> list[Engine]:
    """Load a file: --sessions engines on every GPU, or on the CPU; raises StartupError."""
    _check_name(path)
    gpus = () if settings.device in {"cpu", "openvino"} else settings.gpus
    sessions = settings.sessions or 1
    if gpus:
        first = Engine(path, _options(settings, gpus[0], len(gpus) * sessions))
        if first.on_cpu and len(gpus) * sessions > 1:
            gpus = ()  # `auto` fell back to the CPU, which all sessions share
    if not gpus:
        first = Engine(path, _options(settings, 0, sessions))
    numbers = [gpu for gpu in gpus or (0,) for _ in range(sessions)]
    others = [Engine(path, _options(settings, gpu, len(numbers))) for gpu in numbers[1:]]
    for engine in others:
        _check_alike(first, engine, path)
    return [first, *others]


def build_engines(settings: Settings) -> None:
    """Build the TensorRT engines of every model for every GPU; raises StartupError."""
    for path in model_files(settings.models):
        for gpu in settings.gpus:
            log.info("building the engines of %s for GPU %d; this takes minutes", path.name, gpu)
            engine = Engine(path, _options(settings, gpu, 1, build=True))
            engine.warm_up(settings.max_batch)
            where = Path(engine.provider_options["trt_engine_cache_path"])
            made = trt_engines.note_complete(path, where)
            log.info("%s: %s", where, ", ".join(made))


def _check_name(path: Path) -> None:
    """Refuse a name that no answer, metric or log line could hold."""
    try:
        path.stem.encode()
    except UnicodeEncodeError:
        raise StartupError(f"{str(path)!r}: the file's name is not UTF-8: rename it") from None


def _check_alike(first: Engine, other: Engine, path: Path) -> None:
    if other.digest != first.digest:
        raise StartupError(f"{path} changed while it was being loaded: try again")
    if other.provider != first.provider:
        raise StartupError(
            f"{path} runs on {first.provider} in one session and on {other.provider} in another: "
            "list only working GPUs in --gpus"
        )


def model_files(folder: Path) -> list[Path]:
    """Return the .onnx files in a folder, sorted; raises StartupError if there are none."""
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix == ".onnx")
    except OSError as error:
        raise StartupError(f"--models {folder}: {error.strerror}") from None
    if not files:
        raise StartupError(f"--models {folder}: no .onnx file; create one with `python -m export`")
    return files


def _check_digest(name: str, found: str, wanted: str | None) -> None:
    if wanted not in {None, found}:
        raise ModelUnusable(f"{name}: the file has digest {found}, not {wanted}")


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Return name -> (size, time) of every model file; empty if there are none."""
    try:
        files = model_files(folder)
    except StartupError:
        return {}
    return {path.stem: stamp for path in files if (stamp := _stamp(path)) is not None}


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of a file, or of a link that leads nowhere; None once it is gone."""
    for look in (path.stat, path.lstat):
        with suppress(OSError):
            found = look()
            return found.st_size, found.st_mtime_ns
    return None


def _options(settings: Settings, gpu: int, sessions: int, *, build: bool = False) -> EngineOptions:
    trt = None
    if settings.trt_cache is not None:
        trt = TrtOptions(settings.trt_cache, settings.max_batch, settings.trt_fp16, build)
    threads = max(1, (settings.threads or cpus.available()) // sessions)
    return EngineOptions(
        device=settings.device,
        gpu=gpu,
        threads=threads,
        lanes=1 if settings.sessions else min(threads, MOST_LANES),
        gpu_mem_limit_mb=settings.gpu_mem_limit_mb,
        trt=trt,
        precision=settings.precision,
        openvino_cache=settings.openvino_cache,
    )
