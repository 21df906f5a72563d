"""List the served models with their contracts, and reload a model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from service.errors import (
    Forbidden,
    InvalidRequest,
    ModelUnusable,
    Overloaded,
    Unauthorized,
    UnknownModel,
)
from service.http import header_text
from service.http.answers import ModelDescription, ModelList, Reloaded
from service.http.middleware.keys import check_admin
from service.http.middleware.limits import Admission
from service.http.problems import documented
from service.inference.models import Models, ServedModel
from service.inference.shadow import Trial, Verdict
from service.settings import Settings


def headers(served: ServedModel) -> dict[str, str]:
    """Return the response headers that describe the model."""
    return {
        "X-Model": header_text.encoded(served.name),
        "X-Model-Digest": served.engine.digest,
        "X-Execution-Provider": served.engine.provider,
        "X-Execution-Precision": served.engine.execution_precision,
    }


class ReloadQuery(BaseModel):
    """The query parameters of a reload."""

    model_config = ConfigDict(extra="forbid")  # a misspelt `digest` would be ignored

    digest: Annotated[str | None, Field(description="SHA-256 that the new file must have")] = None
    shadow: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            description="first try the file out beside the model, on this share of the images",
        ),
    ] = None
    promote_after: Annotated[
        int,
        Field(
            ge=0,
            le=1_000_000,
            description="images after which it takes over or is dropped; 0: on request only",
        ),
    ] = 0
    least_agreement: Annotated[
        float, Field(ge=0, le=1, description="share of pixels that must get the same label")
    ] = 0.95
    most_slowdown: Annotated[
        float, Field(gt=0, description="most time per image, as a multiple of the model's")
    ] = 1.5

    def trial(self) -> Trial | None:
        """Return the conditions of the trial; raises InvalidRequest for some without a shadow."""
        if self.shadow is None:
            # Generated clients send defaults too.
            odd = sorted(self.model_dump(exclude={"digest", "shadow"}, exclude_defaults=True))
            if odd:
                raise InvalidRequest(f"{', '.join(odd)}: only with shadow, such as shadow=0.1")
            return None
        return Trial(self.shadow, self.promote_after, self.least_agreement, self.most_slowdown)


def add_routes(app: FastAPI, settings: Settings, models: Models, admission: Admission) -> None:
    """Serve /models and the paths below it."""
    _add_descriptions(app, models)
    _add_changes(app, settings, models, admission)


def _add_descriptions(app: FastAPI, models: Models) -> None:
    """Serve /models and /models/NAME."""

    @app.get("/models")
    async def list_models() -> ModelList:
        """List all models, with the execution provider that each runs on."""
        return ModelList(models=[_description(served, models) for served in models])

    @app.get("/models/{name}", responses=documented(UnknownModel))
    async def get_model(name: str) -> ModelDescription:
        """Describe one model."""
        return _description(models.get(name), models)


def _add_changes(app: FastAPI, settings: Settings, models: Models, admission: Admission) -> None:
    """Serve /models/NAME/reload and /models/NAME/shadow/VERDICT."""

    def refuse_while_loading() -> None:
        if models.loading:
            raise Overloaded("another reload is in progress: try again in a moment")

    refusals = documented(
        *(InvalidRequest, Unauthorized, Forbidden, UnknownModel, ModelUnusable, Overloaded)
    )

    @app.post("/models/{name}/reload", responses=refusals)
    async def reload_model(
        request: Request, name: str, query: Annotated[ReloadQuery, Query()]
    ) -> Reloaded:
        """Load the model's file again without failing requests; keep the old model on an error.

        Requires an admin key; without admin keys, a request from the service's own host.
        """
        check_admin(request.scope, settings.admin_keys)
        refuse_while_loading()
        trial = query.trial()
        if trial is not None and settings.watch_models_s:
            raise InvalidRequest(
                "shadow: this service loads new files by itself, because of --watch-models-s"
            )
        changed = True
        with admission.request():
            if trial is not None:
                await models.try_out(name, query.digest, trial)
            else:
                changed = await models.reload(name, query.digest)
        return Reloaded(changed=changed, **_fields(models.get(name), models))

    @app.post("/models/{name}/shadow/{verdict}", responses=refusals)
    async def settle_shadow(
        request: Request, name: str, verdict: Literal["promote", "drop"]
    ) -> ModelDescription:
        """End the trial of a model's new file: it takes over, or is dropped.

        Requires the same rights as a reload.
        """
        check_admin(request.scope, settings.admin_keys)
        refuse_while_loading()
        outcome: Verdict = "promoted" if verdict == "promote" else "dropped"
        await models.settle(name, outcome, "by request")
        return _description(models.get(name), models)


def _description(served: ServedModel, models: Models) -> ModelDescription:
    return ModelDescription(**_fields(served, models))


def _fields(served: ServedModel, models: Models) -> dict[str, Any]:
    return {
        "name": served.name,
        "default": served.name == models.default,
        "digest": served.engine.digest,
        "execution_provider": served.engine.provider,
        "execution_precision": served.engine.execution_precision,
        "sessions": served.batcher.live_sessions,
        "shadow": served.shadow.report() if served.shadow else served.past_trial,
        **served.engine.contract.model_dump(),
    }
