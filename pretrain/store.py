"""Files decoded once into squares of uint8 pixels on disk, which batches are then read from.

A store is three files: N×side×side×3 uint8, which file each square came from, and an index that says
that the other two are whole.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pretrain import Dataset
from pretrain.files import Missing, atomic, write_text
from pretrain.listing import printable
from pretrain.locks import locked
from pretrain.progress import log, progress
from pretrain.workers import processes

AHEAD = 1024  # files decoded ahead of the disk at most: 200 MB of stills
VERSION = 3  # 2: 16-bit grey was clipped, alpha ignored; stores were known by names, sizes and times alone
WHOLE = 1 << 26  # bytes of files that are read as a whole to know a store by; of more a sample is
SAMPLED, PIECES, PIECE = 1024, 4, 1 << 14  # files of the sample; pieces of each, of this many bytes

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
    it. `data` makes batches of the store that `decode` makes of the files, as `how` names. `notes`: lines to
    log about what lay beside the files and was not looked at.
    """

    files: Sequence[File]
    supervision: str
    data: Callable[[Store], Dataset]
    decode: Decode
    side: int
    how: str
    kind: str = ""
    notes: Sequence[str] = ()

    def open(self, cache: Path) -> Dataset:
        """Decode the files into `cache`, or reuse what is there; log `notes`. Raises what build_store raises."""
        for line in self.notes:
            log(line)
        return self.data(build_store(self.files, cache, side=self.side, how=self.how, decode=self.decode))

    def opened(self, cache: Path) -> Dataset | None:
        """The same if it is there already, else None."""
        store = stored(self.files, cache, side=self.side, how=self.how)
        return self.data(store) if store else None


def stored(files: Sequence[File], cache: Path, *, side: int, how: str) -> Store | None:
    """The store of these files, decoded in the way that `how` names, if it is there whole."""
    return _stored(_index(files, cache, side=side, how=how), files, side=side)


def _stored(index: Path, files: Sequence[File], *, side: int) -> Store | None:
    pixels = index.with_suffix(".uint8")
    try:
        store = Store(path=pixels, **json.loads(index.read_text()) | {"name": _name(files)})
        sizes = pixels.stat().st_size, _owners(pixels).stat().st_size
        whole = _plausible(store, len(files)) and sizes == (store.images * side * side * 3, store.images * 4)
        return store if whole and 0 <= store.owners().min() <= store.owners().max() < len(files) else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _plausible(store: Store, files: int) -> bool:
    """Whether what an index says could be true of so many files."""
    counts = (store.images, store.side, store.skipped)
    numbers = all(type(count) is int and count >= 0 for count in counts) and store.images > 0
    return numbers and store.skipped <= files and isinstance(store.sha256, str)


def _name(files: Sequence[File]) -> str:
    """What the provenance calls them: the folders that were given."""
    return "+".join(dict.fromkeys(printable(folder.resolve().name) for folder, _ in files))


def build_store(files: Sequence[File], cache: Path, *, side: int, how: str, decode: Decode) -> Store:
    """Decode `files` into `cache`, or reuse what is there for the same files.

    Files that give no square are skipped, counted and reported. The store's name follows from the
    files' names, sizes, times and a sample of what is in them (all of it where it is little), so that a
    copy elsewhere finds it and no other folder does. Its index is written last, so an interrupted build
    leaves nothing behind that could be taken for a store. Raises Missing when not one file can be used.
    """
    index = _index(files, cache, side=side, how=how)
    with locked(index.with_suffix(".lock")):  # whoever comes second finds the store of the first
        if store := _stored(index, files, side=side):
            return store
        store = _decode_all(files, index.with_suffix(".uint8"), side=side, decode=decode)
        write_text(index, json.dumps({k: v for k, v in asdict(store).items() if k != "path"}))
    return store


def _index(files: Sequence[File], cache: Path, *, side: int, how: str) -> Path:
    key, sizes = sha256(f"{VERSION} {side} {how}\n".encode()), list[int]()
    for folder, path in files:
        found = _stat(path)
        sizes.append(found.st_size if found else 0)
        key.update(os.fsencode(path.relative_to(folder)) + b"\0")
        key.update(f"{found and (found.st_size, found.st_mtime_ns)}\n".encode())
    whole = sum(sizes) <= WHOLE
    for number in range(0, len(files), 1 if whole else math.ceil(len(files) / SAMPLED)):
        key.update(_content(files[number][1], sizes[number], whole=whole))
    return cache / f"{key.hexdigest()[:16]}.json"


def _stat(path: Path) -> os.stat_result | None:
    """That of a regular file, else None."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found if S_ISREG(found.st_mode) else None


def _content(path: Path, size: int, *, whole: bool) -> bytes:
    """The sha256 of a file, or of a few pieces of it; empty where it cannot be read."""
    if _stat(path) is None:
        return b""
    try:
        with path.open("rb") as file:
            if whole or size <= PIECES * PIECE:
                return file_digest(file, "sha256").digest()
            digest = sha256()
            for piece in range(PIECES):
                file.seek(piece * (size - PIECE) // (PIECES - 1))
                digest.update(file.read(PIECE))
            return digest.digest()
    except OSError:
        return b""


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
                digest.update(os.fsencode(path.relative_to(folder)) + f" {sha256(data).hexdigest()}\n".encode())
                owners.append(number)
        if not owners:
            reason = f"not one of {len(files)} files can be used ({printable(skipped[0][0])}: {skipped[0][1]})"
            raise Missing(f"{printable(files[0][0])}: {reason}: give another folder")
    with atomic(_owners(pixels)) as temporary:
        np.array(owners, np.int32).tofile(temporary)
    _report(skipped, len(files))
    return Store(pixels, len(owners), side, len(skipped), _name(files), digest.hexdigest())


def _report(skipped: Sequence[tuple[Path, str]], files: int) -> None:
    for path, why in skipped[:10]:
        log(f"{printable(path)}: {why}, skipped")
    if skipped:
        reasons = ", ".join(f"{why} ({number})" for why, number in Counter(why for _, why in skipped).most_common())
        log(f"{len(skipped)} of {files} files skipped: {reasons}")


def _decoded(paths: Sequence[Path], decode: Decode) -> Iterator[list[bytes] | str]:
    """What `decode` gives for each path, in order, from all cores."""
    with processes(f"{paths[0].parent}: a decoding") as pool:
        chunk = max(1, min(16, len(paths) // (4 * (os.cpu_count() or 1))))
        for first in range(0, len(paths), AHEAD):
            yield from pool.map(decode, paths[first : first + AHEAD], chunksize=chunk)


def centre_square(image: Image.Image, side: int) -> bytes:
    """The square of the shorter side in the middle of an RGB image, resized to side×side×3 bytes."""
    width, height = image.size
    square = min(width, height)
    left, top = (width - square) / 2, (height - square) / 2
    box = (left, top, left + square, top + square)
    return image.resize((side, side), Image.Resampling.BILINEAR, box=box).tobytes()
