"""Health checks for orchestrators. They only read memory and use no thread."""

from __future__ import annotations

from fastapi import FastAPI, Response

from service.inference.models import Models


def add_routes(app: FastAPI, models: Models) -> None:
    """Serve /livez and /readyz."""

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        """Answer 200 while the process runs."""
        return {"status": "alive"}

    @app.get("/readyz", responses={503: {"description": "not ready"}})
    async def readyz(response: Response) -> dict[str, str]:
        """Answer 200 while every model is warmed up and takes requests."""
        if models.healthy:
            return {"status": "ready"}
        response.status_code = 503
        return {"status": "draining" if models.draining else "not ready"}
