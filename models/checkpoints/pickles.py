"""Reads the tensors of a pickled checkpoint; nothing that is pickled in it ever runs.

torch's own `weights_only=True` reads plain checkpoints, memory-mapped. It refuses a file with any
other object, such as the callbacks, settings and NumPy numbers that PyTorch Lightning saves beside
the weights. Those files are read here, memory-mapped too: tensors are built as torch builds them,
and every other name in the pickle stands for an inert object that only keeps what it is given.

Sources: Python's "Restricting Globals" for pickle; torch.serialization for both containers, the zip
of torch >= 1.6 and the pickles in a row before it.
"""

import builtins
import mmap
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from core.errors import WeightsMismatch

ZIP_START = b"PK"
PICKLE_START = b"\x80"
"""First byte of every pickle since protocol 2; torch before 1.6 wrote them without a zip."""
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The first of the pickles in a row, torch.serialization.MAGIC_NUMBER."""
LOCAL_HEADER_BYTES = 30
"""Before a file's name in a zip; at 26 and 28 the lengths of the name and of the extra field."""
COUNT_BYTES = 8
"""In the old container a storage begins with its number of elements, little-endian."""

DANGEROUS_MODULES = {
    *("_posixsubprocess", "asyncio", "multiprocessing", "nt", "os", "popen2", "posix", "pty"),
    *("commands", "ensurepip", "pip", "pydoc", "runpy", "subprocess", "venv", "webbrowser"),
    *("_ctypes", "_pickle", "bdb", "cProfile", "code", "codeop", "ctypes", "imp", "importlib"),
    *("marshal", "pdb", "pickle", "pkgutil", "profile", "sys", "timeit", "trace", "zipimport"),
    *("_io", "fileinput", "io", "shelve", "shutil", "tempfile", "zipfile", "tarfile"),
    *("ftplib", "http", "smtplib", "socket", "socketserver", "telnetlib", "urllib", "xmlrpc"),
    *("_operator", "operator"),
}
"""Modules of Python's library that start programs, run code, change files or use the network: in a
checkpoint they show that somebody made it to harm."""

STORAGES = {
    "UntypedStorage": torch.uint8,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "BoolStorage": torch.bool,
}
"""Number format by the name of torch's class for it."""


def read_pickle(path: Path, shapes_only: bool = False) -> Any:
    """Return what a checkpoint of torch holds, with Inert objects for all that is no plain data.

    With `shapes_only` the tensors may be on the meta device, so that a large file is not read.

    Raises:
        WeightsMismatch: it is damaged, something else, or made to run code.
    """
    with path.open("rb") as file:
        start = file.read(len(ZIP_START))
    zipped = start == ZIP_START
    if not zipped and start[:1] != PICKLE_START:
        raise WeightsMismatch(
            f"{path.name} is not a weights file: choose a .safetensors, .ckpt or .pth file."
        )
    try:
        # Only the zip can be memory-mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError:
        pass  # it holds more than tensors, or is damaged
    except Exception as error:  # torch's reader may raise anything on a damaged file
        raise _damaged(path) from error
    try:
        return _read_zip(path, shapes_only) if zipped else _read_legacy(path, shapes_only)
    except _RunsCode as error:
        raise WeightsMismatch(
            f"{path.name} holds more than tensors and would run code when loaded ({error}): "
            "use a .safetensors version of it."
        ) from error
    except Exception as error:  # as above: a pickle may hold any nonsense
        raise _damaged(path) from error


class Inert(dict[Any, Any]):
    """Stands for an object whose class is not loaded; it keeps state and items, and does nothing.

    A dict, because Lightning's and OmegaConf's settings are pickled as dicts.
    """

    state: Any = None
    """What the object's __dict__ would hold."""

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        """Ignore what the class would have been called with."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        """Begin empty."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        """Be equal to nothing else: it may be the key of a dict."""
        return self is other

    def __setstate__(self, state: Any) -> None:
        """Keep the state as it is."""
        self.state = state

    def append(self, _: Any) -> None:
        """Drop an item: the original is a list."""

    def extend(self, _: Any) -> None:
        """Drop items."""

    def add(self, _: Any) -> None:
        """Drop an item: the original is a set."""


class _RunsCode(Exception):
    """A pickle names a function of Python's library, which no checkpoint needs."""


class _Unpickler(pickle.Unpickler):
    """Resolves every name to a function below, a number format or an Inert class of its own."""

    def __init__(self, file: BinaryIO, storage: Callable[..., Tensor]) -> None:
        """Read from a file; `storage` gets what torch writes of a storage behind its kind."""
        super().__init__(file, encoding="latin-1")
        self._storage = storage
        self._builders = _builders()
        self._inert: dict[str, type[Inert]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name stands for; nothing is imported."""
        package = module.partition(".")[0]
        if package == "torch":
            if name in STORAGES:
                return STORAGES[name]
            if isinstance(found := getattr(torch, name, None), torch.dtype):
                return found
            if name in self._builders:
                return self._builders[name]
            if name == "Size":
                return tuple
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        full = f"{module}.{name}"
        if _may_run_code(package, name):
            raise _RunsCode(full)
        # A class of its own for each name: two callbacks are two keys of one dict.
        return self._inert.setdefault(full, type(name, (Inert,), {}))

    def persistent_load(self, pid: Any) -> Tensor:
        """Return a storage as a flat tensor."""
        kind, *facts = pid
        if kind != "storage":
            raise pickle.UnpicklingError(f"{kind!r} is no storage")
        return self._storage(*facts)


def _builders() -> dict[str, Callable[..., Tensor]]:
    """Return what builds tensors, by the names of torch._utils and with their arguments.

    New functions for each file, since a pickle can set attributes on what it names.
    """

    def build(flat: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
        return flat.as_strided(size, stride, flat.storage_offset() + offset)

    def build_in_format(*given: Any) -> Tensor:
        flat, offset, size, stride, _, _, dtype, *_ = given
        return build(flat.view(dtype), offset, size, stride)

    def parameter(tensor: Tensor, *_: Any) -> Tensor:
        return tensor

    def subclass(function: Callable[..., Tensor], _: Any, given: Any, __: Any) -> Tensor:
        return function(*given)

    return {
        "_rebuild_tensor": build,
        "_rebuild_tensor_v2": build,
        "_rebuild_tensor_v3": build_in_format,
        "_rebuild_parameter": parameter,
        "_rebuild_parameter_with_state": parameter,
        "_rebuild_from_type_v2": subclass,
    }


def _may_run_code(package: str, name: str) -> bool:
    """Tell whether a name is of DANGEROUS_MODULES, or one of Python's own functions, as eval is.

    It would not run here either: this is to warn of a file that someone made to harm.
    """
    if package in ("builtins", "__builtin__"):
        found = getattr(builtins, name.partition(".")[0], None)
        return callable(found) and not isinstance(found, type)
    return package in DANGEROUS_MODULES


def _read_zip(path: Path, shapes_only: bool) -> Any:
    with zipfile.ZipFile(path) as archive, path.open("rb") as whole:
        # A private copy: frombuffer wants memory that can be written to.
        mapped = mmap.mmap(whole.fileno(), 0, access=mmap.ACCESS_COPY)
        (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist():
            order = archive.read(f"{folder}byteorder")
            if order != sys.byteorder.encode():
                raise pickle.UnpicklingError(f"written in byte order {order!r}")
        storages: dict[str, Tensor] = {}

        def storage(dtype: torch.dtype, key: str, _: str, count: int) -> Tensor:
            if key not in storages and shapes_only:
                storages[key] = torch.empty(count, dtype=dtype, device="meta")
            elif key not in storages:
                start, size = _place(archive.getinfo(f"{folder}data/{key}"), mapped)
                if count * dtype.itemsize > size:
                    raise pickle.UnpicklingError("a storage is larger than its file in the zip")
                storages[key] = _flat(mapped, dtype, count, start)
            return storages[key]

        with archive.open(pickled) as file:
            return _Unpickler(file, storage).load()  # type: ignore[arg-type]


def _place(member: zipfile.ZipInfo, mapped: mmap.mmap) -> tuple[int, int]:
    """Return where in a zip the bytes of a file are, which torch never compresses, and how many.

    The length of what stands before them is known by that alone.
    """
    if member.compress_type != zipfile.ZIP_STORED:
        raise pickle.UnpicklingError("compressed")
    header = mapped[member.header_offset : member.header_offset + LOCAL_HEADER_BYTES]
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return member.header_offset + LOCAL_HEADER_BYTES + name + extra, member.file_size


def _read_legacy(path: Path, shapes_only: bool) -> Any:
    """Read torch's older container: five pickles, then the storages that the last one lists."""
    room = path.stat().st_size
    storages: dict[str, Tensor] = {}

    def storage(
        dtype: torch.dtype, key: str, _: str, count: int, view: tuple[str, int, int] | None = None
    ) -> Tensor:
        if key not in storages:
            if count * dtype.itemsize > room:
                raise pickle.UnpicklingError("a storage is larger than the file")
            storages[key] = torch.empty(count, dtype=dtype, device="meta" if shapes_only else "cpu")
        return storages[key] if view is None else storages[key][view[1] : view[1] + view[2]]

    with path.open("rb") as file:
        magic, _, _, content, keys = (_Unpickler(file, storage).load() for _ in range(5))
        if magic != LEGACY_MAGIC:
            raise pickle.UnpicklingError("no checkpoint of torch")
        for key in () if shapes_only else keys:
            flat = storages[key]
            count = int.from_bytes(file.read(COUNT_BYTES), "little")
            raw = bytearray(file.read(count * flat.itemsize))
            flat.copy_(_flat(raw, flat.dtype, count))
    return content


def _flat(content: bytearray | mmap.mmap, dtype: torch.dtype, count: int, start: int = 0) -> Tensor:
    """Return `count` numbers of a storage's bytes from `start` on, in the same memory."""
    if count == 0:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype, count=count, offset=start)


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    # UnicodeDecodeError: the name of a member was damaged.
    except (zipfile.BadZipFile, UnicodeDecodeError):
        return False


def _damaged(path: Path) -> WeightsMismatch:
    if _is_torchscript(path):
        return WeightsMismatch(
            f"{path.name} is a TorchScript program, not weights: choose a checkpoint."
        )
    return WeightsMismatch(
        f"{path.name} is truncated or damaged, or not a PyTorch weights file: download it again."
    )
