"""The errors that are raised on purpose: each message is one sentence that a user can act on.

Any other error is a bug: it keeps its traceback, in the log, under an id that the user is told.
"""

import logging
import uuid

log = logging.getLogger(__name__)


class SuiteError(Exception):
    """A problem the user can understand; its text says what was wrong and what to do."""


class BadInput(SuiteError):
    """Something given by the user is missing, unreadable or out of range."""


class WeightsMissing(SuiteError):
    """A weights file is missing and cannot be downloaded now."""


class WeightsMismatch(SuiteError):
    """A weights file is damaged, or of another model family."""


class DeviceUnavailable(SuiteError):
    """The requested device is absent, unsuitable or out of memory."""


class Withheld(SuiteError):
    """The model's safety checker holds every picture to be unsafe."""


class Busy(SuiteError):
    """The queue is full."""


def bug_sentence(error: BaseException) -> str:
    """Log a bug under an id; return the sentence that names it.

    Its own text is not shown: it may hold paths, and says nothing to a user.
    """
    error_id = uuid.uuid4().hex[:8]
    log.error("Error %s", error_id, exc_info=error)
    return f"Something went wrong on our side; the server's log has details under {error_id}."
