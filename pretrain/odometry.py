"""Frames with known camera poses, laid out as KITTI's odometry data: pairs of frames, and the motion between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.files import Failed, Missing
from pretrain.images import SUFFIXES
from pretrain.store import Store

APART = 7  # frames; protocols 7.3
AXES = ("x", "z", "yaw")
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
    is no sequence with poses, Failed when frames and poses do not agree or a drive has one frame.
    """
    poses = sorted((folder / "poses").glob("*.txt"))
    found = [_sequence(folder, path) for path in poses if (folder / "sequences" / path.stem).is_dir()]
    if not found:
        raise Missing(
            f"{folder}: no sequences/NN/image_2 with poses/NN.txt: give --videos a folder laid out as KITTI odometry, "
            "or --images for motion made from stills"
        )
    return found


def _sequence(folder: Path, path: Path) -> Drive:
    drive = folder / "sequences" / path.stem
    cameras = [drive / "image_2"] if (drive / "image_2").is_dir() else sorted(p for p in drive.iterdir() if p.is_dir())
    inside = cameras[0] if len(cameras) == 1 else drive
    found = (p for p in inside.iterdir() if p.suffix.lower() in SUFFIXES)
    frames = tuple(sorted(found, key=lambda p: (len(p.stem), p.stem)))  # 10 comes after 2, padded or not
    try:
        numbers = [[float(word) for word in line.split()] for line in path.read_text().splitlines() if line.strip()]
        poses = np.array(numbers, np.float64).reshape(len(numbers), 3, 4)
    except (OSError, ValueError) as error:
        raise Failed(f"{path}: not a file of poses, 12 numbers a line ({error}): replace it") from error
    if not np.isfinite(poses).all():
        raise Failed(f"{path}: holds NaN or infinite numbers: replace it")
    if len(frames) != len(poses):
        raise Failed(f"{path}: {len(poses)} poses for the {len(frames)} frames in {inside}: complete the data")
    if len(frames) < 2:
        raise Failed(f"{inside}: {len(frames)} frame: egomotion needs two or more: leave this sequence out")
    return Drive(folder, frames, poses)


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
