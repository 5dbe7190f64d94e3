"""The errors raised on purpose: each message is one sentence a user can act on.

Anything else that rises is a bug of ours and keeps its traceback.
"""


class SuiteError(Exception):
    """A problem the user can understand; its text says what was wrong and what to do."""


class BadInput(SuiteError):
    """Something given by the user is missing, unreadable or out of range."""


class WeightsMissing(SuiteError):
    """A weights file is not here and cannot be fetched now."""


class WeightsMismatch(SuiteError):
    """A weights file is here but is of another family, or damaged."""


class DeviceUnavailable(SuiteError):
    """The device asked for is absent, unfit or out of memory."""


class Busy(SuiteError):
    """As many requests are waiting as may wait."""
