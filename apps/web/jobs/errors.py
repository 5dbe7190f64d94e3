"""Errors as sentences for users."""

import logging
import uuid

from core.errors import SuiteError

log = logging.getLogger(__name__)


def sentence_of(error: Exception) -> str:
    """Return one sentence; a bug is logged under an id that the sentence names."""
    if isinstance(error, SuiteError):
        return str(error)
    number = uuid.uuid4().hex[:8]
    log.error("Error %s", number, exc_info=error)
    return f"Something went wrong on our side; the server's log has details under {number}."
