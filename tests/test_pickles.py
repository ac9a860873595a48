"""Pickles from elsewhere: arrays and plain containers come out whole, and nothing is ever executed."""

import copyreg
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.files import Failed, Missing
from pretrain.pickles import load_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
ARRAYS = [
    *(np.arange(6).reshape(2, 3).astype(kind) for kind in ("?", "u1", ">i2", "<i4", "i8", "f2", ">f4", "f8", "c16")),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(24.0).reshape(2, 3, 4).transpose(1, 2, 0),
    np.arange(10)[::3],
    np.array(3.5),
    np.zeros((0, 4), np.float32),
    np.array([["für", "𝄞"], ["", "a"]]),
    np.array([b"a\xff", b"bcd"]),
]


class Call:
    """Pickled, a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments, *([] if state is None else [state]))

    def __reduce__(self) -> Any:
        return self.reduced


def written(path: Path, value: Any, protocol: int = 2) -> Path:
    path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol))
    return path


def same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        one, other = list(one.values()), list(other.values())
    if isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            same(left, right)
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        if one.dtype.hasobject:
            same(one.ravel().tolist(), other.ravel().tolist())
        else:
            np.testing.assert_array_equal(one, other)
    else:
        assert one == other


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype.str}{a.shape}")
def test_arrays(tmp_path: Path, array: np.ndarray, protocol: int) -> None:
    found = load_pickle(written(tmp_path / "a.pkl", array, protocol))
    np.testing.assert_array_equal(found, array)
    same(found, pickle.loads(pickle.dumps(array, protocol)))  # numpy's own reading: byte orders become the machine's
    assert found.flags.f_contiguous or not array.flags.f_contiguous
    found[...] = found  # writable


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_containers_and_scalars(tmp_path: Path, protocol: int) -> None:
    objects = np.empty((2, 2), dtype=object)
    objects[:] = [[np.arange(3), "a"], [None, {"x": np.ones(1)}]]
    value = {
        "text": "für 𝄞", b"bytes": b"\x00\xff", 5: [1, -(2**70), 2.5, None, True, 1 + 2j],
        "sets": ({1, 2}, frozenset("ab"), ()), "scalars": [np.float32(0.1), np.int64(-7), np.bool_(True), np.str_("ü")],
        "arrays": (np.arange(3), [np.ones((2, 2), np.float16)]), "objects": objects, "f": np.asfortranarray(objects),
        "kind": np.dtype(">f4"),
    }  # fmt: skip
    same(load_pickle(written(tmp_path / "a.pkl", value, protocol)), value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_ordered_dicts_come_as_dicts(tmp_path: Path, protocol: int) -> None:
    found = load_pickle(written(tmp_path / "a.pkl", OrderedDict(b=np.arange(2), a=1), protocol))
    same(found, {"b": np.arange(2), "a": 1})


def test_what_is_shared_stays_shared_and_may_hold_itself(tmp_path: Path) -> None:
    array, loop = np.arange(3), []
    loop += [array, (array, array), loop]
    found = load_pickle(written(tmp_path / "a.pkl", loop))
    assert found[2] is found
    assert found[0] is found[1][0] is found[1][1]
    assert type(found[0]) is np.ndarray


def test_a_ladder_of_shared_tuples_is_climbed_once(tmp_path: Path) -> None:
    value: Any = (np.arange(2),)
    for _ in range(200):
        value = (value, value)
    found = load_pickle(written(tmp_path / "a.pkl", value))
    for _ in range(200):
        assert found[0] is found[1]
        found = found[0]
    same(found, (np.arange(2),))


# pickle.dumps({"data": numpy.array([[1, 2]], ">i2"), "n": 5L, "s": set(["a"])}, 2) of Python 2.7 and numpy 1.
PYTHON2 = (
    b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05"
    b"(K\x01K\x01K\x02\x86cnumpy\ndtype\nq\x06U\x02i2K\x00K\x01\x87Rq\x07(K\x03U\x01>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    b"\x89U\x04\x00\x01\x00\xfftbU\x01nq\x08\x8a\x01\x05U\x01sq\x09c__builtin__\nset\nq\x0a]q\x0bU\x01aa\x85Rq\x0cu."
)


def test_python_2(tmp_path: Path) -> None:
    expected = {"data": np.array([[1, 255]], "i2"), "n": 5, "s": {"a"}}
    same(load_pickle(written(tmp_path / "a.pkl", PYTHON2)), expected)


def test_the_payload_of_an_object_npy(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.array({"conv1": [np.ones((2, 3))]}, dtype=object), allow_pickle=True)
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        shape, _, kind = np.lib.format.read_array_header_1_0(file)
        offset = file.tell()
    assert (version, shape, kind) == ((1, 0), (), np.dtype(object))
    same(load_pickle(path, offset=offset).item(), {"conv1": [np.ones((2, 3))]})


MARK = "executed"  # the file that every payload would make


def named(module: str, name: str) -> bytes:
    """A protocol-4 pickle that calls module.name with MARK."""
    parts = [b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name, MARK)]
    return b"\x80\x04" + parts[0] + parts[1] + b"\x93" + parts[2] + b"\x85R."


GADGETS = {
    "posix.mkdir": Call(os.mkdir, MARK),
    "posix.system": Call(os.system, f"mkdir {MARK}"),
    "eval": Call(eval, f"__import__('os').mkdir({MARK!r})"),
    "exec": Call(exec, f"__import__('os').mkdir({MARK!r})"),
    "getattr": Call(getattr, "", "join"),
    "load": Call(np.load, MARK),
    "numpy.load": named("numpy", "load"),
    "numpy.testing._private.utils.runstring": named("numpy.testing._private.utils", "runstring"),
    "numpy.ndarray.tofile": named("numpy", "ndarray.tofile"),
    "numpy.ndarray.__reduce__": named("numpy", "ndarray.__reduce__"),
    "numpy.dtype.__class__": named("numpy", "dtype.__class__"),
    "collections.OrderedDict.__class__": named("collections", "OrderedDict.__class__"),
    "numpy.core.multiarray._reconstruct.__globals__": named("numpy.core.multiarray", "_reconstruct.__globals__"),
    "pathlib.Path.mkdir": named("pathlib", "Path.mkdir"),
    "_codecs.decode": named("_codecs", "decode"),
    "_reconstructor": Call(copyreg._reconstructor, list, object, None),
    "functools.partial": named("functools", "partial"),
    r"os\nx.mkdir": named("os\nx", "mkdir"),
}


@pytest.mark.parametrize("name", GADGETS)
@pytest.mark.parametrize("deep", [False, True])
def test_nothing_else_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, deep: bool) -> None:
    monkeypatch.chdir(tmp_path)
    gadget = GADGETS[name]
    if deep:  # in the element of an object array
        gadget = gadget if isinstance(gadget, bytes) else pickle.dumps(np.array([gadget, None]))
    path = written(tmp_path / "a.pkl", gadget)
    with pytest.raises(Failed) as caught:
        load_pickle(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: this pickle asks for ")
    assert f"{name}: nothing" in message
    assert "\n" not in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pkl"]


def states(module: str, name: str) -> bytes:
    """A pickle that sets attributes of module.name itself."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"N}U\x0c__setstate__U\x01as\x86b."


FORGED = {
    "an array of another class": pickle.dumps(Call(np._core.multiarray._reconstruct, set, (0,), b"b")),
    "an array of objects from bytes": b"cnumpy\nndarray\n(tR(I1\n(I1\ntcnumpy\ndtype\n(S'O8'\ntRI00\nS'12345678'\ntb.",
    "fewer objects than said": b"cnumpy\nndarray\n(tR(I1\n(I9\ntcnumpy\ndtype\n(S'O8'\ntRI00\n(lNatb.",
    "a negative shape": b"cnumpy\nndarray\n(tR(I1\n(I-1\nI-2\ntcnumpy\ndtype\n(S'u1'\ntRI00\nS'ab'\ntb.",
    "a giant shape": b"cnumpy\nndarray\n(tR(I1\n(I99999999999\ntcnumpy\ndtype\n(S'f8'\ntRI00\nS'ab'\ntb.",
    "fields of objects": b"cnumpy\ndtype\n(S'f8'\ntR(I3\nS'|'\nN(S'a'\nt}S'a'\n"
    b"(cnumpy\ndtype\n(S'O8'\ntRI0\ntsI8\nI1\nI0\ntb.",
    "a subarray": b"cnumpy\ndtype\n(S'f8'\ntR(I3\nS'<'\n(cnumpy\ndtype\n(S'O8'\ntR(I1\nttNNI-1\nI-1\nI0\ntb.",
    "a scalar of objects": pickle.dumps(Call(np._core.multiarray.scalar, np.dtype(object), b"12345678")),
    "a buffer of objects": b"cnumpy.core.numeric\n_frombuffer\n(c_codecs\nencode\n(V12345678\nVlatin1\ntR"
    b"cnumpy\ndtype\n(S'O8'\ntR(I1\ntS'C'\ntR.",
    "another encoding": pickle.dumps(Call(__import__("_codecs").encode, "a", "rot13")),
    "bytes by number": b"c__builtin__\nbytes\n(I99999999999999\ntR.",
    "a persistent id": b"P1\n.",
    "a persistent id on the stack": b"\x80\x02K\x01Q.",
    "the copyreg registry": b"\x80\x02\x82\x01.",
    "a memo of gigabytes": b"\x80\x02Nr\xff\xff\xff\xff.",
    "a string of exabytes": b"\x80\x04\x8e\x00\x00\x00\x00\x00\x00\x00\x10a.",
    "a frame of exabytes": b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x10N.",
    "a buffer from elsewhere": b"\x80\x05\x97.",
    "nesting without end": b"(" * 100_000 + b"t" * 100_000 + b".",
    **{f"attributes of {name}": states("numpy", name) for name in ("ndarray", "dtype")},
    "attributes of _reconstruct": states("numpy.core.multiarray", "_reconstruct"),
    "attributes of encode": states("_codecs", "encode"),
    "attributes of OrderedDict": states("collections", "OrderedDict"),
    "attributes of set": states("__builtin__", "set"),
    "nothing": b"",
    "text": b"# boxes\n1 2 3 4\n",
    "a half": pickle.dumps({"boxes": np.arange(100)})[:300],
    "no end": pickle.dumps([1, 2])[:-1],
    "an empty stack": b".",
    "another": b"\x80\x09N.",
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_damaged_and_forged_files_are_told_in_one_line(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "a.pkl", FORGED[name])
    with pytest.raises(Failed) as caught:
        load_pickle(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "nothing of it was executed" in str(caught.value)
    assert "\n" not in str(caught.value)
    same(load_pickle(written(path, PYTHON2))["s"], {"a"})  # and the next file is read as ever


def test_the_dtype_keeps_numpys_flags(tmp_path: Path) -> None:
    """numpy would take them from the file, and follow the bytes of this array as an object's address."""
    state = b"(I3\nS'|'\nNNNI-1\nI-1\nI0\ntb"
    forged = b"cnumpy\nndarray\n(tR(I1\n(I1\ntcnumpy\ndtype\n(S'O8'\ntR" + state + b"I00\nS'12345678'\ntb."
    with pytest.raises(Failed, match="not as many objects"):
        load_pickle(written(tmp_path / "a.pkl", forged))
    assert np.dtype(object).hasobject


def test_no_file_and_no_right_to_one(tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r"a\.pkl: not there"):
        load_pickle(tmp_path / "a.pkl")
    with pytest.raises(Failed, match=r"cannot be read \(Is a directory\)"):
        load_pickle(tmp_path)
