"""The true masks of segmentation: VOC's PNGs and SBD's MATs, and whether they show what their splits promise."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretrain.files import Failed, Missing
from transfer import voc
from transfer.mat import read_mat

ODD = 8  # masks in a row whose classes are not their annotations'; of the 1,411 of VOC2012 none is
REMEDY = "replace the masks by those of VOC's SegmentationClass"


@dataclass(frozen=True)
class Example:
    """Where an image and its mask (PNG, or SBD's MAT) lie."""

    image: Path
    mask: Path


def check_objects(found: Sequence[Example], listed: Path) -> None:
    """Raise Failed unless the masks of the split in `listed` show objects, of classes that their annotations name.

    Background and void alone are another data set's masks; other classes than the annotations' (where there are any)
    are numbers of instances. Reads no more masks than decide it.
    """
    strange: list[Path] = []
    for example in found:
        classes = np.setdiff1d(read_truth(example.mask), [0, voc.VOID]) - 1
        if not classes.size:
            continue
        xml = example.mask.parent.parent / "Annotations" / f"{example.mask.stem}.xml"
        if not xml.is_file() or np.isin(voc.read_annotation(xml).labels, classes).any():
            return
        strange.append(example.mask)
        if len(strange) == ODD:
            break
    if not strange:
        raise Failed(f"{listed}: no mask of this list shows any object, so that there is nothing to score: {REMEDY}")
    raise Failed(f"{strange[0]}: shows none of the classes that its annotation names (numbers of instances?): {REMEDY}")


def read_truth(path: Path, *, size: tuple[int, int] | None = None) -> voc.Bytes:
    """H×W uint8 class mask from VOC's PNG or SBD's MAT; `size` is the image's. Raises Missing or Failed."""
    if path.suffix != ".mat":
        return voc.read_mask(path, size=size)
    if not path.is_file():
        raise Missing(f"{path}: no such mask: complete SBD, then run the same command again")
    try:
        mask = read_mat(path, ["GTcls.Segmentation"])["GTcls.Segmentation"][0]
        labels = np.unique(mask)
        if mask.ndim != 2 or mask.dtype.kind not in "biuf" or not np.isin(labels, range(len(voc.CLASSES) + 1)).all():
            raise ValueError(f"{mask.dtype} of shape {mask.shape}, labels up to {labels.max(initial=0)}")
    except (KeyError, IndexError, ValueError) as error:
        raise Failed(f"{path}: not a readable SBD mask ({error}): replace the file") from error
    if size is not None and mask.shape != size:
        raise Failed(f"{path}: a mask {mask.shape} for an image {size} (height, width): replace the mask")
    return mask.astype(np.uint8)
