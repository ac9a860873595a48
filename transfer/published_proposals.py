"""The authors' own selective search boxes, where their files lie beside the devkit.

protocols 5.1 and 9. Fast R-CNN's folder: DATA/selective_search_data/voc_2007_trainval.mat and
voc_2007_test.mat; or the same names with .pkl, as Detectron converted them. Nothing of them is executed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.contents import head_of, mistaken
from pretrain.files import Failed, Missing
from pretrain.pickles import load_pickle
from transfer import voc
from transfer.mat import read_mat

REMEDY = "unpack the published file again, or move it away to have selective search computed"


def published_folder(devkit: Path) -> Path:
    """Where Fast R-CNN's selective_search_data.tgz is unpacked: beside the devkit."""
    return devkit.parent / "selective_search_data"


def published_files(devkit: Path, year: str, splits: Sequence[str]) -> dict[str, Path]:
    """Split → its file, .mat before .pkl; {} when there is none. Raises Missing when only some splits have one."""
    stems = {split: f"{year.lower().replace('voc', 'voc_')}_{split}" for split in splits}
    paths = {
        s: [published_folder(devkit) / (stem + suffix) for suffix in (".mat", ".pkl")] for s, stem in stems.items()
    }
    found = {split: path for split, both in paths.items() for path in reversed(both) if path.is_file()}
    lacking = [str(paths[split][0]) for split in splits if split not in found]
    if found and lacking:
        there = ", ".join(path.name for path in found.values())
        raise Missing(f"{lacking[0]} (or .pkl): not there, but {there} is: {REMEDY}")
    return found


def published_boxes(
    path: Path, *, listed: Sequence[str], sizes: Mapping[str, tuple[int, int]]
) -> dict[str, voc.Floats]:
    """Id → n×4 distinct boxes (the convention of transfer.voc) of each image of `sizes` (id → width, height).

    `listed`: all ids of the split, which a .mat without `images` follows. Raises Failed, naming file and image.
    """
    boxes, ids = _read_mat(path) if path.suffix == ".mat" else _read_pickle(path)
    if ids is None:
        ids = list(listed)
    if len(ids) != len(boxes) or len(set(ids)) != len(ids):
        say = f"boxes of {len(boxes)} images for {len(set(ids))} distinct ids"
        raise Failed(f"{path}: {say}: is it the file of this split? {REMEDY}")
    # Detectron's ids are numbers: 000005 is 5, 2008_000008 is 2008000008.
    numbers: dict[Any, str] = {int(name.replace("_", "")): name for name in listed if name.replace("_", "").isdecimal()}
    by_name = {numbers.get(i, str(i)): given for i, given in zip(ids, boxes, strict=True)}
    found = {}
    for name, (width, height) in sizes.items():
        try:
            if name not in by_name:
                raise ValueError("no boxes")
            found[name] = _converted(by_name[name], width, height, matlab=path.suffix == ".mat")
        except ValueError as error:
            raise Failed(f"{path}: image {name}: {error}: {REMEDY}") from error
    return found


def _converted(given: Any, width: int, height: int, *, matlab: bool) -> voc.Floats:
    """The boxes of one image in transfer.voc's convention. Both sources are inclusive.

    MATLAB: y1, x1, y2, x2 from 1; Detectron: x1, y1, x2, y2 from 0. R-CNN's search may scale the image to a
    width and the boxes back by (box - 1) · scale + 1, so that right and lower edges can lie outside by a part
    of a pixel: it is cut off. A whole pixel, or any at the left, is the mark of another convention: ValueError.
    """
    if not isinstance(given, np.ndarray):
        raise ValueError(f"boxes n×4 expected, not a {type(given).__name__}")
    array = given
    if array.ndim != 2 or array.shape[1] != 4 or not len(array) or array.dtype.kind not in "iuf":
        raise ValueError(f"boxes n×4 expected, not {array.dtype} {array.shape}")
    boxes = array.astype(np.float64)
    boxes = boxes[:, [1, 0, 3, 2]] + (-1, -1, 0, 0) if matlab else boxes + np.array((0, 0, 1, 1))
    inside = (boxes[:, :2] >= 0).all(1) & (boxes[:, 2:] < (width + 1, height + 1)).all(1)  # False for NaN
    boxes[:, 2:] = np.minimum(boxes[:, 2:], (width, height))
    bad = ~(inside & (boxes[:, 2:] > boxes[:, :2]).all(1))
    if bad.any():
        raise ValueError(f"the box {array[bad][0].tolist()} is empty or outside the {width}×{height} image")
    return boxes[np.sort(np.unique(boxes, axis=0, return_index=True)[1])]


def _read_mat(path: Path) -> tuple[list[Any], list[Any] | None]:
    """The cells of `boxes`, and those of `images` where it is there."""
    try:
        content = read_mat(path, ["boxes{}", "images{}"])
        if "boxes{}" not in content:
            raise Failed(f"{path}: no boxes in it")
        ids = [_id(cell.item()) for cell in content["images{}"]] if "images{}" in content else None
    except (Failed, ValueError) as error:
        raise _unreadable(path, str(error)) from error
    return list(content["boxes{}"]), ids


def _read_pickle(path: Path) -> tuple[list[Any], list[Any]]:
    """Detectron's `boxes`, and its `ids` (or `indexes`)."""
    if why := mistaken(head_of(path), path.suffix):
        raise _unreadable(path, why)
    content = load_pickle(path)
    if not isinstance(content, dict):
        raise _unreadable(path, f"a {type(content).__name__}, no dict")
    boxes, ids = content.get("boxes"), content.get("ids", content.get("indexes"))
    mode = content.get("bbox_mode", 0)
    if isinstance(ids, np.ndarray):
        ids = ids.ravel().tolist()
    if not isinstance(boxes, list | np.ndarray) or not isinstance(ids, list | tuple):
        raise _unreadable(path, "no list of boxes, or no ids or indexes, in it")
    if type(mode) is not int or mode != 0:
        raise _unreadable(path, "a bbox_mode that is not 0 (x1, y1, x2, y2)")
    try:
        return list(boxes), [_id(i) for i in ids]
    except ValueError as error:
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, reason: str) -> Failed:
    return Failed(f"{path}: not a readable proposal file ({reason.removeprefix(f'{path}: ')}): {REMEDY}")


def _id(value: Any) -> str | int:
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    if not isinstance(value, str):
        raise ValueError(f"an id that is a {type(value).__name__}, no number or text")
    return value.strip()
