"""Errors a client can meet: each class carries its HTTP status and its stable code."""

from __future__ import annotations


class ServiceError(Exception):
    """A request that is answered with a problem; `detail` says what to change."""

    status = 500
    code = "internal-error"
    title = "Internal error"
    retry_after_s: int | None = None

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class InvalidRequest(ServiceError):
    """A query parameter or the form of the body is wrong."""

    status, code, title = 400, "invalid-request", "Invalid request"


class InvalidImage(ServiceError):
    """The bytes are no image, or a broken one."""

    status, code, title = 400, "invalid-image", "Invalid image"


class Unauthorized(ServiceError):
    """The service has keys, and the request carries none of them."""

    status, code, title = 401, "unauthorized", "Unauthorized"


class RateLimited(ServiceError):
    """The caller's key has used up its quota."""

    status, code, title = 429, "rate-limited", "Rate limited"

    def __init__(self, detail: str, retry_after_s: int) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class ModelUnusable(ServiceError):
    """The file that was to be loaded is not sound; what was served before still is."""

    status, code, title = 409, "model-unusable", "Model unusable"


class UnsupportedMedia(ServiceError):
    """The body is of a type that is not accepted."""

    status, code, title = 415, "unsupported-media-type", "Unsupported media type"


class NotAcceptable(ServiceError):
    """No output is of a type that the client accepts."""

    status, code, title = 406, "not-acceptable", "Not acceptable"


class BodyTimeout(ServiceError):
    """The body came in too slowly."""

    status, code, title = 408, "body-timeout", "Body timeout"


class HeaderTimeout(ServiceError):
    """The headers came in too slowly, or not at all."""

    status, code, title = 408, "header-timeout", "Header timeout"


class ImageTooLarge(ServiceError):
    """More pixels than the service takes."""

    status, code, title = 413, "image-too-large", "Image too large"


class BodyTooLarge(ServiceError):
    """More bytes than the service takes."""

    status, code, title = 413, "body-too-large", "Body too large"


class UnknownModel(ServiceError):
    """No model of that name is served."""

    status, code, title = 404, "unknown-model", "Unknown model"


class Overloaded(ServiceError):
    """Too much work is waiting already."""

    status, code, title = 503, "overloaded", "Overloaded"
    retry_after_s = 1


class ShuttingDown(ServiceError):
    """The service is about to stop."""

    status, code, title = 503, "shutting-down", "Shutting down"
    retry_after_s = 5


class EngineUnavailable(ServiceError):
    """The inference loop has died; readiness is red."""

    status, code, title = 503, "engine-unavailable", "Engine unavailable"
    retry_after_s = 10


class DeadlineExceeded(ServiceError):
    """The request's own deadline passed before its result was there."""

    status, code, title = 504, "deadline-exceeded", "Deadline exceeded"


class InferenceFailed(ServiceError):
    """The engine failed on this batch; the next one is not affected."""

    status, code, title = 500, "inference-failed", "Inference failed"


class StartupError(RuntimeError):
    """The service cannot start; the message says why and what to change."""


CLIENT_GONE = 499  # as nginx counts them; nobody receives it
