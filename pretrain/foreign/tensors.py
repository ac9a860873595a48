"""Weights files of other frameworks, as a flat dict of tensors: .pth, .pt, .npy, .npz, .pkl, .safetensors.

Nothing of a file is executed: torch.load with weights_only, numpy without pickles; an object `.npy` and a
`.pkl` go through pretrain.pickles, which rebuilds arrays and containers alone.
"""

import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from pretrain.contents import head_of, mistaken, printable
from pretrain.files import Failed, Missing
from pretrain.npy import check_zip, read_header, read_npz
from pretrain.pickle_size import check_pickle
from pretrain.pickles import load_pickle

READERS = ".caffemodel, .pth, .pt, .pth.tar, .npy, .npz, .pkl or .safetensors"
DEPTH = 16  # of nested containers
MOST = 100_000  # entries of all containers
STRETCHED = 2**20  # numbers of a view of fewer
LONGEST = 1_000  # characters of a key
LEGACY = 5  # pickles that torch's files before 1.6 begin with


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor in a file, in order, under the dotted path of its keys.

    Raises Missing when there is no file, and Failed, naming it, when it is of another format, cut off,
    asks for code to be run, or holds no tensors.
    """
    if path.is_dir():
        raise Failed(f"{path}: a folder: give a {READERS}")
    if not path.is_file():
        raise Missing(f"{path}: no such file: give a {READERS}")
    kind = path.suffix.lower()
    if kind not in READ:
        raise Failed(f"{path}: {kind or 'no suffix'}: not a format that can be read: give a {READERS}")
    if why := mistaken(head_of(path), kind):
        raise Failed(f"{path}: {why}")
    try:
        pairs = list(_flat(READ[kind](path)))
    except Failed:
        raise
    except pickle.UnpicklingError as error:
        raise Failed(
            f"{path}: holds more than tensors, which is never executed, or is damaged: save its state dict alone "
            "(torch.save(model.state_dict(), …)), where you trust the file"
        ) from error
    except Exception as error:  # damage shows as nearly any kind
        reason = re.split(r"[.:;(]\s", " ".join(f"{error}".split()))[0][:100] or type(error).__name__
        raise Failed(
            f"{path}: not a whole {kind} file of tensors ({reason}): obtain it again, or save its state dict alone"
        ) from error
    if not pairs:
        raise Failed(f"{path}: no tensors in it: give a file with conv1–conv5")
    if twice := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise Failed(f"{path}: two tensors come out as {twice[0]!r}: save its state dict alone")
    return dict(pairs)


def _torch(path: Path) -> Any:
    """What torch.load reads, once its pickles are known to be bounded."""
    if head_of(path).startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            check_zip(archive)
            for entry in archive.infolist():
                if entry.filename.endswith(".pkl"):
                    _bounded(BytesIO(archive.read(entry)), entry.file_size, 1)
    else:
        with path.open("rb") as file:
            _bounded(file, path.stat().st_size, LEGACY)
    with warnings.catch_warnings(action="ignore"):  # of TorchScript archives, which are then refused
        return torch.load(path, map_location="cpu", weights_only=True)


def _bounded(file: IO[bytes], size: int, streams: int) -> None:
    """Raise ValueError where a pickle of torch unfolds to more than it holds, or asks for memory by number."""
    asked = check_pickle(file, size=size, streams=streams)
    if sized := {"builtins bytearray", "__builtin__ bytearray"} & asked:
        raise ValueError(f"asks for {min(sized)}")


def _npy(path: Path) -> Any:
    """An array, mapped (so that no memory is set aside for a shape that lies), or what the pickle in it holds."""
    with path.open("rb") as file:
        if read_header(file, size=path.stat().st_size).hasobject:
            return load_pickle(path, offset=file.tell())
    return np.load(path, mmap_mode="r", allow_pickle=False)


READ: dict[str, Callable[[Path], Any]] = {
    ".pth": _torch, ".pt": _torch, ".tar": _torch, ".npy": _npy, ".npz": read_npz, ".pkl": load_pickle,
    ".safetensors": load_file,
}  # fmt: skip


def _flat(value: Any, place: str = "", depth: int = 0, seen: list[int] | None = None) -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested dicts, lists and object arrays, with their keys joined by dots."""
    seen = [] if seen is None else seen
    seen.append(depth)
    if depth > DEPTH or len(seen) > MOST:  # what is shared is reached on every way
        raise ValueError(f"containers nested deeper than {DEPTH}, or more than {MOST:,} entries")
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        value = value.item() if value.ndim == 0 else list(value)
    if isinstance(value, Mapping):
        items = [(_key(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        items = []
        if isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu":
            yield place, _owned(place, value.detach())
        elif isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
            yield place, torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
    for key, item in items:
        yield from _flat(item, f"{place}.{key}" if place else key, depth + 1, seen)


def _key(key: Any) -> str:
    return printable((key.decode("latin1") if isinstance(key, bytes) else str(key))[:LONGEST])


def _owned(place: str, tensor: Tensor) -> Tensor:
    """A tensor that does not stretch few numbers over a shape of many. Raises ValueError."""
    held = tensor.untyped_storage().nbytes() // tensor.element_size()
    if tensor.numel() > max(held, STRETCHED):
        raise ValueError(f"{place[:LONGEST]} shows {tensor.numel():,} numbers and holds {held:,}")
    return tensor
