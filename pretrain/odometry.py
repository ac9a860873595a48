"""Frames with known camera poses, laid out as KITTI's odometry data: pairs of frames, and the motion between them."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.files import Failed, Missing
from pretrain.listing import Listing, data_in, entries_of, printable, read_text, real_folder, walk
from pretrain.pixels import SUFFIXES
from pretrain.store import Store

APART = 7  # frames; protocols 7.3
AXES = ("x", "z", "yaw")
NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
RIGID = 2e-3  # how far R Rᵀ may be from 1: three decimals in the file are enough
FARTHEST = 1e8  # metres: ten times what there is on earth
Poses = NDArray[np.float64]


@dataclass(frozen=True)
class Drive:
    """One sequence: the folder that was given, its frames in order, and the camera-to-world matrix of each (F×3×4)."""

    folder: Path
    frames: tuple[Path, ...]
    poses: Poses


def find_sequences(folder: Path) -> list[Drive]:
    """FOLDER/sequences/NN/image_2/*.png (or .jpg; image_2, or the only folder there) with FOLDER/poses/NN.txt.

    Sequences without a pose file are left out, as KITTI's test drives are. Raises Missing when there
    is no sequence with poses, Failed when frames and poses do not agree, a drive has one frame, the order
    of its frames cannot be told or a pose is no rigid motion.
    """
    real_folder(folder, remedy="give --videos another folder")
    found = [_sequence(folder, path) for path in _listed(folder / "poses", {".txt"}).files if _drive(folder, path)]
    if not found:
        raise Missing(
            f"{printable(folder)}: no sequences/NN/image_2 with poses/NN.txt: give --videos a folder laid out as "
            "KITTI odometry, or --images for motion made from stills"
        )
    return found


def left_out(folder: Path, drives: Sequence[Drive]) -> list[str]:
    """The lines to log about what in `folder` was not looked at: halves of sequences, and other files."""
    poses = _listed(folder / "poses", {".txt"})
    known = {path.stem for path in poses.files}
    alone = [path.name for path in poses.files if not _drive(folder, path)]
    sequences = folder / "sequences"
    bare = [path.name for path in data_in(entries_of(sequences)) if path.is_dir() and path.name not in known]
    lines = poses.notes(folder / "poses")
    for inside in dict.fromkeys(drive.frames[0].parent for drive in drives if drive.folder == folder):
        lines += _listed(inside, SUFFIXES).notes(inside)
    for what, names in (("poses without a sequence", alone), ("sequences without poses", bare)):
        if names:
            lines.append(f"{printable(folder)}: {what}, left out: {', '.join(map(printable, names[:20]))}")
    return lines


def _drive(folder: Path, poses: Path) -> Path | None:
    """The folder of the sequence that these are the poses of, if it is there."""
    drive = folder / "sequences" / poses.stem
    return drive if drive.is_dir() else None


def _listed(folder: Path, suffixes: Collection[str]) -> Listing:
    """What lies in `folder` itself; nothing where it is not there."""
    return walk(folder, suffixes, deep=False) if folder.is_dir() else Listing(())


def _sequence(folder: Path, path: Path) -> Drive:
    inside = _camera(folder / "sequences" / path.stem)
    listing = _listed(inside, SUFFIXES)
    poses = read_poses(path)
    if len(listing.files) != len(poses):
        del listing.unread["folders"]
        beside = f" (not looked at: {listing.report()})" if listing.unread else ""
        raise Failed(
            f"{printable(path)}: {len(poses)} poses for the {len(listing.files)} frames "
            f"in {printable(inside)}{beside}: complete the data"
        )
    if len(poses) < 2:
        frames = f"{len(poses)} frame: egomotion needs two or more"
        raise Failed(f"{printable(inside)}: {frames}: leave this sequence out")
    return Drive(folder, tuple(in_order(listing.files)), poses)


def _camera(drive: Path) -> Path:
    """The folder of a drive's frames. Raises Failed when several hold frames and none is image_2."""
    if (drive / "image_2").is_dir():
        return drive / "image_2"
    folders = [path for path in data_in(entries_of(drive)) if path.is_dir()]
    cameras = [path for path in (*folders, drive) if _listed(path, SUFFIXES).files]
    if len(cameras) > 1:
        names = ", ".join(printable(path.name) if path != drive else "the folder itself" for path in cameras)
        raise Failed(
            f"{printable(drive)}: which camera? Frames in {names}, but no image_2: "
            "name the folder of one camera image_2, or leave only that one there"
        )
    return cameras[0] if cameras else folders[0] if len(folders) == 1 else drive


def in_order(frames: Sequence[Path]) -> list[Path]:
    """Frames by the one number in which their names differ: 2 before 10, 9.75 before 10.0.

    Raises Failed, naming two of them, when it is not one number that they differ in, or two are equal, or
    "9.5" and "9.10" may be either times or counts.
    """
    texts = [NUMBER.sub("#", path.stem) for path in frames]
    numbers = [NUMBER.findall(path.stem) for path in frames]
    if odd := next((path for path, text in zip(frames, texts, strict=True) if text != texts[0]), None):
        raise _disorder(frames[0], odd, "their names differ in more than a number")
    differing = [place for place in range(len(numbers[0])) if len({Decimal(row[place]) for row in numbers}) > 1]
    if len(frames) > 1 and len(differing) != 1:
        other = next((path for path, row in zip(frames, numbers, strict=True) if row != numbers[0]), frames[1])
        raise _disorder(frames[0], other, f"their names differ in {len(differing)} numbers")
    place = differing[0] if differing else 0
    found = sorted(zip([row[place] for row in numbers], frames, strict=True), key=lambda pair: Decimal(pair[0]))
    for (first, one), (second, two) in pairwise(found):
        if Decimal(first) == Decimal(second):
            raise _disorder(one, two, "they have one number")
    fractions = {text.partition(".")[2]: path for text, path in found}
    if len({len(fraction) for fraction in fractions}) > 1:
        for fraction, path in fractions.items():
            if fraction.endswith("0") and fraction != "0":
                raise _disorder(path, frames[0], "times with a cut end, or counts behind a point?")
    return [path for _, path in found]


def _disorder(one: Path, two: Path, why: str) -> Failed:
    names = f"{printable(one)}, {printable(two.name)}"
    return Failed(f"{names}: the order of the frames cannot be told, {why}: rename them to 000000, 000001, …")


def read_poses(path: Path) -> Poses:
    """F×3×4 camera-to-world matrices, one a line, row by row. Raises Failed, naming the line of one that is none."""
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if words := line.split():
            try:
                rows.append(_pose(words))
            except ValueError as error:
                raise Failed(f"{printable(path)}: line {number}: {error}: replace it") from error
    return np.array(rows, np.float64).reshape(len(rows), 3, 4)


def _pose(words: Sequence[str]) -> Poses:
    """3×4. Raises ValueError, saying why, when it is no rigid motion."""
    if len(words) != 12:
        raise ValueError(f"not 12 numbers, but {len(words)}")
    pose = np.array([float(word) for word in words]).reshape(3, 4)
    if not np.isfinite(pose).all() or np.abs(pose).max() > FARTHEST:
        raise ValueError(f"NaN, infinite or more than {FARTHEST:.0e} m")
    turn = pose[:, :3]
    if np.abs(turn @ turn.T - np.eye(3)).max() > RIGID:
        raise ValueError("not a rigid motion (the first three columns are no rotation; a scale, another layout?)")
    if np.linalg.det(turn) < 0:
        raise ValueError("not a rigid motion (it mirrors)")
    return pose


def motion(first: Poses, second: Poses) -> Poses:
    """N×3×4 poses of two frames each → N×3: translation along the first camera's x and z, and yaw in radians.

    Yaw is positive where the camera turns to the right (x right, y down, z forward).
    """
    turned = np.einsum("nji,njk->nik", first[:, :, :3], second[:, :, :3])
    moved = np.einsum("nji,nj->ni", first[:, :, :3], second[:, :, 3] - first[:, :, 3])
    return np.stack([moved[:, 0], moved[:, 2], np.arctan2(turned[:, 0, 2], turned[:, 2, 2])], 1)


@dataclass(frozen=True)
class Pairs:
    """The pairs of a set of sequences: numbers of the first and second square (P), motion (P×3), sequence (P)."""

    first: Tensor
    second: Tensor
    motion: Tensor
    sequence: Tensor


def pairs(sequences: Sequence[Drive], store: Store) -> Pairs:
    """All pairs of frames 1 to 7 apart in one sequence, both of which could be decoded."""
    square = torch.full((sum(len(s.frames) for s in sequences),), -1)
    square[store.owners()] = torch.arange(store.images)
    found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    start = 0
    for number, sequence in enumerate(sequences):
        count = len(sequence.frames)
        for apart in range(1, min(APART, count - 1) + 1):
            first, second = square[start : start + count - apart], square[start + apart : start + count]
            moved = torch.from_numpy(motion(sequence.poses[:-apart], sequence.poses[apart:]))
            whole = (first >= 0) & (second >= 0)
            found.append((first[whole], second[whole], moved[whole], torch.full((int(whole.sum()),), number)))
        start += count
    return Pairs(*(torch.cat(parts) for parts in zip(*found, strict=True)))
