"""The images and labels that probes read: VOC07, one square of pixels an image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretrain.workers import threads
from transfer import Data, voc
from transfer import Recipe as BaseRecipe
from transfer.ranking import Labels

CHUNK = 50  # images in memory at once, and in the network


@dataclass(frozen=True, kw_only=True)
class Recipe(BaseRecipe):
    """Which images, how large, and how many numbers a layer is averaged down to."""

    year: str = "VOC2007"
    train_split: str = "trainval"
    test_split: str = "test"
    train_images: int | None = None  # None: all; else that many, evenly spaced
    test_images: int | None = None
    side: int = 227
    numbers: int = 9000  # about; see features.averaged
    version: int = 1  # of this code: raised with any change that gives other numbers


SIZES: dict[str, dict[str, int | None]] = {
    "paper": {},
    "quick": {"train_images": 1600, "test_images": 500},  # classification's
    "tiny": {},
}


@dataclass(frozen=True)
class Split:
    """The images of one split and their labels (images×20; see voc.presence)."""

    paths: list[Path]
    labels: Labels


def splits(recipe: Recipe, devkit: Path) -> tuple[Split, Split]:
    """The training and the test images."""
    year = devkit / recipe.year
    found = []
    for ids in _ids(recipe, year):
        labels = voc.presence(voc.read_annotation(voc.annotation_path(year, name)) for name in ids)
        found.append(Split([voc.image_path(year, name) for name in ids], labels))
    return found[0], found[1]


def _ids(recipe: Recipe, year: Path) -> tuple[list[str], list[str]]:
    train = voc.at_most(voc.image_set(year, "Main", recipe.train_split), recipe.train_images)
    return train, voc.at_most(voc.image_set(year, "Main", recipe.test_split), recipe.test_images)


def data(recipe: Recipe, devkit: Path) -> Data:
    """Digest the lists, images and XML of both splits. Raises Missing, naming what is not there."""
    train, test = _ids(recipe, devkit / recipe.year)
    return voc.labelled(devkit, recipe.year, train=(recipe.train_split, train), test=(recipe.test_split, test))


def square(pixels: voc.Bytes, side: int) -> voc.Bytes:
    """H×W×3 → side×side×3: the whole image, its aspect lost, so that every labelled object stays in it.

    Paper, released code (VOC07 configs: scale, global_resize to 227) and VISSL do the same; we antialias.
    """
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR), dtype=np.uint8)


def squares(paths: Sequence[Path], side: int) -> Iterator[NDArray[np.uint8]]:
    """Chunks of at most CHUNK×side×side×3, in the order of `paths`. Raises Missing or Failed, naming the file."""
    with threads(2) as pool:
        for start in range(0, len(paths), CHUNK):
            read = pool.map(lambda path: square(voc.read_image(path), side), paths[start : start + CHUNK])
            yield np.stack(list(read))
