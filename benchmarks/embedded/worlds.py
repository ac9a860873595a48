"""Small worlds for a camera to move in: the settings and figures of the scenes, at depths of their own.

A world is a ground, the plane y = `height` with its marks, and the billboards on it. The farthest is
the backdrop, painted by the setting; the others are props and figures. Some figures move.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from benchmarks.embedded.billboards import FOCAL, SPEEDS, Billboard, Matrix, View, figure, prop
from benchmarks.embedded.figures import AIRBORNE, FIGURES, RAISED
from benchmarks.embedded.scenes import exposure
from benchmarks.embedded.settings import SETTINGS, house, tree
from benchmarks.embedded.textures import FINE, WHITE, Colour, Pen, circle, hsv, paint, tone

BACK = 45.0  # z of the backdrop outdoors
WALLS = {"street": 8.5, "living": 5.5, "kitchen": 5.5, "counter": 5.5}  # where it is a wall: behind the nearest figure
LANE = 3.2  # middle of a road or of rails, behind the nearest figure
ON_ROADS = frozenset({"bus", "car", "motorbike", "train"})
WORLDS = tuple(name for name in SETTINGS if name != "beach")  # its water is no upright plane


@dataclass(frozen=True)
class Cover:
    """What covers a ground: a texture, its contrast, and the metres that a tile of it spans."""

    kind: str
    contrast: float
    span: float


COVERS = {
    "airfield": Cover("gravel", 0.5, 4), "sea": Cover("waves", 0.8, 6), "road": Cover("gravel", 0.5, 4),
    "street": Cover("tiles", 0.6, 5), "meadow": Cover("grass", 0.9, 5), "railway": Cover("gravel", 0.7, 3),
    "living": Cover("boards", 0.6, 4), "kitchen": Cover("checker", 0.5, 6), "counter": Cover("planks", 0.6, 4),
}  # fmt: skip


@dataclass(frozen=True)
class Ground:
    """The plane y = `height`, its colours near and far, and flat marks on it, each (n, 2) of x and z."""

    height: float
    cover: Cover
    near: Colour
    far: Colour
    marks: tuple[tuple[Matrix, Colour], ...]

    def plane(self) -> Matrix:
        """From (x, z, 1) to homogeneous world coordinates, (4, 3)."""
        return np.array([[1, 0, 0], [0, 0, self.height], [0, 1, 0], [0, 0, 1]])


@dataclass(frozen=True)
class World:
    """A setting's ground and billboards, the backdrop first; `gain` is the light, a factor for each channel."""

    setting: str
    ground: Ground
    billboards: tuple[Billboard, ...]
    gain: Matrix


def world(rng: Generator, setting: str, poses: Matrix) -> World:
    """Build the world that a camera on the path `poses`, (frames, 3, 4), sees."""
    view, height = View(poses), float(rng.uniform(1.4, 1.9))
    back, near, far = _backdrop(rng, setting, view, height)
    ground = Ground(height, COVERS[setting], near, far, tuple(_marks(rng, setting, view)))
    standing = [*_props(rng, setting, view, height), *_figures(rng, setting, view, height)]
    return World(setting, ground, (back, *standing), exposure(rng))


def _backdrop(rng: Generator, setting: str, view: View, height: float) -> tuple[Billboard, Colour, Colour]:
    """The setting above its ground, as wide as the camera may turn, and the ground's colours near and far."""
    z = view.near + WALLS[setting] if setting in WALLS else BACK
    scale = FINE * FOCAL / z
    canvas = np.zeros((230 * FINE, math.ceil(3.2 * FINE * FOCAL + 4 * scale), 3), np.uint8)
    pen = Pen(canvas, np.array([[len(canvas), 0, 0], [0, len(canvas), 0]], dtype=np.float64))
    floor = round(SETTINGS[setting](pen, rng).floor * len(canvas))
    edge = canvas[:, : canvas.shape[1] // 12]  # roads and rugs are painted in the middle
    near, far = (
        tuple(np.median(rows.reshape(-1, 3), 0).astype(int).tolist())
        for rows in (edge[-40:], edge[floor + 4 : floor + 40])
    )
    # The frame's corners may look over its upper edge.
    padded = cv2.copyMakeBorder(canvas[:floor], floor // 2, 0, 0, 0, cv2.BORDER_REFLECT)
    picture = np.dstack([padded, np.full(padded.shape[:2], 255, np.uint8)])
    foot = (canvas.shape[1] / 2, len(padded) - 0.5)
    return Billboard("", picture, foot, scale, np.array([view.across(z, 0), height, z])), near, far


def _strip(x: float, z: float, half: float, deep: float, colour: Colour) -> tuple[Matrix, Colour]:
    """A rectangle on the ground about (x, z)."""
    return np.array([(x - half, z - deep), (x + half, z - deep), (x + half, z + deep), (x - half, z + deep)]), colour


def _marks(rng: Generator, setting: str, view: View) -> list[tuple[Matrix, Colour]]:
    """What lies flat on the ground: a road across, rails, a rug, flowers."""
    z, dark = view.near + LANE, hsv(rng, 0.6, 0.7, 0, 0.08, 0.3, 0.5)
    if setting in ("road", "street", "airfield"):
        road = [_strip(0, z, 70, 2.9, tone(dark, 1.5)), _strip(0, z, 70, 2.5, dark)]
        return road + [_strip(3.0 * k, z, 0.8, 0.1, WHITE) for k in range(-16, 17)]
    if setting == "railway":
        sleepers = [_strip(0.9 * k, z, 0.2, 0.8, (92, 70, 54)) for k in range(-40, 41)]
        return sleepers + [_strip(0, z + side, 70, 0.07, (176, 178, 184)) for side in (-0.5, 0.5)]
    if setting == "living":
        rug, x = paint(rng), view.across(z - 1, rng.uniform(-0.3, 0.3))
        rings = [np.array(circle()) * (2.6 - 0.6 * k, 1.4 - 0.32 * k) + (x, z - 1) for k in range(4)]
        return [(ring, tone(rug, 0.75 + 0.35 * (k % 2))) for k, ring in enumerate(rings)]
    if setting == "meadow":
        spots = [(view.across(d, rng.uniform(-0.9, 0.9)), d) for d in rng.uniform(z - 5, z + 8, 90).tolist()]
        return [_strip(x, d, 0.06, 0.09, hsv(rng, 0.1, 1, 0, 0.8, 0.9, 1)) for x, d in spots]
    return []


def _fence(pen: Pen, rng: Generator) -> None:
    """Posts and two rails, 24 times as wide as high."""
    wood = hsv(rng, 0.06, 0.1, 0.2, 0.5, 0.45, 0.8)
    for y in (-0.4, -0.8):
        pen.line([(-12, y), (12, y)], 0.12, tone(wood, 0.9))
    for x in range(-12, 13):
        pen.box(x - 0.09, -1, x + 0.09, 0, wood)


def _props(rng: Generator, setting: str, view: View, floor: float) -> list[Billboard]:
    """Trees, houses and a fence between the figures and the backdrop."""
    some = {"airfield": 3, "road": 9, "street": 2, "meadow": 6, "railway": 6}.get(setting, 0)
    row: list[Billboard] = []
    for place in range(some):
        z = view.near + (7.5 if setting == "street" else rng.uniform(8, 26))
        at = np.array([view.across(z, -0.8 + 1.6 * (place + rng.random()) / some), floor, z])
        if setting == "road" and rng.random() < 0.65:
            width = rng.uniform(0.25, 0.42)
            draw, unit = functools.partial(house, x=-width / 2, y=0, width=width), 11.0
        else:
            draw, unit = functools.partial(tree, x=0, y=0, size=1), rng.uniform(3, 5.5)
        row.append(prop(rng, draw, at=at, unit=unit, scale=view.scale(z)))
    if setting == "meadow":
        z = view.near + 7
        at = np.array([view.across(z, 0), floor, z])
        row.append(prop(rng, _fence, at=at, unit=1.1, scale=view.scale(z), wide=12.5))
    return row


def _figures(rng: Generator, setting: str, view: View, floor: float) -> list[Billboard]:
    """Three figures that move by themselves (two in a room) and four that stand, spread in depth and sideways."""
    indoors = setting in ("living", "kitchen", "counter")
    there = [name for name, kind in FIGURES.items() if setting in kind.settings]
    movers = rng.choice([n for n in there if n in SPEEDS], 2 if indoors else 3).tolist()
    raised = RAISED if setting in ("living", "kitchen") else frozenset()  # they would stand on the floor
    aloft = frozenset(AIRBORNE) if setting == "sea" else frozenset()
    cast = movers + rng.choice([n for n in there if n not in raised | aloft], 4).tolist()
    cast = [n if n != "train" or n not in cast[:k] else "person" for k, n in enumerate(cast)]  # one pair of rails
    depths = view.near + (4.4 if indoors else 6.0) * rng.permutation(np.arange(len(cast)) + rng.random()) / 7
    taken: list[float] = []
    made: list[Billboard] = []
    for k, (name, depth) in enumerate(zip(cast, depths.tolist(), strict=True)):
        z = view.near + LANE + rng.uniform(-2, 2) * (name != "train") if name in ON_ROADS else depth
        moves = int(rng.choice((-1, 1))) if k < len(movers) else 0
        tries = rng.uniform(-0.28, 0.28, 4) if moves else rng.uniform(-0.6, 0.6, 8)
        angle = max(tries.tolist(), key=lambda t: min((abs(t - other) for other in taken), default=0.0))
        taken.append(angle)
        middle = len(view.poses) // 2 if moves else None
        x = view.across(z, angle, middle)
        made.append(figure(rng, name, view=view, floor=floor, z=z, x=x, moves=moves))
    return made
