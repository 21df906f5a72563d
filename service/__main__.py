"""`python -m service`: serve the models of a folder over HTTP."""

from __future__ import annotations

import logging
import sys

import uvicorn
from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from service import models
from service.app import create_app
from service.errors import StartupError
from service.settings import Settings


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; 0 after a clean stop, 1 when it cannot start, 2 for usage."""
    try:
        settings = CliApp.run(Settings, cli_args=sys.argv[1:] if argv is None else argv)
    except (ValidationError, SettingsError) as error:
        print(f"error: {_explain(error)}", file=sys.stderr)
        return 2
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    try:
        app = create_app(settings, models.load(settings))
    except StartupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_timeout_s)),
    )
    server = uvicorn.Server(config)
    server.run()
    return 0 if server.started else 1


def _explain(error: ValidationError | SettingsError) -> str:
    if isinstance(error, SettingsError):
        return str(error)
    problems = []
    for item in error.errors():
        flag = "--" + str(item["loc"][0]).replace("_", "-") if item["loc"] else "settings"
        problems.append(f"{flag} {item['input']!r}: {item['msg']}")
    return "; ".join(problems)


if __name__ == "__main__":
    raise SystemExit(main())
