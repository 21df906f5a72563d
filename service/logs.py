"""Log lines for people (console) or for machines (JSON), each with its request's id."""

from __future__ import annotations

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

LogFormat = Literal["console", "json"]
FIELDS = "fields"  # `log.info("...", extra={FIELDS: {...}})` adds keys to a JSON line

request_id: ContextVar[str] = ContextVar("request_id", default="")


def configure(level: str, form: LogFormat) -> None:
    """Send all log lines to stderr in one form."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else ConsoleFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": request_id.get(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps({key: value for key, value in line.items() if value != ""})


class ConsoleFormatter(logging.Formatter):
    """Time, level, logger, message, request id."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 # logging's own name
        """The line without a traceback, which follows below."""
        tag = request_id.get()
        return super().formatMessage(record) + (f" [{tag}]" if tag else "")
