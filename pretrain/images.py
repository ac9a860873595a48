"""A folder of images, decoded once into a uint8 store, and the batches made from it.

The store is N×256×256×3 uint8 on disk (shorter side 256, centre square; the paper does not say how
it resized). Crops, mirrors and the mean are applied to whole batches on the training device.
"""

import json
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pretrain.alexnet import CROP, mean_rgb
from pretrain.files import Failed, Missing, atomic, write_text
from pretrain.progress import log, progress
from pretrain.randomness import generator, shuffled

SIDE = 256
SUFFIXES = {".jpg", ".jpeg", ".png"}
AHEAD = 1024  # images decoded ahead of the disk at most: 200 MB


@dataclass(frozen=True)
class Store:
    """A decoded image folder: its pixels file, the number of images, what was skipped, its digest."""

    path: Path
    images: int
    skipped: int
    name: str
    sha256: str

    def pixels(self) -> Tensor:
        """N×256×256×3 uint8, mapped from disk."""
        array = np.memmap(self.path, np.uint8, mode="c", shape=(self.images, SIDE, SIDE, 3))
        return torch.from_numpy(array)


def find_images(folder: Path) -> list[Path]:
    """The images that pre-training may see in `folder`, sorted.

    Of a VOC year's folder (…/VOC2007) these are the ids of trainval, never the test set; the ids
    2007_* of VOC2012 are VOC2007 images, some of its test set, and are left out. Raises Missing
    when there is no image, or when part of a VOC tree is given, whose test images could not be told apart.
    """
    trainval = folder / "ImageSets" / "Main" / "trainval.txt"
    if trainval.is_file():
        ids = [line.split()[0] for line in trainval.read_text().splitlines() if line.strip()]
        found = [folder / "JPEGImages" / f"{name}.jpg" for name in ids if not name.startswith("2007_")]
    else:
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if any(p.parent.name == "JPEGImages" for p in found):
            raise Missing(
                f"{folder}: VOC images, but no ImageSets/Main/trainval.txt: give --images a VOC year's folder"
            )
    if not found:
        raise Missing(f"{folder}: no images here: give --images a folder of JPEG or PNG files, or a VOC year's folder")
    return found


def build_store(folders: Sequence[Path], cache: Path) -> Store:
    """Decode the images of `folders` into `cache`, or reuse what is there for the same files.

    Images that cannot be decoded whole are skipped, counted and reported. The cache's name follows
    from the files' names, sizes and times; it is written last-moment-atomically, so an interrupted
    build leaves nothing behind.
    """
    files = [(folder, path) for folder in folders for path in find_images(folder)]
    key = sha256(f"{SIDE}".encode())
    for folder, path in files:
        stat = path.stat() if path.exists() else None
        key.update(f"{path.relative_to(folder)} {stat and (stat.st_size, stat.st_mtime_ns)}\n".encode())
    index = cache / f"{key.hexdigest()[:16]}.json"
    pixels = index.with_suffix(".uint8")
    if store := _stored(index, pixels):
        return store
    store = _decode_all(files, pixels, name="+".join(_name(folder) for folder in folders))
    write_text(index, json.dumps({k: v for k, v in asdict(store).items() if k != "path"}))
    return store


def _stored(index: Path, pixels: Path) -> Store | None:
    """The store that is there; None when it is not there whole."""
    try:
        store = Store(path=pixels, **json.loads(index.read_text()))
        return store if pixels.stat().st_size == store.images * SIDE * SIDE * 3 else None
    except (OSError, ValueError, TypeError):
        return None


def _name(folder: Path) -> str:
    return folder.resolve().name


def _decode_all(files: list[tuple[Path, Path]], pixels: Path, *, name: str) -> Store:
    digest, kept, skipped = sha256(), 0, []
    with atomic(pixels) as temporary, temporary.open("wb") as out:
        decoded = _decoded([path for _, path in files])
        for (folder, path), data in zip(files, progress(decoded, "decode", total=len(files)), strict=True):
            if data is None:
                skipped.append(path)
                continue
            out.write(data)
            digest.update(f"{path.relative_to(folder).as_posix()} {sha256(data).hexdigest()}\n".encode())
            kept += 1
        if not kept:
            raise Missing(
                f"{files[0][0]}: none of its {len(files)} images can be decoded: give --images another folder"
            )
    for path in skipped[:10]:
        log(f"{path}: cannot be decoded, skipped")
    if skipped:
        log(f"{len(skipped)} of {len(files)} images skipped: they cannot be decoded")
    return Store(path=pixels, images=kept, skipped=len(skipped), name=name, sha256=digest.hexdigest())


def _decoded(paths: list[Path]) -> Iterator[bytes | None]:
    """What _decode gives for each path, in order, from all cores."""
    # Workers leave Ctrl-C to us.
    ignore = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(os.cpu_count(), initializer=signal.signal, initargs=ignore) as pool:
        try:
            for first in range(0, len(paths), AHEAD):
                yield from pool.map(_decode, paths[first : first + AHEAD], chunksize=16)
        except BrokenProcessPool as error:
            raise Failed(f"{paths[0].parent}: a decoding process was killed (out of memory?): run it again") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _decode(path: Path) -> bytes | None:
    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    width, height = rgb.size
    square = min(width, height)
    left, top = (width - square) / 2, (height - square) / 2
    box = (left, top, left + square, top + square)
    return rgb.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box).tobytes()


def batches(store: Store, *, batch: int, seed: int, start: int, stop: int, device: torch.device) -> Iterator[Tensor]:
    """Yield, for iterations `start` … `stop` - 1, batch×3×227×227 float32 on `device`.

    RGB, 0–255 minus the mean; every image once per pass, random crop, mirrored with chance 1/2.
    Batch i depends on (seed, i) alone. The next one's pixels are read while this one is used.
    """
    pixels = store.pixels()

    def read(iteration: int) -> Tensor:
        chosen = pixels[shuffled(store.images, batch=batch, seed=seed, iteration=iteration)]
        return chosen.pin_memory() if device.type == "cuda" else chosen

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(read, start)
        for iteration in range(start, stop):
            raw = ahead.result()
            if iteration + 1 < stop:
                ahead = pool.submit(read, iteration + 1)
            yield crop_and_mirror(raw.to(device, non_blocking=True), generator(seed, "crops", iteration, device=device))


def crop_and_mirror(raw: Tensor, random: torch.Generator, *, crop: int = CROP) -> Tensor:
    """N×H×W×3 uint8 → N×3×crop×crop float32 (channels last), RGB minus the mean."""
    count, height, width, _ = raw.shape
    device = raw.device
    draw = torch.rand(3, count, 1, generator=random, device=device)
    step = torch.arange(crop, device=device)
    rows = (draw[0] * (height - crop + 1)).long() + step
    columns = (draw[1] * (width - crop + 1)).long() + torch.where(draw[2] < 0.5, step, crop - 1 - step)
    image = torch.arange(count, device=device)[:, None, None]
    cropped = raw[image, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2).float() - mean_rgb(device)
