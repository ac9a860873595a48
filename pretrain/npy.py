"""Array files of others, or damaged: a header is matched with a pattern before numpy evaluates it.

numpy reads a `.npy` header as a Python expression and builds any dtype that it names: a few nested brackets
keep the parser busy for ever. What numpy.save writes of plain arrays has one form.
"""

import re
import zipfile
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

LONGEST = 10_000  # characters of a header
LARGEST = 2**32  # bytes of an .npz when unpacked: a small file can claim to hold any amount
HEADER = re.compile(
    r"\s*\{\s*'descr':\s*'([<>|=]?[A-Za-z?]\d{0,9})',\s*'fortran_order':\s*(True|False),\s*"
    r"'shape':\s*\(((?:\d{1,19}L?,\s*){0,64}(?:\d{1,19}L?)?)\),?\s*\}\s*"
)


def read_header(file: IO[bytes], *, size: int) -> np.dtype[Any]:
    """The dtype of the `.npy` that `file` is at the start of, which is left where the array begins.

    `size`: how many bytes there are. Raises ValueError for anything but the header of a plain array that fits.
    """
    begin = file.tell()
    version = npy.read_magic(file)
    width = 2 if version == (1, 0) else 4
    length = int.from_bytes(file.read(width), "little")
    text = file.read(min(length, LONGEST + 1)).decode("latin1")
    match = HEADER.fullmatch(text) if len(text) == length <= LONGEST else None
    if match is None:
        raise ValueError("its header is not that of a plain array")
    kind, shape = np.dtype(match[1]), [int(number) for number in re.findall(r"\d+", match[3])]
    if not kind.hasobject and prod(shape) * kind.itemsize > size - (file.tell() - begin):
        raise ValueError(f"its header claims {prod(shape):,} numbers, more than it holds")
    return kind


def check_zip(archive: zipfile.ZipFile, *, most: int | None = None) -> None:
    """Raise ValueError where a zip unpacks to more than `most` (LARGEST) bytes, or in a way that has no bound."""
    entries, most = archive.infolist(), LARGEST if most is None else most
    if sum(entry.file_size for entry in entries) > most:
        raise ValueError(f"more than {most:,} bytes when unpacked")
    if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in entries):
        raise ValueError("in another packing than stored or deflated")


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz` file by name. Raises Exceptions of many kinds, all for damage or for too much."""
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        check_zip(archive)
        found = {}
        for entry in archive.infolist():
            with archive.open(entry) as member:
                if read_header(member, size=entry.file_size).hasobject:
                    raise ValueError(f"{entry.filename} holds objects")
            with archive.open(entry) as member:
                found[entry.filename.removesuffix(".npy")] = npy.read_array(member, allow_pickle=False)
        return found
