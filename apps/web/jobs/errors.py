"""Any exception as one sentence for a user."""

import errno
import logging
import uuid

from core.errors import SuiteError

log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT)


def sentence_of(error: Exception) -> str:
    """Return a SuiteError's text. Anything else is a bug: log it under an id that is returned.

    A bug's own text is not shown: it may hold paths, and says nothing to a user. A full disk is no
    bug.
    """
    if isinstance(error, SuiteError):
        return str(error)
    if isinstance(error, OSError) and error.errno in FULL:
        log.error("The disk is full: %s", error)
        return (
            "The server's disk is full, so the result could not be saved: try again when whoever "
            "runs the server has made room."
        )
    error_id = uuid.uuid4().hex[:8]
    log.error("Error %s", error_id, exc_info=error)
    return f"Something went wrong on our side; the server's log has details under {error_id}."
