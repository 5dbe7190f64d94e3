"""Requests, progress and results as bytes, for another process of ours.

A condition goes by its name: its annotator holds functions, which cannot be pickled. Bytes are read
with pickle, so they must come from a process of our own.
"""

import io
import pickle
from collections.abc import Mapping
from typing import Any

from core.condition import Condition


class _Packer(pickle.Pickler):
    def persistent_id(self, record: Any) -> str | None:
        return record.name if isinstance(record, Condition) else None


class _Unpacker(pickle.Unpickler):
    def __init__(self, data: bytes, conditions: Mapping[str, Condition]):
        super().__init__(io.BytesIO(data))
        self._conditions = conditions

    def persistent_load(self, name: str) -> Condition:
        return self._conditions[name]


def packed(record: Any) -> bytes:
    """Return a record, and all that it holds, as bytes."""
    memory = io.BytesIO()
    _Packer(memory, pickle.HIGHEST_PROTOCOL).dump(record)
    return memory.getvalue()


def unpacked(data: bytes, conditions: Mapping[str, Condition]) -> Any:
    """Return the record that `packed` got, with the conditions, by name, of this process.

    Raises:
        KeyError: there is no condition of that name.
    """
    return _Unpacker(data, conditions).load()
