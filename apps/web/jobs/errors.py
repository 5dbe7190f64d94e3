"""Any exception as one sentence for a user."""

import logging

from apps.web.files import FULL
from apps.web.telemetry import COUNTS
from core.errors import SuiteError, bug_sentence
from core.memory import OUT_OF_MEMORY, is_out_of_memory

log = logging.getLogger(__name__)


def sentence_of(error: Exception) -> str:
    """Return a SuiteError's text, or the id under which a bug was logged.

    A full disk and memory that runs out are no bugs.
    """
    if isinstance(error, SuiteError):
        COUNTS.count_error(type(error).__name__)
        return str(error)
    if isinstance(error, OSError) and error.errno in FULL:
        COUNTS.count_error("DiskFull")
        log.error("The disk is full: %s", error)
        return (
            "The server's disk is full, so this could not be saved: try again when whoever "
            "runs the server has made room."
        )
    if is_out_of_memory(error):
        COUNTS.count_error("OutOfMemory")
        log.error("Memory ran out: %s", error)
        return OUT_OF_MEMORY
    COUNTS.count_error("Bug")
    return bug_sentence(error)
