"""Files decoded once into squares of uint8 pixels on disk, which batches are then read from.

A store is three files: N×side×side×3 uint8, which file each square came from, and an index that says
that the other two are whole.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pretrain import Dataset
from pretrain.files import Missing, atomic, write_text
from pretrain.locks import locked
from pretrain.progress import log, progress
from pretrain.workers import processes

AHEAD = 1024  # files decoded ahead of the disk at most: 200 MB of stills
VERSION = 2

File = tuple[Path, Path]  # the folder that was given, and a file in it
# A file → its squares (side×side×3 bytes each), or in a few words why there are none.
Decode = Callable[[Path], list[bytes] | str]


@dataclass(frozen=True)
class Store:
    """Decoded files: where the pixels are, how many squares of which side, how many files gave none, their digest."""

    path: Path
    images: int
    side: int
    skipped: int
    name: str
    sha256: str

    def pixels(self) -> Tensor:
        """N×side×side×3 uint8, mapped from disk."""
        shape = (self.images, self.side, self.side, 3)
        return torch.from_numpy(np.memmap(self.path, np.uint8, mode="c", shape=shape))

    def owners(self) -> Tensor:
        """N int64: the number of the file that each square came from."""
        return torch.from_numpy(np.fromfile(_owners(self.path), np.int32).astype(np.int64))

    @property
    def record(self) -> dict[str, Any]:
        """What an encoder's provenance says of it."""
        return {"name": self.name, "images": self.images, "skipped": self.skipped, "sha256": self.sha256}


@dataclass(frozen=True)
class Source:
    """Files that were found and checked as far as can be done without decoding them.

    `kind` is part of a row's name: "" where the data is of the kind that the row stands for, otherwise
    what it is instead ("synthetic": motion made from stills). `supervision` is what the table says of
    it. `data` makes batches of the store that `decode` makes of the files, as `how` names.
    """

    files: Sequence[File]
    supervision: str
    data: Callable[[Store], Dataset]
    decode: Decode
    side: int
    how: str
    kind: str = ""

    def open(self, cache: Path) -> Dataset:
        """Decode the files into `cache`, or reuse what is there. Raises what build_store raises."""
        return self.data(build_store(self.files, cache, side=self.side, how=self.how, decode=self.decode))

    def opened(self, cache: Path) -> Dataset | None:
        """The same if it is there already, else None."""
        store = stored(self.files, cache, side=self.side, how=self.how)
        return self.data(store) if store else None


def stored(files: Sequence[File], cache: Path, *, side: int, how: str) -> Store | None:
    """The store of these files, decoded in the way that `how` names, if it is there whole."""
    index = _index(files, cache, side=side, how=how)
    pixels = index.with_suffix(".uint8")
    try:
        store = Store(path=pixels, **json.loads(index.read_text()))
        sizes = pixels.stat().st_size, _owners(pixels).stat().st_size
        return store if sizes == (store.images * side * side * 3, store.images * 4) else None
    except (OSError, ValueError, TypeError):
        return None


def build_store(files: Sequence[File], cache: Path, *, side: int, how: str, decode: Decode) -> Store:
    """Decode `files` into `cache`, or reuse what is there for the same files.

    Files that give no square are skipped, counted and reported. The store's name follows from the
    files' names, sizes and times; its index is written last, so an interrupted build leaves nothing
    behind that could be taken for a store. Raises Missing when not one file can be used.
    """
    index = _index(files, cache, side=side, how=how)
    with locked(index.with_suffix(".lock")):  # whoever comes second finds the store of the first
        if store := stored(files, cache, side=side, how=how):
            return store
        store = _decode_all(files, index.with_suffix(".uint8"), side=side, decode=decode)
        write_text(index, json.dumps({k: v for k, v in asdict(store).items() if k != "path"}))
    return store


def _index(files: Sequence[File], cache: Path, *, side: int, how: str) -> Path:
    key = sha256(f"{VERSION} {side} {how}\n".encode())
    for folder, path in files:
        stat = path.stat() if path.exists() else None
        key.update(f"{path.relative_to(folder)} {stat and (stat.st_size, stat.st_mtime_ns)}\n".encode())
    return cache / f"{key.hexdigest()[:16]}.json"


def _owners(pixels: Path) -> Path:
    return pixels.with_suffix(".int32")


def _decode_all(files: Sequence[File], pixels: Path, *, side: int, decode: Decode) -> Store:
    digest, owners, skipped = sha256(), [], list[tuple[Path, str]]()
    with atomic(pixels) as temporary, temporary.open("wb") as out:
        decoded = _decoded([path for _, path in files], decode)
        for number, squares in enumerate(progress(decoded, "decode", total=len(files))):
            folder, path = files[number]
            if isinstance(squares, str) or not squares:
                skipped.append((path, str(squares or "nothing in it")))
                continue
            for data in squares:
                out.write(data)
                digest.update(f"{path.relative_to(folder).as_posix()} {sha256(data).hexdigest()}\n".encode())
                owners.append(number)
        if not owners:
            reason = f"not one of {len(files)} files can be used ({skipped[0][0]}: {skipped[0][1]})"
            raise Missing(f"{files[0][0]}: {reason}: give another folder")
    with atomic(_owners(pixels)) as temporary:
        np.array(owners, np.int32).tofile(temporary)
    _report(skipped, len(files))
    name = "+".join(dict.fromkeys(folder.resolve().name for folder, _ in files))
    return Store(pixels, len(owners), side, len(skipped), name, digest.hexdigest())


def _report(skipped: Sequence[tuple[Path, str]], files: int) -> None:
    for path, why in skipped[:10]:
        log(f"{path}: {why}, skipped")
    if skipped:
        reasons = ", ".join(f"{why} ({number})" for why, number in Counter(why for _, why in skipped).most_common())
        log(f"{len(skipped)} of {files} files skipped: {reasons}")


def _decoded(paths: Sequence[Path], decode: Decode) -> Iterator[list[bytes] | str]:
    """What `decode` gives for each path, in order, from all cores."""
    with processes(f"{paths[0].parent}: a decoding") as pool:
        chunk = max(1, min(16, len(paths) // (4 * (os.cpu_count() or 1))))
        for first in range(0, len(paths), AHEAD):
            yield from pool.map(decode, paths[first : first + AHEAD], chunksize=chunk)


def open_image(path: Path) -> Image.Image | str:
    """The image as RGB, or why it cannot be had."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return "cannot be decoded"


def centre_square(image: Image.Image, side: int) -> bytes:
    """The square of the shorter side in the middle of an RGB image, resized to side×side×3 bytes."""
    width, height = image.size
    square = min(width, height)
    left, top = (width - square) / 2, (height - square) / 2
    box = (left, top, left + square, top + square)
    return image.resize((side, side), Image.Resampling.BILINEAR, box=box).tobytes()
