"""Reads a pickle of numpy arrays and plain containers, and executes nothing of it.

A pickle names the functions that rebuild its objects. Every name is answered with a class of this
file or with a harmless built-in type; any other name ends the reading. numpy's own functions are not
used for it: their state can be forged so that numbers are followed as addresses. How much it unfolds to is
counted before (pretrain.pickle_size).
"""

import pickle
import pickletools
import re
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.files import Failed, Missing
from pretrain.pickle_size import check_pickle

REMEDY = "nothing of it was executed; get the file from its publisher again, or save its arrays with numpy.savez"
REGISTRY_OPCODES = {"EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"}  # objects from elsewhere than the file


def load_pickle(path: Path, *, offset: int = 0) -> Any:
    """What the pickle (protocols 0–5, Python 2's too) that starts at byte `offset` of `path` holds.

    Of an object `.npy`: read its header with numpy.lib.format; the pickle starts where that stops.
    Raises Missing without a file; Failed when the pickle is damaged or needs more than numpy arrays and
    scalars (numbers, strings, objects; no fields), dicts, lists, tuples, sets, numbers, strings and bytes.
    """
    try:
        content = path.read_bytes()[offset:]
        for opcode, _, _ in pickletools.genops(content):
            if opcode.name in REGISTRY_OPCODES:
                raise Refused(f"an object of another program ({opcode.name})")
        check_pickle(BytesIO(content), size=len(content))
        return _plain(_Unpickler(BytesIO(content), encoding="latin1").load(), {})
    except FileNotFoundError:
        raise Missing(f"{path}: not there: complete the data, then run the same command again") from None
    except OSError as error:
        raise Failed(f"{path}: cannot be read ({error.strerror or error}): check the file and its rights") from error
    except Refused as error:
        raise Failed(f"{path}: this pickle asks for {error}: {REMEDY}") from error
    except Exception as error:  # damage shows as nearly any kind
        reason = " ".join(f"{error}".split())[:200] or type(error).__name__
        raise Failed(f"{path}: damaged, or not a pickle of arrays ({reason}): {REMEDY}") from error


class Refused(Exception):
    """Names what the pickle asked for."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # An exact match: protocol 4 would follow the dots of a name such as "ndarray.__reduce__".
        if (module, name) not in ADMITTED:
            raise Refused(f"{module}.{name}"[:200].encode("unicode_escape").decode())
        return ADMITTED[module, name]


class _Sealed:
    """An own class with its own __setstate__: a pickle can set no attribute of it, or of its class."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a state for what has none")


class _Type(_Sealed):
    """numpy.dtype: only its code and byte order are taken from the file, never flags or fields."""

    __slots__ = ("dtype",)
    dtype: np.dtype[Any]

    def __new__(cls, code: Any, *_: Any) -> "_Type":
        text = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(text, str):
            raise ValueError("a dtype without a code")
        if not re.fullmatch(r"[<>|=]?([biufcSUO]\d{1,9}|\?)", text):
            raise Refused(f"the dtype {text[:40]!r}")
        made = super().__new__(cls)
        made.dtype = np.dtype("O" if "O" in text else text)
        return made

    def __setstate__(self, state: Any) -> None:
        _, order, parts, names, fields, *_ = state
        if (parts, names, fields) != (None, None, None):
            raise Refused("a dtype with fields")
        if order in (">", b">"):
            self.dtype = self.dtype.newbyteorder(">")
        elif order in ("<", b"<"):
            self.dtype = self.dtype.newbyteorder("<")


class _Array(np.ndarray[Any, Any]):
    """An array while its file is read; _plain makes it a numpy.ndarray."""

    def __new__(cls, *_: Any) -> "_Array":
        return super().__new__(cls, (0,), np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        if not isinstance(shape, tuple) or not all(type(n) is int and 0 <= n < 2**48 for n in shape):
            raise ValueError("an array whose shape is no tuple of sizes")
        if not kind.dtype.hasobject:
            content = _octets(content)
        elif not isinstance(content, list) or len(content) != prod(shape):
            raise ValueError("not as many objects as its shape needs")
        super().__setstate__((1, shape, kind.dtype, bool(fortran), content))  # type: ignore[arg-type]


class _Reconstruct(_Sealed):
    def __new__(cls, kind: Any, *_: Any) -> Any:
        if kind is not _Array:
            raise Refused("an array of another class")
        return _Array()


class _FromBuffer(_Sealed):
    def __new__(cls, content: Any, kind: _Type, shape: Any, order: Any, axes: Any = None) -> Any:
        flat = np.frombuffer(content, dtype=kind.dtype)
        if order == "K" and axes is not None:
            return flat.reshape(shape, order="C").transpose(axes)
        return flat.reshape(shape, order=order)


class _Scalar(_Sealed):
    def __new__(cls, kind: _Type, content: Any) -> Any:
        if kind.dtype.hasobject:
            raise ValueError("bytes are no object")  # np.ndarray would follow them as an address
        return np.ndarray((), kind.dtype, buffer=_octets(content))[()]


class _Encode(_Sealed):
    """_codecs.encode, with which Python 3 writes bytes for Python 2."""

    def __new__(cls, text: str, encoding: str) -> Any:
        if encoding != "latin1":
            raise Refused("another encoding than latin1")
        return _octets(text)


class _Bytes(_Sealed):
    """bytes, with which Python 3 writes b"" for Python 2; bytes(n) would take any memory."""

    def __new__(cls) -> Any:
        return b""


def _octets(content: Any) -> bytes:
    # Python 2's strings of bytes come as text, by encoding="latin1".
    return content.encode("latin1") if isinstance(content, str) else memoryview(content).tobytes()


def _plain(value: Any, seen: dict[int, tuple[Any, Any]]) -> Any:
    """`value` with real arrays and dtypes. seen: id → (value, result), as values can be shared and hold themselves."""
    if id(value) in seen:
        return seen[id(value)][1]
    result = value
    if isinstance(value, _Type):
        return value.dtype
    if isinstance(value, tuple):
        result = tuple(_plain(item, seen) for item in value)
    elif isinstance(value, _Array):
        result = value.view(np.ndarray)
    seen[id(value)] = value, result  # value too: an id is another's once its object is gone
    if isinstance(result, dict):
        result.update({key: _plain(item, seen) for key, item in result.items()})
    elif isinstance(result, list):
        result[:] = [_plain(item, seen) for item in result]
    elif isinstance(result, np.ndarray) and result.dtype.hasobject:
        flat = result.reshape(-1, order="A")  # a view, as what was just read is contiguous
        for index in range(len(flat)):
            flat[index] = _plain(flat[index], seen)
    return result


ADMITTED: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _Encode,
    ("collections", "OrderedDict"): dict,
    ("builtins", "bytes"): _Bytes,
    ("__builtin__", "bytes"): _Bytes,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _Scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _FromBuffer for core in ("core", "_core")},
    **{(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in (set, frozenset, complex)},
}
