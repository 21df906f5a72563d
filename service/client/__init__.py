"""The service's client: `Client` and `AsyncClient` to import, a batch tool to run.

Needs httpx and the standard library; Pillow only to shrink uploads and to draw
contact sheets.
"""

from service.client.errors import (
    BadAnswerError,
    ClientError,
    StatusError,
    UnreachableError,
    UsageError,
)
from service.client.jobs.job import Job
from service.client.protocol import ModelInfo, Segmentation
from service.client.retry import RetryPolicy
from service.client.transport import AsyncClient, Client

__all__ = [
    "AsyncClient",
    "BadAnswerError",
    "Client",
    "ClientError",
    "Job",
    "ModelInfo",
    "RetryPolicy",
    "Segmentation",
    "StatusError",
    "UnreachableError",
    "UsageError",
]
