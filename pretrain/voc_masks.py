"""VOC's masks: palette images of 8 bits, whose colours prove that their labels are VOC's."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretrain.files import Failed
from pretrain.listing import printable
from pretrain.pixels import LARGEST

CLASSES, VOID = 20, 255  # classes beside background, 0; the border label, ignored everywhere
OBJECTS = 64  # more than in any image of VOC
REPLACE = "replace it with VOC's own file"

Labels = NDArray[np.uint8]  # H×W


def read_labels(path: Path) -> Labels:
    """H×W uint8: the labels of a mask, 0 background, 255 void.

    VOC's are palette images with VOC's colours; grey ones of 8 bits, which tools derive from them, count too.
    Raises Failed when the file is damaged, or of another kind: in colours, of 1 or 16 bits, with other colours.
    """
    try:
        if not path.is_file():
            raise OSError("not a file" if path.exists() else "not there")
        with Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > LARGEST:
                raise ValueError(f"more than {LARGEST:,} pixels")
            image.load()
            mode, palette = image.mode, image.getpalette() or []
            labels = np.array(image)
    except Exception as error:  # decoders raise anything on damaged files
        reason = printable(str(error))
        raise Failed(f"{printable(path)}: corrupt or truncated mask ({reason}): {REPLACE}") from error
    if mode not in ("P", "L"):
        kinds = {"1": "of 1 bit", "I;16": "of 16 bits", "I": "of 32 bits"}
        raise Failed(
            f"{printable(path)}: not a VOC mask ({kinds.get(mode, f'in colours, {mode}')}): {REPLACE}, "
            "a palette image of 8 bits"
        )
    _check_colours(path, np.unique(labels).tolist(), palette if mode == "P" else [])
    return labels


def _check_colours(path: Path, values: list[int], palette: list[int]) -> None:
    """Raise Failed where these labels have other colours than VOC's, or are grey levels and not labels."""
    colours = {value: tuple(palette[3 * value : 3 * value + 3]) for value in values}
    if all(colour in ((), (value,) * 3) for value, colour in colours.items()):
        most = CLASSES if path.parent.name == "SegmentationClass" else OBJECTS
        if odd := [value for value in values if most < value != VOID]:
            raise Failed(f"{printable(path)}: not a VOC mask (grey levels {odd[:5]}, not labels): {REPLACE}")
        if VOID in values and set(values) <= {0, VOID}:
            raise Failed(f"{printable(path)}: a black and white mask, where 255 is void in VOC's: {REPLACE}")
        return
    for value, colour in colours.items():
        if colour != (wanted := voc_colour(value)):
            what = f"its label {value} is coloured {colour}, in VOC's {wanted}"
            raise Failed(f"{printable(path)}: not a VOC mask ({what}): {REPLACE}")


def voc_colour(label: int) -> tuple[int, int, int]:
    """The colour of a label in VOC's palette: its bits, three at a time, from the highest bit of each channel down."""
    red, green, blue = (sum((label >> (3 * k + c) & 1) << (7 - k) for k in range(3)) for c in range(3))
    return red, green, blue
