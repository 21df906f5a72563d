"""List the served models with their contracts, and reload a model."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Query

from service.errors import ModelUnusable, UnknownModel
from service.http.problems import documented
from service.inference.models import Models, ServedModel


def add_routes(app: FastAPI, models: Models) -> None:
    """Serve /models, /models/NAME and /models/NAME/reload."""

    def describe(served: ServedModel) -> dict[str, Any]:
        return {
            "name": served.name,
            "default": served.name == models.default,
            "digest": served.engine.digest,
            "execution_provider": served.engine.provider,
            "sessions": served.batcher.live_sessions,
            **served.engine.contract.model_dump(mode="json"),
        }

    @app.get("/models")
    async def list_models() -> dict[str, Any]:
        """List all models, with the execution provider that each runs on."""
        return {"models": [describe(served) for served in models]}

    @app.get("/models/{name}", responses=documented(UnknownModel))
    async def get_model(name: str) -> dict[str, Any]:
        """Describe one model."""
        return describe(models.get(name))

    @app.post("/models/{name}/reload", responses=documented(UnknownModel, ModelUnusable))
    async def reload_model(
        name: str,
        digest: Annotated[str | None, Query(description="SHA-256 that the file must have")] = None,
    ) -> dict[str, Any]:
        """Load the model's file again without failing requests; keep the old model on an error."""
        changed = await models.reload(name, digest)
        return {"changed": changed, **describe(models.get(name))}
