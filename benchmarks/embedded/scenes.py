"""The world of the `tiny` data: painted scenes in which the twenty VOC classes stand where they belong.

A scene is a setting (sky and airfield, sea, road, street, meadow, railway, living room, kitchen,
counter) with a few figures. Settings are regular on purpose (fences, tiles, windows, rails,
waves): what a hole hides can be guessed from what surrounds it, which is what inpainting learns
from. Figures are drawn from parts, so that a class is known by its shape and texture, not by one
colour. Everything is painted back to front at FINE times the final size; what a figure still
shows at the end is its mask, and boxes and label images are made from that mask alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from benchmarks.embedded.figures import AIRBORNE, FIGURES, LOADS, RAISED, Figure, Load
from benchmarks.embedded.settings import SETTINGS, Stage
from benchmarks.embedded.textures import FINE, Frame, Image, Pen, fade, hsv, multiply, sample, tone

Mask = NDArray[np.bool_]

CLASSES = tuple(FIGURES)
SIZES = ((250, 188), (250, 188), (250, 188), (250, 188), (188, 250), (188, 250), (250, 167), (220, 220))


@dataclass(frozen=True)
class Object:
    """One figure as it can be seen: `mask` is (H, W) bool, `amodal` its whole area in pixels."""

    name: str
    mask: Mask
    amodal: int
    truncated: bool
    difficult: bool


@dataclass(frozen=True)
class Scene:
    """A painted image, (H, W, 3) uint8 RGB, and its objects from the farthest to the nearest."""

    image: Image
    setting: str
    objects: tuple[Object, ...]


@dataclass(frozen=True)
class Actor:
    """A figure to be drawn through the affine `frame`; farther ones (smaller `depth`) come first."""

    name: str
    draw: Callable[[Pen, Generator], None]
    frame: Frame
    depth: float
    cabinet: bool = False
    airborne: bool = False


def _cast(rng: Generator, lead: str, setting: str) -> list[str]:
    """The classes of one scene, the lead first: those who like its company come more often."""
    others = [name for name, figure in FIGURES.items() if setting in figure.settings]
    weights = [1 + 4 * FIGURES[lead].company.count(name) for name in others]
    p = np.asarray(weights) / sum(weights)
    count = int(rng.choice(4, p=(0.3, 0.35, 0.25, 0.1)))
    return [lead, *(str(name) for name in rng.choice(others, count, p=p))]


def _frame(rng: Generator, x: float, y: float, height: float) -> Frame:
    """The affine map of a figure: mirrored half the time, stretched, tilted and sheared a little."""
    mirror = -1 if rng.random() < 0.5 else 1
    wide, tilt, shear = rng.uniform(0.9, 1.12), rng.normal(0, 0.02), rng.normal(0, 0.03)
    s = height * FINE
    return np.array([[s * wide * mirror, s * (tilt + shear), x * FINE], [s * tilt * mirror, s, y * FINE]])


def _place(
    rng: Generator, name: str, *, setting: str, stage: Stage, size: tuple[int, int], taken: list[float], near: float
) -> Actor:
    """Put a figure where there is room; `near` in 0..1 is its depth, `taken` the x used so far."""
    (width, height), figure, draw = size, FIGURES[name], FIGURES[name].draw
    low, high = figure.size
    tall = (low + (high - low) * (0.75 * near + 0.25 * rng.random())) * min(size)
    aside = min(0.45 * width, 0.75 * figure.half * tall)  # the border may cut off a little of it
    tries = rng.uniform(aside, width - aside, 4)
    x = max(tries.tolist(), key=lambda t: min((abs(t - other) for other in taken), default=0.0))
    y = (stage.far + (stage.near - stage.far) * near) * height
    if name == "train" and stage.level is not None:
        y = stage.level * height
    airborne = name in AIRBORNE and (setting == "sea" or rng.random() < 0.5)
    if airborne:
        draw, y = AIRBORNE[name], max(rng.uniform(0.3, 0.5) * height, tall + 4)
    taken.append(x)
    cabinet = name in RAISED and setting in ("living", "kitchen")
    return Actor(name, draw, _frame(rng, x, y, tall), y, cabinet, airborne)


def _actors(rng: Generator, lead: str, setting: str, stage: Stage, size: tuple[int, int]) -> list[Actor]:
    """All figures of a scene, farthest first, and the lead last, so that nobody hides it.

    A train alone keeps its place: who waits on the platform is in front of it, and cannot hide it.
    """
    cast = _cast(rng, lead, setting)
    depths = [rng.uniform(0.45, 1), *rng.uniform(0, 0.8, len(cast) - 1)]
    taken: list[float] = []
    placed = [
        _place(rng, name, setting=setting, stage=stage, size=size, taken=taken, near=near)
        for name, near in zip(cast, depths, strict=True)
    ]
    ordered = [*sorted(placed[1:], key=lambda actor: actor.depth), placed[0]]
    if lead == "train":
        ordered.sort(key=lambda actor: actor.depth)
    loaded: list[Actor] = []
    for actor in ordered:
        loaded.append(actor)
        load = LOADS.get(actor.name)
        if load is not None and rng.random() < load.chance:
            loaded.append(seated(load, actor))
    return loaded


def seated(load: Load, carrier: Actor) -> Actor:
    """The load where it sits on its carrier."""
    seat = np.array([[load.size, 0, load.seat[0]], [0, load.size, load.seat[1]], [0, 0, 1]])
    return Actor(load.name, load.draw, carrier.frame @ seat, carrier.depth)


def shadow(canvas: Image, actor: Actor) -> None:
    """Darken the ground under a standing figure."""
    x, y = actor.frame[:, 2]
    rx, ry = abs(actor.frame[0, 0]) * 0.6, abs(actor.frame[1, 1]) * 0.07
    top, left = max(0, int(y - ry)), max(0, int(x - rx))
    region = canvas[top : int(y + ry) + 1, left : max(left, int(x + rx) + 1)]
    if region.size == 0:
        return
    yy, xx = np.ogrid[: region.shape[0], : region.shape[1]]
    reach = ((xx + left - x) / rx) ** 2 + ((yy + top - y) / ry) ** 2
    multiply(region, (128 - 60 * np.clip(1 - reach, 0, 1)).astype(np.uint8))


def _finish(canvas: Image, rng: Generator, mask: Image, figure: Figure) -> None:
    """Give a drawn figure its texture and its volume: darker towards its edges."""
    x, y, w, h = cv2.boundingRect(mask)
    if w == 0:
        return
    part, inside = canvas[y : y + h, x : x + w], mask[y : y + h, x : x + w]
    texture = fade(sample(rng, figure.texture, (h, w), 0.9 * FINE), figure.contrast)
    rim = cv2.distanceTransform(inside, cv2.DIST_L2, 3)
    edge = cv2.convertScaleAbs(rim, alpha=36 / (0.08 * h + 2), beta=0)
    volume = cv2.add(cv2.min(edge, (36,)), np.full_like(inside, 98))
    lit = part.copy()
    multiply(lit, np.asarray(cv2.multiply(texture, volume, scale=1 / 128), dtype=np.uint8))
    cv2.copyTo(lit, inside, part)


def _outline(canvas: Image) -> tuple[Image, int]:
    """An empty mask (h + 2 m, w + 2 m) for the canvas, and its margin m."""
    margin = max(canvas.shape) // 4
    return np.zeros((canvas.shape[0] + 2 * margin, canvas.shape[1] + 2 * margin), np.uint8), margin


def perform(canvas: Image, rng: Generator, actor: Actor) -> Image:
    """Draw one figure; its outline comes back with the margin, (h + 2 m, w + 2 m), 0 or 255."""
    mask, margin = _outline(canvas)
    sway = (rng.uniform(0, 0.02), rng.uniform(0, 6), rng.uniform(0, 6))
    actor.draw(Pen(canvas, actor.frame, mask, margin, sway), rng)
    cv2.threshold(mask, 127, 255, cv2.THRESH_BINARY, mask)
    _finish(canvas, rng, mask[margin:-margin, margin:-margin], FIGURES[actor.name])
    return mask


def _cabinet(canvas: Image, rng: Generator, actor: Actor) -> Image:
    """Furniture under a figure that does not stand on the floor of a room; its outline as above."""
    mask, margin = _outline(canvas)
    scale = canvas.shape[0]
    pen = Pen(canvas, np.array([[scale, 0, 0], [0, scale, 0]], dtype=np.float64), mask, margin)
    x, y = actor.frame[:, 2] / scale
    half = max(0.16, abs(actor.frame[0, 0]) / scale * 0.75)
    wood = hsv(rng, 0.04, 0.1, 0.3, 0.7, 0.25, 0.75)
    pen.box(x - half, y - 0.02, x + half, y + 0.3, tone(wood, 0.8))
    pen.box(x - half - 0.02, y - 0.03, x + half + 0.02, y + 0.01, wood)
    for k in range(2):
        left = x - half + 0.02 + k * half
        pen.box(left, y + 0.04, left + half - 0.04, y + 0.26, tone(wood, 0.95))
        pen.oval(left + half / 2 - 0.02, y + 0.1, 0.012, 0.012, tone(wood, 0.4))
    cv2.threshold(mask, 127, 255, cv2.THRESH_BINARY, mask)
    return mask


def _shrink(fine: Image) -> Image:
    """An image (h, w[, 3]) reduced FINE times by averaging."""
    size = fine.shape[1] // FINE, fine.shape[0] // FINE
    return np.asarray(cv2.resize(fine, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _visible(drawn: Sequence[tuple[str, Image]], margin: int) -> tuple[Object, ...]:
    """What each figure shows, given names and outlines in the order of drawing.

    Furniture (name "") only hides; a figure of which fewer than 16 pixels remain is left out.
    """
    inner = slice(margin, -margin), slice(margin, -margin)
    hidden = np.zeros_like(drawn[0][1][inner])
    objects: list[Object] = []
    for name, mask in reversed(drawn):
        inside = mask[inner]
        seen = _shrink(np.asarray(cv2.subtract(inside, hidden), dtype=np.uint8)) >= 128
        hidden = np.asarray(cv2.max(hidden, inside), dtype=np.uint8)
        area = int(np.count_nonzero(seen))
        if not name or area < 16:
            continue
        whole, within = cv2.countNonZero(mask) / FINE**2, cv2.countNonZero(inside) / FINE**2
        narrow = min(cv2.boundingRect(seen.view(np.uint8))[2:])
        objects.append(Object(name, seen, round(whole), within < 0.99 * whole, area < 0.3 * whole or narrow < 12))
    return tuple(reversed(objects))


def exposure(rng: Generator) -> NDArray[np.float64]:
    """The light of the hour and how long it was let in: a factor for each channel, (3,)."""
    return rng.uniform(0.8, 1.12) * rng.uniform(0.94, 1.06, 3)


def develop(rng: Generator, canvas: Image, gain: NDArray[np.float64], *, grain: int = 4) -> Image:
    """The photograph, with slight noise of at most `grain`; (h / FINE, w / FINE, 3)."""
    image = _shrink(canvas)
    lit = cv2.transform(image, np.diag(gain))
    noise = rng.integers(0, 2 * grain + 1, image.shape, dtype=np.uint8)
    return np.asarray(cv2.subtract(cv2.add(lit, noise), np.full_like(image, grain)), dtype=np.uint8)


def scene(rng: Generator, lead: str) -> Scene:
    """Paint one scene in which `lead`, a class of CLASSES, is the nearest figure."""
    setting = str(rng.choice(FIGURES[lead].settings))
    width, height = size = SIZES[int(rng.integers(len(SIZES)))]
    canvas = np.zeros((height * FINE, width * FINE, 3), np.uint8)
    pen = Pen(canvas, np.array([[height * FINE, 0, 0], [0, height * FINE, 0]], dtype=np.float64))
    stage = SETTINGS[setting](pen, rng)
    drawn: list[tuple[str, Image]] = []
    for actor in _actors(rng, lead, setting, stage, size):
        if actor.cabinet:
            drawn.append(("", _cabinet(canvas, rng, actor)))
        if not actor.airborne:
            shadow(canvas, actor)
        drawn.append((actor.name, perform(canvas, rng, actor)))
    return Scene(develop(rng, canvas, exposure(rng)), setting, _visible(drawn, max(canvas.shape) // 4))
