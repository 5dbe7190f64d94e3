"""Pickled checkpoints give up their tensors, whatever lies beside them, and run nothing."""

import argparse
import collections
import io
import logging
import pickle
import random
import re
import sys
import types
import uuid
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from core.errors import WeightsMismatch
from models.checkpoints import pickles
from models.checkpoints.detect import read_shapes, read_state
from models.checkpoints.pickles import STORAGES, Inert, read_pickle

CONTAINERS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Objects as Lightning saves them; their module is gone when the file is read."""
    module = types.ModuleType("lightning_that_is_not_here")
    module.Callback = type("Callback", (), {"__module__": module.__name__})
    module.Settings = type("Settings", (dict,), {"__module__": module.__name__})
    module.Names = type("Names", (list,), {"__module__": module.__name__})

    def save(content: Callable[[Any], dict[str, Any]], path: Path, zipped: bool = True) -> None:
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module.__name__, module)
            torch.save(content(module), path, _use_new_zipfile_serialization=zipped)

    return save


@CONTAINERS
def test_what_a_trainer_saves_beside_the_weights_costs_none(
    zipped: bool, trainer: Any, tmp_path: Path
) -> None:
    """Callbacks as keys and values, NumPy's numbers, dicts and lists of classes of its own."""
    weights = {"a": torch.randn(3, 4), "b": torch.arange(6).reshape(2, 3).T, "c": torch.tensor(2.0)}

    def content(module: Any) -> dict[str, Any]:
        callback = module.Callback()
        callback.best = np.float64(0.1)
        counts = collections.defaultdict(int, {"epoch": 3})
        return {
            "callbacks": {module.Callback: {"best": np.float64(0.5)}, callback: 1},
            "hyper_parameters": module.Settings(lr=1e-4, path=Path("here"), shape=np.ones(3)),
            "names": module.Names([1, 2]),
            "options": argparse.Namespace(steps=3),
            "counts": counts,
            "others": [re.compile("a"), random.Random(1), logging.getLogger("x"), {1, 2}, 3j],
            "when": datetime.now(tz=UTC),
            "one": uuid.UUID(int=1),
            "state_dict": collections.OrderedDict(weights),
        }

    trainer(content, tmp_path / "x.ckpt", zipped)
    found = read_state(tmp_path / "x.ckpt")
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(found[name], weight) and found[name].dtype == weight.dtype


@pytest.mark.parametrize("dtype", [*set(STORAGES.values()), torch.float8_e4m3fn, torch.uint16])
@CONTAINERS
def test_every_number_format_is_read_as_torch_reads_it(
    dtype: torch.dtype, zipped: bool, tmp_path: Path
) -> None:
    if not zipped and dtype not in STORAGES.values():
        pytest.skip("torch cannot read its old container with the formats that came after it")
    whole = torch.arange(24).to(dtype)
    tensors = {
        "whole": whole,
        "part": whole[3:9].reshape(2, 3),
        "turned": whole.reshape(4, 6).T,
        "empty": whole[:0],
        "one": whole[5],
        "parameter": nn.Parameter(whole.clone(), requires_grad=False),
    }
    given = {"weights": tensors, "beside": Path("anything")}
    torch.save(given, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    found = read_pickle(tmp_path / "x.pt")
    assert isinstance(found["beside"], Inert)
    for name, tensor in tensors.items():
        assert found["weights"][name].dtype == dtype
        assert found["weights"][name].shape == tensor.shape
        assert torch.equal(found["weights"][name].double(), tensor.double())
    shared = found["weights"]["whole"].untyped_storage().data_ptr()
    assert found["weights"]["part"].untyped_storage().data_ptr() == shared


def test_automatic1111s_embedding_is_read_also_where_it_is_a_parameter_dict(tmp_path: Path) -> None:
    vectors = nn.Parameter(torch.randn(2, 768))
    for index, held in enumerate((nn.ParameterDict({"*": vectors}), {"*": vectors})):
        path = tmp_path / f"word{index}.pt"
        torch.save({"string_to_token": {"*": 265}, "string_to_param": held, "name": "w"}, path)
        assert torch.equal(read_state(path)["string_to_param.*"], vectors)


class _Bomb:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *given: Any) -> None:
        self.call = (function, given)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [2, 4])
@CONTAINERS
def test_no_function_of_the_library_is_called(
    zipped: bool, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "it_ran"
    for bomb in (
        _Bomb(Path.touch, ran),
        _Bomb(eval, f"open({str(ran)!r}, 'w')"),
        _Bomb(exec, f"open({str(ran)!r}, 'w')"),
        _Bomb(__import__("os").system, f"touch {ran}"),
        _Bomb(__import__("subprocess").check_call, ["touch", str(ran)]),
        _Bomb(np.save, str(ran), np.ones(1)),
        _Bomb(torch.save, torch.ones(1), str(ran)),
    ):
        path = tmp_path / "x.ckpt"
        content = {"w": torch.ones(1), "beside": bomb}
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        try:
            read_state(path)
        except WeightsMismatch as refusal:
            assert "would run code" in str(refusal) and str(refusal).count("\n") == 0
        assert not [*tmp_path.glob("it_ran*")]


def write_program(program: bytes, path: Path) -> None:
    """Write opcodes as torch writes a pickle, with one storage of four numbers."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/version", "3\n")
        archive.writestr("x/data.pkl", b"\x80\x02" + program + b".")
        archive.writestr("x/data/0", bytes(16))


def text(value: str) -> bytes:
    """Return the opcode of a text."""
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def test_a_pickle_changes_nothing_that_outlives_it(tmp_path: Path) -> None:
    """State set on what builds tensors is gone with the file; a class's cannot be set."""
    before = torch._utils._rebuild_tensor_v2.__defaults__
    # BUILD with a pair of states: the second is set attribute by attribute.
    state = b"N}" + text("__defaults__") + b"(K\x01K\x02ts\x86b"
    ends = []
    for name in (b"torch._utils\n_rebuild_tensor_v2", b"collections\nOrderedDict"):
        write_program(b"c" + name + b"\n" + state, tmp_path / "x.pt")
        try:
            pickles._read_zip(tmp_path / "x.pt", False)
            ends.append("read")
        except TypeError as error:
            ends.append("immutable" if "immutable" in str(error) else str(error))
    assert ends == ["read", "immutable"]
    ours = pickles._builders()["_rebuild_tensor_v2"]
    assert ours.__defaults__ is None and torch._utils._rebuild_tensor_v2.__defaults__ == before


@pytest.mark.parametrize(
    ("count", "key", "offset", "size", "fits"),
    [
        (4, "0", 0, 4, True),
        (4, "0", 0, 5, False),
        (4, "0", 1, 4, False),
        (5, "0", 0, 4, False),
        (4, "../version", 0, 1, False),
        (4, "1", 0, 1, False),
    ],
)
def test_no_memory_but_a_storages_own_is_read(
    count: int, key: str, offset: int, size: int, fits: bool, tmp_path: Path
) -> None:
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
    storage += b"K" + bytes([count]) + b"tQ"
    place = b"K" + bytes([offset]) + b"(K" + bytes([size]) + b"t(K\x01t"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + place + b"\x89NtR"
    beside = text("beside") + b"ca\nb\n)R"
    write_program(b"}(" + text("w") + tensor + beside + b"u", tmp_path / "x.pt")
    if fits:
        assert torch.equal(read_state(tmp_path / "x.pt")["w"], torch.zeros(4))
        return
    with pytest.raises(WeightsMismatch, match="damaged"):
        read_state(tmp_path / "x.pt")


@pytest.mark.parametrize("method", ["items", "get", "keys"])
def test_a_dict_that_hides_its_methods_is_read_all_the_same(method: str, tmp_path: Path) -> None:
    hidden = b"ccollections\nOrderedDict\n)R}" + text(method) + b"NsbK\x01K\x02s"
    write_program(hidden, tmp_path / "x.pt")
    assert read_state(tmp_path / "x.pt") == {}


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_what_holds_no_named_weights_is_named(tmp_path: Path) -> None:
    network = nn.Linear(2, 2)
    torch.save(network, tmp_path / "whole.pt")
    torch.jit.save(torch.jit.script(network), tmp_path / "script.pt")
    torch.save([1], tmp_path / "list.pt")
    for name, words in (
        ("whole.pt", "is a pickled object of the class Linear, not named weights: choose another"),
        ("script.pt", "is a TorchScript program, not weights: choose a checkpoint."),
        ("list.pt", "holds no named tensors: choose another file."),
    ):
        with pytest.raises(WeightsMismatch, match=re.escape(f"{name} {words}")):
            read_shapes(tmp_path / name)


def test_a_checkpoint_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict[str, Any] = {"w": torch.ones(1)}
    content["state_dict"] = content
    torch.save(content, tmp_path / "x.ckpt")
    assert read_shapes(tmp_path / "x.ckpt") == {"w": (1,)}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), zipped=st.booleans())
def test_a_damaged_file_is_one_sentence(data: st.DataObject, zipped: bool, tmp_path: Path) -> None:
    """Any bytes changed or cut off: the weights or a refusal, never another error."""
    stream = io.BytesIO()
    content = {"state_dict": {"w": torch.ones(3)}, "beside": Path("x")}
    torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    raw = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.ckpt"
    path.write_bytes(raw[: data.draw(st.integers(1, len(raw)))])
    try:
        read_state(path)
    except WeightsMismatch as refusal:
        assert str(refusal).startswith("x.ckpt ") and "\n" not in str(refusal)


def test_pythons_own_unpickler_would_have_run_it(tmp_path: Path) -> None:
    """So the bombs above are real ones."""
    pickle.loads(pickle.dumps(_Bomb(Path.touch, tmp_path / "it_ran")))
    assert (tmp_path / "it_ran").exists()
