"""Errors that the service answers with; each class has its HTTP status and a stable code."""

from __future__ import annotations


class ServiceError(Exception):
    """The request failed; the answer is a problem document whose `detail` says what to change."""

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
    """The bytes are not an image, or the image is broken."""

    status, code, title = 400, "invalid-image", "Invalid image"


class Unauthorized(ServiceError):
    """The service requires an API key, and the request has no valid one."""

    status, code, title = 401, "unauthorized", "Unauthorized"


class Forbidden(ServiceError):
    """The client is not allowed to do this."""

    status, code, title = 403, "forbidden", "Forbidden"


class RateLimited(ServiceError):
    """The API key has exceeded its rate limit."""

    status, code, title = 429, "rate-limited", "Rate limited"

    def __init__(self, detail: str, retry_after_s: int) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class UnknownJob(ServiceError):
    """The key has no job of that id."""

    status, code, title = 404, "unknown-job", "Unknown job"


class JobNotDone(ServiceError):
    """The job has no result, because it has not ended or has failed."""

    status, code, title = 409, "job-not-done", "Job not done"


class JobsFull(ServiceError):
    """The jobs folder has no room for more."""

    status, code, title = 503, "jobs-full", "Jobs full"
    retry_after_s = 60


class ModelUnusable(ServiceError):
    """The new model file cannot be used; the old model is still served."""

    status, code, title = 409, "model-unusable", "Model unusable"


class UnsupportedMedia(ServiceError):
    """The service does not accept this media type."""

    status, code, title = 415, "unsupported-media-type", "Unsupported media type"


class NotAcceptable(ServiceError):
    """The service has no output of a media type that the client accepts."""

    status, code, title = 406, "not-acceptable", "Not acceptable"


class BodyTimeout(ServiceError):
    """The request body arrived too slowly."""

    status, code, title = 408, "body-timeout", "Body timeout"


class HeaderTimeout(ServiceError):
    """The request headers arrived too slowly, or not at all."""

    status, code, title = 408, "header-timeout", "Header timeout"


class ImageTooLarge(ServiceError):
    """The image has more pixels than the service allows."""

    status, code, title = 413, "image-too-large", "Image too large"


class BodyTooLarge(ServiceError):
    """The body has more bytes than the service allows."""

    status, code, title = 413, "body-too-large", "Body too large"


class AnswerTooLarge(ServiceError):
    """The answer has more bytes than the service holds for all answers."""

    status, code, title = 413, "answer-too-large", "Answer too large"


def check_answer(size: int, limit: int) -> None:
    """Raise AnswerTooLarge for an answer of more bytes than the limit."""
    if size > limit:
        raise AnswerTooLarge(
            f"the answer has {size} bytes or more, the limit is {limit}: request fewer outputs, "
            "or send a smaller image"
        )


class UnknownModel(ServiceError):
    """The service has no model of that name."""

    status, code, title = 404, "unknown-model", "Unknown model"


class Overloaded(ServiceError):
    """The service has no capacity left; try again later."""

    status, code, title = 503, "overloaded", "Overloaded"
    retry_after_s = 1


class ShuttingDown(ServiceError):
    """The service is shutting down."""

    status, code, title = 503, "shutting-down", "Shutting down"
    retry_after_s = 5


class EngineUnavailable(ServiceError):
    """The inference loop has died, and /readyz answers 503."""

    status, code, title = 503, "engine-unavailable", "Engine unavailable"
    retry_after_s = 10


class DeadlineExceeded(ServiceError):
    """The deadline of the request passed before its result was ready."""

    status, code, title = 504, "deadline-exceeded", "Deadline exceeded"


class InferenceFailed(ServiceError):
    """The engine failed on this batch; later batches are not affected."""

    status, code, title = 500, "inference-failed", "Inference failed"


class StartupError(RuntimeError):
    """The service cannot start; the message says why and what to change."""


CLIENT_GONE = 499  # nginx's status for a client that disconnected; for logs and metrics only
