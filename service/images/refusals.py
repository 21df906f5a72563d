"""Translate errors of the shared packages into those that the service answers with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pixels.tiff import TiffError
from postprocess.errors import InvalidOption, TooComplex, TooLarge, TooManyBytes
from service.errors import ImageTooLarge, InvalidImage, InvalidRequest, check_answer


@contextmanager
def refusals() -> Iterator[None]:
    """Translate errors of the shared packages that are raised in the block.

    InvalidOption becomes InvalidRequest, TiffError InvalidImage, TooLarge and TooComplex
    ImageTooLarge, and TooManyBytes AnswerTooLarge.
    """
    try:
        yield
    except InvalidOption as error:
        raise InvalidRequest(str(error)) from None
    except TiffError as error:
        raise InvalidImage(str(error)) from None
    except (TooLarge, TooComplex) as error:
        raise ImageTooLarge(str(error)) from None
    except TooManyBytes as error:
        check_answer(error.size, error.limit)  # raises AnswerTooLarge
        raise
