"""The errors of this package."""

from __future__ import annotations

from service.client.plain import plain


class ClientError(Exception):
    """Base class of all errors that this package raises; the text is safe for a terminal."""

    def __init__(self, message: object) -> None:
        super().__init__(plain(message))


class UsageError(ClientError):
    """The call is wrong: an invalid URL or option, or an input that does not exist."""


class StatusError(ClientError):
    """The service answered with an error status.

    `code` is the stable name of the problem ("invalid-image"), `detail` a sentence for
    people, and `request_id` identifies the request in the service's log.
    """

    def __init__(self, status: int, code: str, detail: str, request_id: str | None = None) -> None:
        super().__init__(f"{status} {code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail
        self.request_id = request_id

    def at(self, place: str) -> StatusError:
        """Return the same error with a place added to its detail."""
        return StatusError(self.status, self.code, f"{self.detail}{place}", self.request_id)


class UnreachableError(ClientError):
    """No answer: connections failed, broke or timed out, and all retries were used up."""


class BadAnswerError(ClientError):
    """The service answered 200, but not with what was requested."""


class ManifestError(ClientError):
    """The manifest in the output folder is in use, broken, or from another version."""
