"""Still images, for the methods that need nothing else, and the batches made from any data.

The store is N×256×256×3 uint8 (shorter side 256, centre square; the paper does not say how it
resized). Crops, mirrors and the mean are applied to whole batches on the training device.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain import Dataset, Folders
from pretrain.alexnet import CROP, mean_rgb
from pretrain.files import Failed, Missing
from pretrain.listing import Listing, junk, printable, read_text, real_folder, walk
from pretrain.pixels import SUFFIXES, open_image
from pretrain.randomness import ALONE, Draw, Shard, generator, shuffled
from pretrain.store import File, Source, Store, centre_square

SIDE = 256
HELD_OUT = 20  # one item in so many is not trained on, where the head is scored


@dataclass(frozen=True)
class Found:
    """Images, and the lines to log about what beside them was not looked at."""

    files: tuple[File, ...]
    notes: tuple[str, ...] = ()


def list_images(folder: Path) -> Listing:
    """The images that pre-training may see in `folder`, sorted, and what was not looked at.

    Of a VOC year's folder (…/VOC2007) these are the ids of trainval, never the test set; the ids
    2007_* of VOC2012 are VOC2007 images, some of its test set, and are left out. Raises Missing
    when there is no image, or when part of a VOC tree is given, whose test images could not be told apart.
    """
    trainval = real_folder(folder, remedy="give --images another folder") / "ImageSets" / "Main" / "trainval.txt"
    if trainval.is_file():
        ids = _ids(folder / "ImageSets" / "Main" / "trainval.txt")
        listing = Listing(tuple(folder / "JPEGImages" / f"{i}.jpg" for i in ids if not i.startswith("2007_")))
    else:
        listing = walk(folder, SUFFIXES)
        if any(_of_voc(inside) for inside in {path.parent for path in listing.files}):
            raise Missing(
                f"{printable(folder)}: VOC images, but no ImageSets/Main/trainval.txt: "
                "give --images a VOC year's folder"
            )
    if not listing.files:
        beside = f" (not looked at: {listing.report()})" if listing.unread else ""
        raise Missing(
            f"{printable(folder)}: no images here{beside}: give --images a folder of JPEG, PNG, WebP, TIFF, BMP, "
            "PNM or GIF files, or a VOC year's folder"
        )
    return listing


def _ids(path: Path) -> list[str]:
    """The first word of each line. Raises Failed where one cannot be an image's id, and as read_text does."""
    ids = [line.split()[0] for line in read_text(path).splitlines() if line.strip()]
    if odd := next((i for i in ids if "/" in i or junk(i)), None):
        raise Failed(f"{printable(path)}: {printable(odd)}: not the id of an image: correct the list")
    return ids


def _of_voc(folder: Path) -> bool:
    """Whether this is a VOC year's folder of images, by its own name or that of what it links to."""
    return "jpegimages" in (folder.name.lower(), folder.resolve().name.lower())


def find_all(folders: Sequence[Path]) -> list[File]:
    """The images of all folders. Raises Missing as list_images does, and when no folder is given."""
    return list(find_noted(folders).files)


def find_noted(folders: Sequence[Path]) -> Found:
    """The same, with the lines to log."""
    if not folders:
        raise Missing("no folder of images: give --images DIR")
    listings = [(folder, list_images(folder)) for folder in folders]
    files = tuple((folder, path) for folder, listing in listings for path in listing.files)
    return Found(files, tuple(line for folder, listing in listings for line in listing.notes(folder)))


def decode(path: Path) -> list[bytes] | str:
    """One square of SIDE."""
    image = open_image(path)
    return image if isinstance(image, str) else [centre_square(image, SIDE)]


def stills(found: Found, supervision: str, data: Callable[[Store], Dataset], *, kind: str = "") -> Source:
    """The source that is decoded to centre squares of SIDE."""
    return Source(found.files, supervision, data, decode, SIDE, "stills", kind, found.notes)


def still_images(folders: Folders, *, supervision: str) -> Source:
    """The source of the methods that need images and nothing else. Raises Missing when there are none."""
    return stills(find_noted(folders.images), supervision, Images)


class Images:
    """A store of stills, as a Dataset whose batches are crops: N×3×227×227, RGB minus the mean."""

    def __init__(self, store: Store) -> None:
        self.store, self.record, self.pixels = store, store.record, store.pixels()
        self.train, self.held_out = torch.arange(store.images), torch.arange(0)

    def read(self, items: Tensor) -> tuple[Tensor, ...]:
        """N×256×256×3 uint8."""
        return (self.pixels[items],)

    def batch(self, raw: tuple[Tensor, ...], draw: Draw, *, held_out: bool = False) -> Any:
        """Random crops, mirrored with chance 1/2; of held-out images the centre."""
        return centre_crop(raw[0]) if held_out else crop_and_mirror(raw[0], draw)


def batches(
    data: Dataset, *, batch: int, seed: int, start: int, stop: int, device: torch.device, shard: Shard = ALONE
) -> Iterator[Any]:
    """Yield this process's part of the batches of iterations `start` … `stop` - 1, on `device`.

    Every item comes once per pass. Batch i depends on (seed, i) alone. The next one is read while
    this one is used.
    """

    def read(iteration: int) -> tuple[Tensor, ...]:
        places = shuffled(len(data.train), batch=batch, seed=seed, iteration=iteration)
        chosen = data.read(data.train[shard.own(places)])
        return tuple(part.pin_memory() for part in chosen) if device.type == "cuda" else chosen

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(read, start)
        for iteration in range(start, stop):
            raw = ahead.result()
            if iteration + 1 < stop:
                ahead = pool.submit(read, iteration + 1)
            random = generator(seed, "crops", iteration, device=device)
            yield data.batch(tuple(part.to(device, non_blocking=True) for part in raw), Draw(random, shard))


def held_out_batches(data: Dataset, *, batch: int, device: torch.device) -> Iterator[tuple[float, Any]]:
    """Yield the held-out items as batches of about the same size and at most `batch`, the same ones each time.

    With each the share that it has of them all.
    """
    parts = data.held_out.tensor_split(math.ceil(len(data.held_out) / batch)) if len(data.held_out) else ()
    for number, items in enumerate(parts):
        draw = Draw(generator(0, "held out", number, device=device))
        found = data.batch(tuple(part.to(device) for part in data.read(items)), draw, held_out=True)
        yield len(items) / len(data.held_out), found


def split(items: int, *, every: int = HELD_OUT) -> tuple[Tensor, Tensor]:
    """Items to train on and items held out: one in `every`, evenly spaced."""
    number = torch.arange(items)
    held = number % every == every - 1
    return number[~held], number[held]


def last_groups(groups: Tensor, *, least: int = 1) -> tuple[Tensor, Tensor]:
    """N group numbers → items to train on, and those of the last tenth of the groups.

    That is `least` groups at least, and none where there are fewer than twice as many.
    """
    numbers, items = sorted(set(groups.tolist())), torch.arange(len(groups))
    count = max(least, math.ceil(len(numbers) / 10)) if len(numbers) >= 2 * least else 0
    aside = torch.isin(groups, torch.tensor(numbers[len(numbers) - count :], dtype=groups.dtype))
    return items[~aside], items[aside]


def centre_crop(raw: Tensor, *, crop: int = CROP) -> Tensor:
    """N×H×W×3 uint8 → N×3×crop×crop float32 (channels last), RGB minus the mean."""
    top, left = (raw.shape[1] - crop) // 2, (raw.shape[2] - crop) // 2
    return as_input(raw[:, top : top + crop, left : left + crop])


def as_input(pixels: Tensor) -> Tensor:
    """N×H×W×3 uint8 → N×3×H×W float32 (channels last), RGB minus the mean."""
    return pixels.permute(0, 3, 1, 2).float() - mean_rgb(pixels.device)


def crop_and_mirror(raw: Tensor, draw: Draw, *, crop: int = CROP) -> Tensor:
    """N×H×W×3 uint8 → N×3×crop×crop float32 (channels last), RGB minus the mean, mirrored with chance 1/2."""
    count, height, width, _ = raw.shape
    device = raw.device
    drawn = draw.rand(count, 3)[:, :, None]
    step = torch.arange(crop, device=device)
    rows = (drawn[:, 0] * (height - crop + 1)).long() + step
    columns = (drawn[:, 1] * (width - crop + 1)).long() + torch.where(drawn[:, 2] < 0.5, step, crop - 1 - step)
    image = torch.arange(count, device=device)[:, None, None]
    return as_input(raw[image, rows[:, :, None], columns[:, None, :]])
