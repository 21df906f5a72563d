"""Segment without a server: `deeplab-client --local`.

The client can be installed without an engine. So the module that runs one is named here as text,
and loaded only for this option.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from importlib import import_module
from pathlib import Path

import httpx

from service.client.errors import UsageError

MODULE = "service.local"
URL = "http://localhost"  # never connected to


def transport(
    folder: Path | None, model: str | None, timeout_s: float
) -> AbstractAsyncContextManager[httpx.AsyncBaseTransport]:
    """Return a service in this process for httpx; raises UsageError without its libraries."""
    try:
        module = import_module(MODULE)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == "service":
            raise
        raise UsageError(
            f"--local needs {missing}, which is not installed: in the checkout, run "
            "pip install '.[cpu]' (or one of the extras gpu and openvino)"
        ) from None
    found: AbstractAsyncContextManager[httpx.AsyncBaseTransport] = module.transport(
        folder, model, timeout_s
    )
    return found
