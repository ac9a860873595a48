"""One mask of VOC: what proves that its numbers are VOC's labels, and not those of another data set.

VOC's masks are PNGs with a palette, VOC's colour map. Grey ones of 8 bits are taken too, where 0–20 and 255 are all
they hold: that is how other tools keep VOC's labels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretrain.files import Failed

Bytes = NDArray[np.uint8]
REMEDY = "replace the mask"
IHDR_BITS = 24  # where a PNG says its bit depth


def colour_map() -> Bytes:
    """256×3: VOC's colours by label (VOCdevkit's VOClabelcolormap): bits 0–2 of a label, from the top of R, G, B on."""
    labels = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for place in range(8):
        for channel in range(3):
            colours[:, channel] |= ((labels >> (3 * place + channel) & 1) << (7 - place)).astype(np.uint8)
    return colours


COLOURS = colour_map()


def labels(image: Image.Image, path: Path, *, classes: Sequence[str], void: int) -> Bytes:
    """H×W labels of an opened PNG. `classes`: of the labels from 0 on.

    Raises Failed, naming the file, when they are not proven to be VOC's.
    """
    if image.mode == "P":
        found = np.array(image, dtype=np.uint8)
        _check_palette(found, image, path)
    elif image.mode in ("1", "L") and _bits(path) == 8:
        found = np.array(image, dtype=np.uint8)
    else:
        what = f"grey of {_bits(path)} bits, spread over 0–255" if image.mode in ("1", "L") else f"{image.mode} pixels"
        raise Failed(f"{path}: no labels but {what}; VOC's masks have a palette, or 8 bits of grey: {REMEDY}")
    odd = np.setdiff1d(np.unique(found), [*range(len(classes)), void])
    if odd.size:
        raise Failed(
            f"{path}: labels {_some(odd)} in the mask; only 0–{len(classes) - 1} and {void} are VOC's: {REMEDY}"
        )
    return found


def _check_palette(found: Bytes, image: Image.Image, path: Path) -> None:
    """Raise Failed unless the colours of the labels that are there are VOC's, or grey of the label's own value."""
    used = np.unique(found)
    palette = np.full((256, 3), -1, np.int64)
    listed = np.array(image.getpalette("RGB") or [], np.int64).reshape(-1, 3)
    palette[: len(listed)] = listed
    for known in (COLOURS, np.repeat(np.arange(256)[:, None], 3, axis=1)):
        if (palette[used] == known[used]).all():
            return
    wrong = next(label for label in used if (palette[label] != COLOURS[label]).any())
    raise Failed(
        f"{path}: label {wrong} has the colour {tuple(palette[wrong].tolist())}, in VOC's colour map "
        f"{tuple(COLOURS[wrong].tolist())}, so it is of another data set, or renumbered: {REMEDY}"
    )


def _bits(path: Path) -> int:
    """A PNG's bit depth: Pillow spreads less than 8 bits of grey over 0–255, and label 1 becomes another one."""
    with path.open("rb") as file:
        return file.read(IHDR_BITS + 1)[-1]


def _some(values: NDArray[np.generic]) -> str:
    shown = ", ".join(map(str, values[:8].tolist()))
    return f"[{shown}{', …' if len(values) > 8 else ''}]"
