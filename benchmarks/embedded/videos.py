"""Short films of the `tiny` world, with the pose of the camera in every frame.

One sequence is the same frames twice:

    ROOT/odometry/sequences/NN/image_2/NNNNNN.jpg    as KITTI's odometry set has them
    ROOT/odometry/sequences/NN/calib.txt             P2: the 12 numbers of the projection matrix, (3, 4)
    ROOT/odometry/poses/NN.txt                       a line a frame: camera to world, (3, 4), row by row
    ROOT/videos/NN.avi                               Motion JPEG

The world is that of the first frame's camera: x right, y down, z forward, in metres of an invented
unit. The camera is held by hand: it goes left and right, forward and back, and turns about y
(positive: to the right), smoothly and at every sign. It sees planes through a real pinhole, so that
moving and turning can be told apart by parallax.
"""

from __future__ import annotations

import functools
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from PIL import Image as Pictures

from benchmarks.embedded.billboards import FOCAL, SIZE, Billboard, Matrix
from benchmarks.embedded.scenes import develop
from benchmarks.embedded.textures import FINE, SHIFT, TILE, Image, fade, multiply, tile
from benchmarks.embedded.worlds import WORLDS, Ground, World, world
from pretrain.randomness import derived

RATE = 10.0  # frames a second
QUALITY = 75  # of the JPEGs
FILM_QUALITY = 28  # of the films, on OpenCV's scale: about as good
GRAIN = 2  # noise; half that of the scenes, as it is what most of a film's bytes are spent on
CLOSE = 0.4  # metres before the camera where the ground begins to be drawn
INTRINSICS = np.array([[FOCAL, 0, (SIZE[0] - 1) / 2], [0, FOCAL, (SIZE[1] - 1) / 2], [0, 0, 1]])
CANVAS = np.array([[FINE, 0, (FINE - 1) / 2], [0, FINE, (FINE - 1) / 2], [0, 0, 1]])  # frame to canvas pixels


def sequence(root: Path, index: int, *, seed: int, frames: int) -> str:
    """Film sequence `index`, write its files under ROOT, and return its number as text."""
    made, poses, name = staged(seed, index, frames), path(seed, index, frames), f"{index:02d}"
    folder = root / "odometry" / "sequences" / name / "image_2"
    for parent in (folder, root / "odometry" / "poses", root / "videos"):
        parent.mkdir(parents=True, exist_ok=True)
    (folder.parent / "calib.txt").write_text(f"P2: {_row(np.column_stack([INTRINSICS, np.zeros(3)]))}\n")
    (root / "odometry" / "poses" / f"{name}.txt").write_text("".join(f"{_row(pose)}\n" for pose in poses))
    film = cv2.VideoWriter(
        str(root / "videos" / f"{name}.avi"), cv2.CAP_OPENCV_MJPEG, cv2.VideoWriter.fourcc(*"MJPG"), RATE, SIZE
    )
    if not film.isOpened():
        raise OSError(f"{root}: OpenCV cannot write a film here")
    film.set(cv2.VIDEOWRITER_PROP_QUALITY, FILM_QUALITY)
    for time, pose in enumerate(poses):
        noise = np.random.default_rng(derived(seed, "tiny", "odometry", index, "noise", time))
        image = develop(noise, picture(made, pose, time), made.gain, grain=GRAIN)
        Pictures.fromarray(image).save(folder / f"{time:06d}.jpg", quality=QUALITY)
        film.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    film.release()
    return name


def _row(matrix: Matrix) -> str:
    """A matrix as KITTI writes it."""
    return " ".join(f"{value:.9e}" for value in matrix.ravel())


def staged(seed: int, index: int, frames: int) -> World:
    """The world of a sequence. In every nine sequences each setting comes once."""
    turn, place = divmod(index, len(WORLDS))
    order = np.random.default_rng(derived(seed, "tiny", "odometry", "settings", turn)).permutation(len(WORLDS))
    rng = np.random.default_rng(derived(seed, "tiny", "odometry", index, "world"))
    return world(rng, WORLDS[order[place]], path(seed, index, frames))


# ---- the camera ----


def path(seed: int, index: int, frames: int) -> Matrix:
    """The poses of a sequence's camera, (frames, 3, 4), camera to world; the first is the identity."""
    rng = np.random.default_rng(derived(seed, "tiny", "odometry", index, "path"))
    x, z, yaw = (_wander(rng, frames, rng.uniform(*reach)) for reach in ((0.4, 0.9), (0.4, 0.9), (0.05, 0.15)))
    y = _wander(rng, frames, 0.03)
    poses = np.zeros((frames, 3, 4))
    poses[:, 0, 0] = poses[:, 2, 2] = np.cos(yaw)
    poses[:, 0, 2], poses[:, 2, 0], poses[:, 1, 1] = np.sin(yaw), -np.sin(yaw), 1
    poses[:, :, 3] = np.stack([x, y, z], 1)
    return poses


def _wander(rng: Generator, frames: int, reach: float) -> Matrix:
    """A smooth course (frames,) that starts at 0: a slow swing, a quick one, and a tremble of the hand."""
    time = np.arange(frames)
    course = np.zeros(frames)
    for size, shortest, longest in ((1, 30, 60), (0.25, 12, 24), (0.02, 4, 7)):
        course += reach * size * np.sin(2 * np.pi * (time / rng.uniform(shortest, longest) + rng.random()))
    return np.asarray(course - course[0])


def projection(pose: Matrix) -> Matrix:
    """From homogeneous world coordinates to those of frame pixels, (3, 4), for a pose (3, 4)."""
    rotation, centre = pose[:, :3], pose[:, 3]
    return np.asarray(INTRINSICS @ np.column_stack([rotation.T, -rotation.T @ centre]))


# ---- the picture ----


def picture(made: World, pose: Matrix, time: float) -> Image:
    """What the camera sees at `time`, in frames: a canvas (FINE · h, FINE · w, 3), not yet developed."""
    canvas = np.zeros((SIZE[1] * FINE, SIZE[0] * FINE, 3), np.uint8)
    through = np.asarray(CANVAS @ projection(pose))
    _lay(canvas, made.ground, through)
    for board in sorted(made.billboards, key=lambda board: -board.ground(time)[2]):
        _shade(canvas, board.ground(time), board.half, through, made.ground.height)
        _stand(canvas, board, through @ board.plane(time))
    return canvas


def _lay(canvas: Image, ground: Ground, through: Matrix) -> None:
    """Draw the ground below the horizon: colours, marks, then the texture over all of it."""
    flat = through @ ground.plane()
    horizon = int(CANVAS[1] @ INTRINSICS[:, 2]) + FINE  # the camera never nods, so it is a row
    height, width = canvas.shape[0] - horizon, canvas.shape[1]
    rows, columns = np.arange(horizon, horizon + height, FINE), np.arange(0, width, FINE)
    v, u = np.meshgrid(rows + (FINE - 1) / 2, columns + (FINE - 1) / 2, indexing="ij")
    at = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(flat).T  # (rows, columns, 3)
    depth = 1 / at[:, 0, 2]
    region = canvas[horizon:]
    blend = np.clip((np.repeat(depth, FINE)[:height] - 3) / 12, 0, 1)[:, None]
    column = np.asarray(ground.near) * (1 - blend) + np.asarray(ground.far) * blend
    region[:] = column.astype(np.uint8)[:, None]
    for corners, colour in ground.marks:
        seen = _clipped(np.column_stack([corners, np.ones(len(corners))]) @ flat.T)
        if len(seen):
            cv2.fillPoly(canvas, [np.rint(seen * (1 << SHIFT)).astype(np.int32)], colour, cv2.LINE_AA, SHIFT)
    texture = _cover(ground, at[..., :2] * depth[:, None, None], depth)
    multiply(region, np.asarray(cv2.resize(texture, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8))


def _clipped(points: Matrix) -> Matrix:
    """A polygon (n, 3) of homogeneous pixels, its part before the camera as pixels, (m, 2)."""
    kept: list[Matrix] = []
    for a, b in zip(points, np.roll(points, -1, 0), strict=True):
        if a[2] >= CLOSE:
            kept.append(a)
        if (a[2] >= CLOSE) != (b[2] >= CLOSE):
            kept.append(a + (b - a) * (CLOSE - a[2]) / (b[2] - a[2]))
    found = np.array(kept).reshape(-1, 3)
    return np.asarray(found[:, :2] / found[:, 2:])


@functools.cache
def _levels(kind: str) -> tuple[Image, ...]:
    """A tile at its size, half of it, …: the periodic texture as it looks from ever farther away."""
    levels = [tile(kind)]
    while len(levels[-1]) > 8:
        levels.append(np.asarray(cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)))
    return tuple(levels)


def _cover(ground: Ground, at: Matrix, depth: Matrix) -> Image:
    """The ground's texture (h, w) at the places `at` (h, w, 2), whose rows lie at `depth` (h,)."""
    cover, levels = ground.cover, _levels(ground.cover.kind)
    # How many texels a pixel spans: the geometric mean of along and across, as near the feet it is neither.
    texels = TILE / cover.span * depth**1.5 / (FOCAL * ground.height**0.5)
    wanted = np.clip(np.rint(np.log2(np.maximum(texels, 1))), 0, len(levels) - 1).astype(int)
    texture = np.full(at.shape[:2], 128, np.uint8)
    for level, image in enumerate(levels):
        rows = np.flatnonzero(wanted == level)
        if len(rows) == 0:
            continue
        side = len(image)
        texel = np.mod(at[rows] * (side / cover.span) - 0.5, side).astype(np.float32)
        seen = cv2.remap(image, texel[..., 0], texel[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        texture[rows] = fade(np.asarray(seen, dtype=np.uint8), cover.contrast)
    return texture


def _shade(canvas: Image, foot: Matrix, half: float, through: Matrix, floor: float) -> None:
    """Darken the ground under what stands at `foot`."""
    u, v, depth = through @ (foot[0], floor, foot[2], 1)
    if half == 0 or depth < CLOSE:
        return
    x, y, rx = u / depth, v / depth, half * FINE * FOCAL / depth
    ry = max(2.0, rx * 0.22)
    top, left = max(0, int(y - ry)), max(0, int(x - rx))
    region = canvas[top : max(top, int(y + ry) + 1), left : max(left, int(x + rx) + 1)]
    if region.size == 0:
        return
    yy, xx = np.ogrid[: region.shape[0], : region.shape[1]]
    reach = ((xx + left - x) / rx) ** 2 + ((yy + top - y) / ry) ** 2
    multiply(region, (128 - 60 * np.clip(1 - reach, 0, 1)).astype(np.uint8))


def _stand(canvas: Image, board: Billboard, plane: Matrix) -> None:
    """Draw a billboard through the homography `plane`, (3, 3), from its pixels to the canvas."""
    h, w = board.picture.shape[:2]
    corners = np.array([(0, 0, 1), (w, 0, 1), (w, h, 1), (0, h, 1)]) @ plane.T
    if corners[:, 2].min() < CLOSE:
        return
    spots = corners[:, :2] / corners[:, 2:]
    left, top = np.maximum(np.floor(spots.min(0)).astype(int), 0).tolist()
    right, bottom = np.minimum(np.ceil(spots.max(0)).astype(int) + 1, canvas.shape[1::-1]).tolist()
    if left >= right or top >= bottom:
        return
    shift = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1]])
    seen = cv2.warpPerspective(board.picture, shift @ plane, (right - left, bottom - top), flags=cv2.INTER_LINEAR)
    region, behind = canvas[top:bottom, left:right], cv2.bitwise_not(seen[..., 3])
    region[:] = cv2.add(cv2.multiply(region, cv2.merge([behind] * 3), scale=1 / 255), seen[..., :3])
