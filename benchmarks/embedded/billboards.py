"""What stands in the worlds of worlds.py: upright planes, each with a picture of a figure, a tree, a house.

World coordinates are those of the first frame's camera, as in KITTI: x right, y down, z forward, in
metres of an invented unit. Every billboard faces -z; those of figures may move by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from benchmarks.embedded.figures import AIRBORNE, FIGURES, LOADS
from benchmarks.embedded.scenes import Actor, perform, seated
from benchmarks.embedded.textures import FINE, Colour, Image, Pen

Matrix = NDArray[np.float64]

FOCAL = 200.0  # pixels of a frame
SIZE = (250, 188)  # of a frame, width × height
UNIT = 4.2  # metres of a figure that would fill a scene's height: standing there it looks as in the scenes
SPEEDS = {  # metres a frame, of those who can move by themselves
    "aeroplane": (0.1, 0.2), "bicycle": (0.07, 0.14), "bird": (0.08, 0.16), "boat": (0.05, 0.11), "bus": (0.1, 0.18),
    "car": (0.1, 0.2), "cat": (0.04, 0.08), "cow": (0.03, 0.07), "dog": (0.05, 0.1), "horse": (0.06, 0.12),
    "motorbike": (0.1, 0.18), "person": (0.04, 0.09), "sheep": (0.03, 0.07), "train": (0.1, 0.2),
}  # fmt: skip
# How high those rise who step, rock or hop, over their height.
STEPS = {"boat": 0.02, "cat": 0.03, "cow": 0.02, "dog": 0.04, "horse": 0.04, "person": 0.03, "sheep": 0.03}


@dataclass(frozen=True)
class Billboard:
    """A picture (h, w, 4), RGB times alpha, whose pixel `foot` is at `at` + frame × `velocity` metres.

    `scale` is its pixels a metre. What walks rises by `step` metres every five frames; `half` is the
    half width of its shadow in metres, 0 for none. `name` is a figure's class, "" for anything else.
    """

    name: str
    picture: Image
    foot: tuple[float, float]
    scale: float
    at: Matrix
    velocity: Matrix = field(default_factory=lambda: np.zeros(3))
    step: float = 0.0
    half: float = 0.0

    def ground(self, frame: float) -> Matrix:
        """Where its foot would be without its steps, (3,)."""
        return np.asarray(self.at + frame * self.velocity)

    def plane(self, frame: float) -> Matrix:
        """From its pixels (column, row, 1) to homogeneous world coordinates, (4, 3)."""
        (column, row), (x, y, z), s = self.foot, self.ground(frame), 1 / self.scale
        y -= self.step * abs(math.sin(math.pi * frame / 5 + self.at[0]))
        return np.array([[s, 0, x - s * column], [0, s, y - s * row], [0, 0, z], [0, 0, 1]])


@dataclass(frozen=True)
class View:
    """A camera's path, (frames, 3, 4), as it matters to what stands in its view."""

    poses: Matrix

    @property
    def near(self) -> float:
        """The z of the nearest figure: in front of the camera, wherever that goes."""
        return float(self.poses[:, 2, 3].max()) + 3.2

    def across(self, z: float, angle: float, frame: int | None = None) -> float:
        """The x at depth z that is seen `angle` radians from the middle, at a frame or on average."""
        pose = self.poses.mean(0) if frame is None else self.poses[frame]
        heading = math.atan2(pose[0, 2], pose[2, 2])
        return float(pose[0, 3] + (z - pose[2, 3]) * math.tan(heading + angle))

    def scale(self, z: float) -> float:
        """Pixels a metre that a picture at depth z needs."""
        return FINE * FOCAL / (z - float(self.poses[:, 2, 3].mean()))


def prop(
    rng: Generator, draw: Callable[[Pen, Generator], None], *, at: Matrix, unit: float, scale: float, wide: float = 1.0
) -> Billboard:
    """A thing that stands still, drawn up to `wide` units to each side, 1.5 high, `unit` metres each."""
    canvas, frame = _paper((96, 104, 96), wide, 1.5, scale * unit)
    mask = np.zeros(canvas.shape[:2], np.uint8)
    draw(Pen(canvas, frame, mask), rng)
    return _cut("", canvas, mask, frame, at=at, scale=scale)


def figure(rng: Generator, name: str, *, view: View, floor: float, z: float, x: float, moves: int) -> Billboard:
    """A figure at depth z on the ground y = `floor`.

    It is at x when it stands, or when it `moves` (to the right, 1, or the left, -1) at some frame in
    the middle third. Flying ones look as in the scenes: in the upper half.
    """
    kind, tall = FIGURES[name], UNIT * float(rng.uniform(0.4, 0.6)) * sum(FIGURES[name].size)
    flies = name in AIRBORNE and moves != 0
    speed = moves * rng.uniform(*SPEEDS[name]) * (1.5 if flies else 1) if moves else 0.0
    velocity = np.array([speed, 0.1 * flies * rng.normal() * speed, rng.uniform(-0.4, 0.4) * abs(speed)])
    middle = len(view.poses) * rng.uniform(1 / 3, 2 / 3)
    y = floor if not flies else min(floor - 0.3, (rng.uniform(-0.12, 0.08) * SIZE[1] / FOCAL) * z)
    carried = bool(moves) or rng.random() < 0.35
    canvas, mask, frame = _drawn(rng, name, unit=tall * view.scale(z), faces=moves, carried=carried)
    made = _cut(name, canvas, mask, frame, at=np.array([x, y, z]) - middle * velocity, scale=view.scale(z))
    step = STEPS.get(name, 0.0) * tall if moves else 0.0
    half = 0.0 if flies else 0.6 * tall * min(1.2, kind.half + 0.2)
    return Billboard(name, made.picture, made.foot, made.scale, made.at, velocity, step, half)


def _drawn(rng: Generator, name: str, *, unit: float, faces: int, carried: bool) -> tuple[Image, Image, Matrix]:
    """A figure, with its load if `carried`, on a canvas of its own: that, its outline, and the frame."""
    side = faces or (1 if rng.random() < 0.5 else -1)
    canvas, frame = _paper((104, 104, 100), 2.5, 1.8, unit)
    frame[:2, :2] @= np.diag([side * rng.uniform(0.9, 1.12), 1.0])
    draw = AIRBORNE[name] if name in AIRBORNE and faces else FIGURES[name].draw
    actors = [Actor(name, draw, frame, 0.0)]
    if carried and name in LOADS:
        actors.append(seated(LOADS[name], actors[0]))
    mask = np.zeros(canvas.shape[:2], np.uint8)
    for actor in actors:
        outline = perform(canvas, rng, actor)
        margin = (len(outline) - len(mask)) // 2
        mask = np.asarray(cv2.max(mask, outline[margin:-margin, margin:-margin]), dtype=np.uint8)
    return canvas, mask, frame


def _paper(colour: Colour, wide: float, high: float, unit: float) -> tuple[Image, Matrix]:
    """An empty canvas for a drawing `wide` units to each side and `high` up, and the frame to it."""
    canvas = np.full((round((high + 0.1) * unit), round(2 * wide * unit), 3), colour, np.uint8)
    return canvas, np.array([[unit, 0, wide * unit], [0, unit, high * unit]])


def _cut(name: str, canvas: Image, mask: Image, frame: Matrix, *, at: Matrix, scale: float) -> Billboard:
    """The drawing cut out along its outline, standing."""
    x, y, w, h = cv2.boundingRect(mask)
    part, alpha = canvas[y : y + h, x : x + w], mask[y : y + h, x : x + w]
    inside = cv2.multiply(part, cv2.merge([alpha] * 3), scale=1 / 255)
    picture = cv2.copyMakeBorder(cv2.merge([*cv2.split(inside), alpha]), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    foot = float(frame[0, 2]) - x + 1, float(frame[1, 2]) - y + 1
    return Billboard(name, np.asarray(picture, dtype=np.uint8), foot, scale, at)
