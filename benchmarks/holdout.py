"""A VOC tree to choose constants on: what it tests on is held out of the training sets, and no test image is in it."""

import json
import shutil
from pathlib import Path

from pretrain.files import Missing, Usage, sweep, temporary_name, write_error, write_text
from transfer import voc

EVERY = 4
# Year → the kind of lists, the training list that is parted, and what the held-out part is called there.
PARTED = {
    "VOC2007": ("Main", "trainval", ("test",)),
    "VOC2012": ("Segmentation", "train", ("val", "seg11valid")),
}
FOLDERS = ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject")


def hold_out(source: Path, target: Path, *, every: int = EVERY) -> None:
    """Part the training sets of the VOCdevkit in `source`: in `target`, one id in `every` is tested on.

    The lists are new, the images are links. `target` appears whole or not at all. Raises Usage when it is there
    already or `every` is 1, Missing when neither year is in `source`.
    """
    if every < 2:
        raise Usage(f"--every {every}: nothing would be left to train on: give 2 or more")
    target = target.resolve()
    if target.exists():
        raise Usage(f"{target}: already there: give another folder, or delete it first")
    devkit = voc.find_devkit(source).resolve()
    years = [name for name in PARTED if (devkit / name).is_dir()]
    if not years:
        raise Missing(f"{devkit}: neither VOC2007 nor VOC2012 is here: give the folder that holds one of them")
    sweep(target)
    temporary = temporary_name(target)
    try:
        for name in years:
            _part(devkit / name, temporary / "VOCdevkit" / name, every)
        content = {"name": f"VOC training sets, one image in {every} held out to be tested on"}
        write_text(temporary / "dataset.json", json.dumps(content, indent=2) + "\n")
        temporary.rename(target)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _part(year: Path, target: Path, every: int) -> None:
    """One year: links to its folders, and the lists of both parts."""
    kind, split, tests = PARTED[year.name]
    ids = voc.image_set(year, kind, split)
    held = ids[every - 1 :: every]
    if not held:
        raise Missing(f"{year}: {len(ids)} images in {split}.txt: too few to hold one in {every} out")
    left = [one for number, one in enumerate(ids) if number % every != every - 1]
    for name, part in {split: left, **dict.fromkeys(tests, held)}.items():
        write_text(target / "ImageSets" / kind / f"{name}.txt", "".join(f"{one}\n" for one in part))
    for name in FOLDERS:
        if (year / name).is_dir():
            (target / name).symlink_to(year / name)
