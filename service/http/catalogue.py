"""List the served models with their contracts, and reload a model."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from service.errors import Forbidden, ModelUnusable, Overloaded, Unauthorized, UnknownModel
from service.http import header_text
from service.http.answers import ModelDescription, ModelList, Reloaded
from service.http.middleware.keys import check_admin
from service.http.middleware.limits import Admission
from service.http.problems import documented
from service.inference.models import Models, ServedModel
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


def add_routes(app: FastAPI, settings: Settings, models: Models, admission: Admission) -> None:
    """Serve /models, /models/NAME and /models/NAME/reload."""

    def described(served: ServedModel) -> dict[str, Any]:
        return {
            "name": served.name,
            "default": served.name == models.default,
            "digest": served.engine.digest,
            "execution_provider": served.engine.provider,
            "execution_precision": served.engine.execution_precision,
            "sessions": served.batcher.live_sessions,
            **served.engine.contract.model_dump(),
        }

    @app.get("/models")
    async def list_models() -> ModelList:
        """List all models, with the execution provider that each runs on."""
        return ModelList(models=[ModelDescription(**described(served)) for served in models])

    @app.get("/models/{name}", responses=documented(UnknownModel))
    async def get_model(name: str) -> ModelDescription:
        """Describe one model."""
        return ModelDescription(**described(models.get(name)))

    refusals = documented(Unauthorized, Forbidden, UnknownModel, ModelUnusable, Overloaded)

    @app.post("/models/{name}/reload", responses=refusals)
    async def reload_model(
        request: Request, name: str, query: Annotated[ReloadQuery, Query()]
    ) -> Reloaded:
        """Load the model's file again without failing requests; keep the old model on an error.

        Requires an admin key; without admin keys, a request from the service's own host.
        """
        check_admin(request.scope, settings.admin_keys)
        if models.loading:
            raise Overloaded("another reload is in progress: try again in a moment")
        with admission.request():
            changed = await models.reload(name, query.digest)
        return Reloaded(changed=changed, **described(models.get(name)))
