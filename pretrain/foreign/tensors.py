"""Weights files of other frameworks, as a flat dict of tensors: .pth, .pt, .npy, .npz, .pkl, .safetensors.

Nothing of a file is executed: torch.load with weights_only, numpy without pickles; an object `.npy` and a
`.pkl` go through pretrain.pickles, which rebuilds arrays and containers alone.
"""

import pickle
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from safetensors.torch import load_file
from torch import Tensor

from pretrain.files import Failed, Missing
from pretrain.pickles import load_pickle

READERS = ".caffemodel, .pth, .pt, .pth.tar, .npy, .npz, .pkl or .safetensors"
DEPTH = 16  # of nested containers
LARGEST = 2**32  # bytes of an .npz when unpacked: a small file can claim to hold any amount


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
    with warnings.catch_warnings(action="ignore"):  # of TorchScript archives, which are then refused
        return torch.load(path, map_location="cpu", weights_only=True)


def _npy(path: Path) -> Any:
    """An array, mapped (so that no memory is set aside for a shape that lies), or what the pickle in it holds."""
    with path.open("rb") as file:
        version = npy.read_magic(file)
        header = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)
        if header[2].hasobject:
            return load_pickle(path, offset=file.tell())
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _npz(path: Path) -> Any:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:  # numpy leaves a bad file open
        if sum(entry.file_size for entry in archive.zip.infolist()) > LARGEST:
            raise ValueError(f"more than {LARGEST:,} bytes when unpacked")
        return {name: archive[name] for name in archive.files}


READ: dict[str, Callable[[Path], Any]] = {
    ".pth": _torch, ".pt": _torch, ".tar": _torch, ".npy": _npy, ".npz": _npz, ".pkl": load_pickle,
    ".safetensors": load_file,
}  # fmt: skip


def _flat(value: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested dicts, lists and object arrays, with their keys joined by dots."""
    if depth > DEPTH:
        raise ValueError(f"containers nested deeper than {DEPTH}")
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        value = value.item() if value.ndim == 0 else list(value)
    if isinstance(value, Mapping):
        items = [(key.decode("latin1") if isinstance(key, bytes) else str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        items = []
        if isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu":
            yield place, value.detach()
        elif isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
            yield place, torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
    for key, item in items:
        yield from _flat(item, f"{place}.{key}" if place else key, depth + 1)
