"""Arrays as text in a result file: a compressed .npz in base64, read within bounds and without a pickle."""

import base64
import io
import math
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.npy import check_zip

MOST = 256 * 2**20  # bytes unpacked; full VOC07's, of any task, have under 20 MB
# What numpy writes before an array of numbers. Its own reader would build whatever type a header describes.
HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(?s:..)\{'descr': '([<|][biuf][1248])', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,12},? ?){0,4})\), \} *\n"
)


def packed(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Arrays as text: the same text for the same arrays."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub takes a name for its own option
    return base64.b64encode(buffer.getvalue()).decode()


def unpacked(text: str) -> dict[str, NDArray[Any]]:
    """What `packed` packed. Raises ValueError when it is damaged, unpacks to more than MOST or holds anything else."""
    try:
        with zipfile.ZipFile(io.BytesIO(base64.b64decode(text, validate=True))) as file:
            check_zip(file, most=MOST)
            return {one.filename.removesuffix(".npy"): _array(file.read(one)) for one in file.infolist()}
    except Exception as error:  # zipfile, zlib and numpy raise many kinds
        raise ValueError(f"damaged per-image scores ({error})") from error


def _array(content: bytes) -> NDArray[Any]:
    found = HEADER.match(content)
    if found is None:
        raise ValueError("no array of numbers")
    kind = np.dtype(found[1].decode())
    shape = tuple(int(side) for side in re.findall(rb"\d+", found[3]))
    if math.prod(shape) * kind.itemsize != len(content) - found.end():
        raise ValueError(f"{len(content) - found.end()} bytes for {shape} of {kind}")
    flat: NDArray[Any] = np.frombuffer(content, kind, offset=found.end())
    return flat.reshape(shape[::-1]).T if found[2] == b"True" else flat.reshape(shape)
