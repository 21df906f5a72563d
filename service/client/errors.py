"""What can go wrong between a photo and its mask, as the caller sees it."""

from __future__ import annotations

from service.client.plain import plain


class ClientError(Exception):
    """Everything that this package raises on purpose; its text is fit for a terminal."""

    def __init__(self, message: object) -> None:
        super().__init__(plain(message))


class UsageError(ClientError):
    """The call itself is wrong: a URL, an option, an input that does not exist."""


class ServiceError(ClientError):
    """The service answered, and its answer is a refusal.

    `code` is the service's stable name of the problem ("invalid-image"),
    `detail` its sentence for people, `request_id` what its log knows it by.
    """

    def __init__(self, status: int, code: str, detail: str, request_id: str | None = None) -> None:
        super().__init__(f"{status} {code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail
        self.request_id = request_id

    def at(self, place: str) -> ServiceError:
        """The same, saying where it came about."""
        return ServiceError(self.status, self.code, f"{self.detail}{place}", self.request_id)


class UnreachableError(ClientError):
    """No answer came: connections failed, were cut or timed out until patience ran out."""


class BadAnswerError(ClientError):
    """The service answered 200 with something that is not what was asked for."""


class ManifestError(ClientError):
    """The manifest in the output folder is in use, broken, or from another version."""
