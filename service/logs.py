"""Log as plain text or as JSON; each line carries the id of its request."""

from __future__ import annotations

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

LogFormat = Literal["console", "json"]
FIELDS = "fields"  # `log.info("...", extra={FIELDS: {...}})` adds keys to a JSON line

request_id: ContextVar[str] = ContextVar("request_id", default="")
trace_id: ContextVar[str] = ContextVar("trace_id", default="")  # W3C's, 32 hexadecimal digits


def configure(level: str, form: LogFormat) -> None:
    """Write all logs to stderr in the given format."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else ConsoleFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])


class JsonFormatter(logging.Formatter):
    """Formats each record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as JSON, without empty fields."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": request_id.get(),
            "trace_id": trace_id.get(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps({key: value for key, value in line.items() if value != ""})


class ConsoleFormatter(logging.Formatter):
    """Formats time, level, logger, message and request id."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 # logging's own name
        """Append the request id to the first line; a traceback follows it."""
        tag = request_id.get()
        return super().formatMessage(record) + (f" [{tag}]" if tag else "")
