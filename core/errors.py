"""The errors that are raised on purpose: each message is one sentence that a user can act on.

Any other error is a bug and keeps its traceback.
"""


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


class Busy(SuiteError):
    """The queue is full."""
