"""The model of a request: the one it names, or the operating point that `quality=auto` allows."""

from __future__ import annotations

import time

from service.errors import InvalidRequest
from service.http.middleware.limits import Admission
from service.http.query import SegmentQuery
from service.inference.models import Models, ServedModel


def chosen(
    query: SegmentQuery, models: Models, admission: Admission, deadline: float
) -> tuple[ServedModel, dict[str, str]]:
    """Return the model, and the header that says which point it is; raises InvalidRequest.

    `deadline`: on the monotonic clock.
    """
    if query.quality is None:
        return models.get(query.model), {}
    if query.model is not None:
        raise InvalidRequest("quality=auto chooses the model: leave out model, or quality")
    if models.quality is None:
        raise InvalidRequest(
            "quality=auto: this service has one operating point of each network: leave out "
            "quality (its operator can set --quality)"
        )
    load = admission.requests / admission.max_requests
    choice = models.quality.choice(load, deadline - time.monotonic())
    return models.get(choice.name), {"X-Quality": str(choice)}
