"""The ten settings of the `tiny` data's scenes, from airfield to counter, and where figures stand in them.

Units: y from 0 (top) to 1 (bottom), x from 0 to the aspect ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from benchmarks.embedded.textures import (
    FINE,
    TILE,
    WHITE,
    Colour,
    Image,
    Pen,
    fade,
    hsv,
    multiply,
    paint,
    sample,
    tile,
    tone,
)

# An outline reads as a row of points, not as a column: hence
# fmt: off


@dataclass(frozen=True)
class Stage:
    """Where figures stand: feet between y = `far` and y = `near`; `level` fixes them to a line.

    The ground begins at y = `floor`; above it is what stands at the back.
    """

    floor: float
    far: float
    near: float = 0.97
    level: float | None = None


def _aspect(pen: Pen) -> float:
    """Width over height of the pen's canvas."""
    height, width = pen.canvas.shape[:2]
    return float(width / height)


def _rows(pen: Pen, top: float, bottom: float) -> Image:
    """The view (h, w, 3) of the canvas between two heights."""
    h = pen.canvas.shape[0]
    return pen.canvas[max(0, round(top * h)) : max(0, round(bottom * h))]


def _gradient(pen: Pen, top: float, bottom: float, upper: Colour, lower: Colour) -> None:
    """Fill the rows between two heights with a vertical gradient."""
    region = _rows(pen, top, bottom)
    t = np.linspace(0, 1, len(region))[:, None]
    column = (np.asarray(upper) * (1 - t) + np.asarray(lower) * t).astype(np.uint8)
    region[:] = cv2.repeat(column[:, None, :], 1, region.shape[1])


def _weave(pen: Pen, rng: Generator, top: float, bottom: float, *, kind: str, contrast: float, zoom: float) -> None:
    """Lay a flat texture over the rows between two heights: a wall."""
    region = _rows(pen, top, bottom)
    swatch = sample(rng, kind, region.shape[:2], zoom * pen.canvas.shape[0] / TILE)
    multiply(region, fade(swatch, contrast))


def _floor(pen: Pen, rng: Generator, top: float, *, kind: str, contrast: float, zoom: float, horizon: float) -> None:
    """Lay a texture over the rows below `top` in perspective, vanishing at `horizon` <= `top`."""
    region = _rows(pen, top, 1)
    h, w = (side // FINE for side in region.shape[:2])  # half the work: floors are soft anyway
    depth = 1 / (np.linspace(top, 1, h, dtype=np.float32) - horizon + 0.02)
    x = np.linspace(-_aspect(pen) / 2, _aspect(pen) / 2, w, dtype=np.float32)
    u = np.outer(depth, x * (TILE / zoom)) + rng.uniform(0, TILE)
    v = np.repeat((depth * (TILE * 0.55 / zoom))[:, None], w, 1) + rng.uniform(0, TILE)
    u, v = u.astype(np.float32), v.astype(np.float32)
    seen = cv2.remap(tile(kind), u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    near = np.clip(4 / depth, 0.15, 1)[:, None] * contrast  # far texture fades instead of flickering
    texture = (128 + (seen.astype(np.float32) - 128) * near).astype(np.uint8)
    resized = cv2.resize(texture, (region.shape[1], region.shape[0]), interpolation=cv2.INTER_LINEAR)
    multiply(region, np.asarray(resized, dtype=np.uint8))


def _sky(pen: Pen, rng: Generator, horizon: float) -> None:
    """A sky with clouds, or one of evening, above the horizon."""
    if rng.random() < 0.8:
        upper, lower = hsv(rng, 0.54, 0.62, 0.35, 0.75, 0.65, 0.95), hsv(rng, 0.5, 0.6, 0.05, 0.25, 0.85, 0.98)
    else:
        upper, lower = hsv(rng, 0.6, 0.75, 0.2, 0.45, 0.5, 0.75), hsv(rng, 0.02, 0.12, 0.25, 0.6, 0.85, 0.98)
    _gradient(pen, 0, horizon + 0.01, upper, lower)
    region = _rows(pen, 0, horizon)
    swatch = sample(rng, "cloud", region.shape[:2], rng.uniform(1.5, 3))
    cover = cv2.subtract(swatch, np.full_like(swatch, rng.integers(125, 165)))
    alpha = cv2.convertScaleAbs(cover, alpha=rng.uniform(2, 5))
    gap = cv2.subtract(np.full_like(region, 246), region)
    region[:] = cv2.add(region, cv2.multiply(gap, cv2.merge([alpha] * 3), scale=1 / 255))


def tree(pen: Pen, rng: Generator, x: float, y: float, size: float) -> None:
    """A tree that stands at (x, y), `size` high: leafy or a fir."""
    green = hsv(rng, 0.2, 0.38, 0.4, 0.75, 0.22, 0.5)
    pen.line([(x, y), (x, y - size * 0.5)], size * 0.08, (84, 62, 44))
    if rng.random() < 0.35:
        for k in range(3):
            w, base = size * (0.28 - 0.07 * k), y - size * (0.15 + 0.25 * k)
            pen.poly([(x - w, base), (x, base - size * 0.4), (x + w, base)], tone(green, 0.8 + 0.1 * k))
        return
    for _ in range(9):
        a, r = rng.uniform(0, 2 * math.pi), rng.uniform(0.04, 0.22) * size
        light = 1 - 0.25 * math.sin(a)
        pen.oval(x + r * math.cos(a), y - size * 0.68 + r * math.sin(a), size * 0.17, size * 0.15, tone(green, light))


def _treeline(pen: Pen, rng: Generator, y: float, height: float) -> None:
    """A far wood along the horizon."""
    green = hsv(rng, 0.25, 0.42, 0.2, 0.45, 0.3, 0.5)
    x = -0.05
    while x < _aspect(pen) + 0.1:
        r = rng.uniform(0.6, 1.1) * height
        pen.oval(x, y - r * 0.4, r, r, tone(green, rng.uniform(0.85, 1.15)))
        x += r * 1.1


def _dashes(pen: Pen, horizon: float, x: float, colour: Colour, *, width: float) -> None:
    """A broken line on the ground from the bottom at `x` to the vanishing point."""
    vanish = _aspect(pen) / 2
    for k in range(7):
        near, far = 1 / (1 + 0.9 * k), 1 / (1.45 + 0.9 * k)
        corners = [(near, -width), (near, width), (far, width), (far, -width)]
        pen.poly([(vanish + (x - vanish + d) * t, horizon + (1.08 - horizon) * t) for t, d in corners], colour)


def house(pen: Pen, rng: Generator, x: float, y: float, width: float) -> None:
    """A house with its lower left corner at (x, y): roof, rows of windows, door."""
    wall = hsv(rng, 0.02, 0.15, 0.1, 0.55, 0.6, 0.95)
    storeys = int(rng.integers(1, 4))
    top = y - 0.09 - 0.1 * storeys
    pen.box(x, top, x + width, y, wall)
    pen.poly([(x - 0.015, top), (x + width * 0.25, top - 0.1), (x + width * 0.75, top - 0.1),
        (x + width + 0.015, top)], hsv(rng, 0, 0.06, 0.4, 0.7, 0.3, 0.6))
    columns = max(2, int(width / 0.11))
    pitch = width / columns
    for row in range(storeys):
        for column in range(columns):
            wx, wy = x + pitch * (column + 0.25), top + 0.03 + 0.1 * row
            pen.box(wx - 0.006, wy - 0.006, wx + pitch * 0.5 + 0.006, wy + 0.066, WHITE)
            pen.box(wx, wy, wx + pitch * 0.5, wy + 0.06, (74, 90, 112))
    pen.box(x + pitch * 0.3, y - 0.085, x + pitch * 0.7, y, hsv(rng, 0, 1, 0.5, 0.8, 0.2, 0.5))


def airfield(pen: Pen, rng: Generator) -> Stage:
    h, w = rng.uniform(0.42, 0.55), _aspect(pen)
    _sky(pen, rng, h)
    _treeline(pen, rng, h, 0.03)
    x = rng.uniform(0, w - 0.5)
    pen.box(x, h - 0.1, x + 0.5, h, hsv(rng, 0.5, 0.65, 0.05, 0.2, 0.6, 0.8))
    for k in range(8):
        pen.box(x + 0.02 + 0.06 * k, h - 0.075, x + 0.06 + 0.06 * k, h - 0.03, (84, 104, 126))
    tower = x + (0.58 if x < w / 2 else -0.12)
    pen.box(tower, h - 0.2, tower + 0.035, h, (190, 190, 188))
    pen.poly([(tower - 0.025, h - 0.26), (tower + 0.06, h - 0.26), (tower + 0.05, h - 0.19),
        (tower - 0.015, h - 0.19)], (70, 92, 110))
    _gradient(pen, h, 1, hsv(rng, 0.2, 0.3, 0.3, 0.5, 0.5, 0.65), hsv(rng, 0.2, 0.3, 0.4, 0.6, 0.4, 0.6))
    grey = hsv(rng, 0.6, 0.7, 0, 0.06, 0.42, 0.6)
    pen.poly([(w / 2 - 0.03, h), (w / 2 + 0.03, h), (w / 2 + 1.1, 1.05), (w / 2 - 1.1, 1.05)], grey)
    _floor(pen, rng, h, kind="gravel", contrast=0.35, zoom=1.5, horizon=h)
    _dashes(pen, h, w / 2, WHITE, width=0.03)
    for side in (-0.95, 0.95):
        pen.line([(w / 2, h), (w / 2 + side, 1.05)], 0.01, WHITE)
    return Stage(h, h + 0.14)


def sea(pen: Pen, rng: Generator) -> Stage:
    h, w = rng.uniform(0.35, 0.52), _aspect(pen)
    _sky(pen, rng, h)
    if rng.random() < 0.5:
        x, r = rng.uniform(0, w), rng.uniform(0.2, 0.45)
        land = hsv(rng, 0.3, 0.6, 0.15, 0.4, 0.35, 0.6)
        pen.blob([(x - r, h + 0.01), (x - r * 0.5, h - 0.09), (x, h - 0.05), (x + r * 0.4, h - 0.12),
            (x + r, h + 0.01)], land)
    _gradient(pen, h, 1, hsv(rng, 0.5, 0.6, 0.3, 0.55, 0.55, 0.8), hsv(rng, 0.5, 0.6, 0.5, 0.8, 0.3, 0.6))
    _floor(pen, rng, h, kind="waves", contrast=0.7, zoom=5, horizon=h)
    return Stage(h, h + 0.12)


def beach(pen: Pen, rng: Generator) -> Stage:
    sea(pen, rng)
    w, shore = _aspect(pen), rng.uniform(0.62, 0.7)
    edge = [(k * w / 8, shore + 0.02 * math.sin(1.7 * k)) for k in range(9)]
    pen.poly([*[(x, y - 0.02) for x, y in edge], (w, 1.01), (0, 1.01)], (225, 232, 230))
    sand = hsv(rng, 0.09, 0.13, 0.25, 0.45, 0.75, 0.9)
    pen.poly([*edge, (w, 1.01), (0, 1.01)], sand)
    _floor(pen, rng, shore + 0.02, kind="gravel", contrast=0.25, zoom=2, horizon=shore - 0.3)
    if rng.random() < 0.5:
        x, cloth = rng.uniform(0.1, w - 0.1), paint(rng)
        pen.line([(x, shore + 0.06), (x, shore - 0.22)], 0.012, WHITE)
        for k in range(6):
            left, right = x - 0.18 + 0.06 * k, x - 0.12 + 0.06 * k
            pen.poly([(x, shore - 0.26), (left, shore - 0.15), (right, shore - 0.15)], cloth if k % 2 else WHITE)
    return Stage(shore, shore + 0.12)


def road(pen: Pen, rng: Generator) -> Stage:
    h, w = rng.uniform(0.42, 0.5), _aspect(pen)
    _sky(pen, rng, h)
    x = rng.uniform(-0.2, 0)
    while x < w:
        width = rng.uniform(0.22, 0.42)
        if rng.random() < 0.75:
            house(pen, rng, x, h + 0.02, width)
        else:
            tree(pen, rng, x + width / 2, h + 0.02, 0.32)
        x += width + 0.02
    _gradient(pen, h + 0.015, 1, hsv(rng, 0.18, 0.3, 0.2, 0.5, 0.45, 0.6), hsv(rng, 0.18, 0.3, 0.3, 0.5, 0.4, 0.6))
    grey, vanish = hsv(rng, 0.6, 0.7, 0, 0.08, 0.28, 0.45), w / 2
    pen.poly([(vanish - 0.12, h + 0.015), (vanish + 0.12, h + 0.015), (vanish + 1.25, 1.05), (vanish - 1.25, 1.05)],
        tone(grey, 1.5))
    pen.poly([(vanish - 0.09, h + 0.015), (vanish + 0.09, h + 0.015), (vanish + 1.05, 1.05), (vanish - 1.05, 1.05)],
        grey)
    _floor(pen, rng, h + 0.015, kind="gravel", contrast=0.4, zoom=1.5, horizon=h - 0.02)
    _dashes(pen, h - 0.02, vanish, WHITE, width=0.025)
    return Stage(h + 0.015, h + 0.16)


def street(pen: Pen, rng: Generator) -> Stage:
    y, w = rng.uniform(0.5, 0.6), _aspect(pen)
    _gradient(pen, 0, y, hsv(rng, 0, 0.12, 0.2, 0.6, 0.45, 0.8), hsv(rng, 0, 0.12, 0.2, 0.6, 0.45, 0.8))
    _weave(pen, rng, 0, y, kind="bricks", contrast=0.7, zoom=0.7)
    x, pitch = rng.uniform(-0.3, 0), rng.uniform(0.4, 0.55)
    while x < w:
        glass, frame, awning = hsv(rng, 0.08, 0.6, 0.1, 0.4, 0.45, 0.85), paint(rng), paint(rng)
        pen.box(x + 0.02, y - 0.36, x + pitch - 0.02, y, frame)
        pen.box(x + 0.04, y - 0.26, x + pitch * 0.62, y - 0.05, glass)
        pen.poly([(x + 0.06, y - 0.05), (x + 0.16, y - 0.26), (x + 0.22, y - 0.26), (x + 0.12, y - 0.05)], tone(glass,
            1.2))
        pen.box(x + pitch * 0.68, y - 0.25, x + pitch - 0.05, y, tone(frame, 0.55))
        pen.box(x + pitch * 0.71, y - 0.23, x + pitch - 0.07, y - 0.11, glass)
        for k in range(8):
            a, b = x + pitch * k / 8, x + pitch * (k + 1) / 8
            pen.poly([(a, y - 0.36), (b, y - 0.36), (b, y - 0.27), (a, y - 0.27)], awning if k % 2 else WHITE)
        for k in range(2):
            pen.box(x + 0.06 + pitch * 0.5 * k, -0.02, x + pitch * (0.32 + 0.5 * k), y - 0.43, WHITE)
            pen.box(x + 0.075 + pitch * 0.5 * k, -0.02, x + pitch * (0.3 + 0.5 * k), y - 0.445, (78, 92, 112))
        x += pitch
    stone = hsv(rng, 0.05, 0.15, 0.03, 0.2, 0.55, 0.75)
    _gradient(pen, y, 1, stone, tone(stone, 1.1))
    _floor(pen, rng, y, kind="tiles", contrast=0.6, zoom=2.2, horizon=y - 0.2)
    return Stage(y, y + 0.1)


def meadow(pen: Pen, rng: Generator) -> Stage:
    h, w = rng.uniform(0.34, 0.5), _aspect(pen)
    _sky(pen, rng, h)
    for k in range(2):
        phase, rise = rng.uniform(0, 6), 0.1 - 0.04 * k
        ridge = [(w * i / 16, h - rise * (0.6 + 0.5 * math.sin(i * 0.5 + phase))) for i in range(17)]
        pen.poly([*ridge, (w, h + 0.02), (0, h + 0.02)], hsv(rng, 0.25, 0.5 - 0.15 * k, 0.15, 0.4, 0.45, 0.65))
    if rng.random() < 0.6:
        _treeline(pen, rng, h, 0.035)
    _gradient(pen, h, 1, hsv(rng, 0.18, 0.28, 0.4, 0.65, 0.55, 0.75), hsv(rng, 0.2, 0.32, 0.5, 0.8, 0.35, 0.6))
    _floor(pen, rng, h, kind="grass", contrast=0.8, zoom=1.6, horizon=h - 0.03)
    for _ in range(int(rng.integers(0, 3))):
        tree(pen, rng, rng.uniform(0, w), h + 0.04, rng.uniform(0.25, 0.45))
    if rng.random() < 0.7:
        base, wood = h + rng.uniform(0.05, 0.1), hsv(rng, 0.06, 0.1, 0.2, 0.5, 0.45, 0.8)
        for rail in (0.045, 0.09):
            pen.line([(0, base - rail), (w, base - rail)], 0.012, tone(wood, 0.9))
        pitch = rng.uniform(0.1, 0.16)
        for k in range(int(w / pitch) + 1):
            pen.box(k * pitch, base - 0.12, k * pitch + 0.02, base + 0.01, wood)
    for _ in range(int(rng.integers(0, 30))):
        pen.oval(rng.uniform(0, w), rng.uniform(h + 0.15, 1), 0.008, 0.007, hsv(rng, 0.1, 1, 0, 0.8, 0.9, 1))
    return Stage(h, h + 0.16)


def railway(pen: Pen, rng: Generator) -> Stage:
    h, w = rng.uniform(0.42, 0.52), _aspect(pen)
    _sky(pen, rng, h)
    _treeline(pen, rng, h, rng.uniform(0.04, 0.09))
    _gradient(pen, h, 1, hsv(rng, 0.18, 0.3, 0.3, 0.5, 0.4, 0.6), hsv(rng, 0.08, 0.14, 0.1, 0.25, 0.45, 0.6))
    _floor(pen, rng, h, kind="gravel", contrast=0.6, zoom=1.5, horizon=h - 0.1)
    level, pitch = rng.uniform(0.7, 0.8), rng.uniform(0.4, 0.55)
    for x in np.arange(rng.uniform(-0.2, 0), w, pitch).tolist():
        pen.box(x, 0.1, x + 0.02, level - 0.06, (110, 114, 118))
        pen.box(x - 0.12, 0.15, x + 0.02, 0.162, (110, 114, 118))
    for y in (0.13, 0.19):
        pen.line([(0, y), (w, y)], 0.006, (60, 60, 64))
    for x in np.arange(-0.05, w, 0.075).tolist():
        pen.poly([(x, level - 0.045), (x + 0.035, level - 0.045), (x + 0.045, level + 0.05),
            (x + 0.005, level + 0.05)], (92, 70, 54))
    for y in (level - 0.03, level + 0.02):
        pen.line([(0, y), (w, y)], 0.014, (176, 178, 184))
        pen.line([(0, y + 0.01), (w, y + 0.01)], 0.006, (70, 62, 58))
    if rng.random() < 0.6:
        edge = level + rng.uniform(0.09, 0.12)
        stone = hsv(rng, 0.05, 0.15, 0.03, 0.2, 0.6, 0.8)
        _gradient(pen, edge, 1, stone, stone)
        _floor(pen, rng, edge, kind="tiles", contrast=0.5, zoom=2, horizon=edge - 0.3)
        pen.box(0, edge + 0.02, w, edge + 0.035, (232, 200, 70))
    return Stage(h, level + 0.1, 0.98, level)


def _wall(pen: Pen, rng: Generator, y: float) -> None:
    """A papered wall down to `y`, with a skirting board."""
    paper = hsv(rng, 0, 1, 0.1, 0.45, 0.6, 0.92)
    _gradient(pen, 0, y, paper, tone(paper, 0.9))
    kind = str(rng.choice(["stripes", "dots", "plaid", "grain", "cloud"]))
    _weave(pen, rng, 0, y, kind=kind, contrast=rng.uniform(0.15, 0.35), zoom=rng.uniform(0.6, 1.2))
    pen.box(0, y - 0.035, _aspect(pen), y, (232, 228, 220))


def _window(pen: Pen, rng: Generator, x: float) -> None:
    """A window with a view and curtains."""
    y0, y1, w = 0.08, 0.42, 0.34
    pen.box(x - 0.015, y0 - 0.015, x + w + 0.015, y1 + 0.015, WHITE)
    pen.box(x, y0, x + w, y1, hsv(rng, 0.52, 0.62, 0.15, 0.5, 0.85, 1))
    pen.poly([(x, y1), (x, y1 - 0.09), (x + w * 0.5, y1 - 0.13), (x + w, y1 - 0.07), (x + w, y1)], hsv(rng, 0.22,
        0.38, 0.3, 0.6, 0.4, 0.7))
    pen.line([(x + w / 2, y0), (x + w / 2, y1)], 0.014, WHITE)
    pen.line([(x, (y0 + y1) / 2), (x + w, (y0 + y1) / 2)], 0.014, WHITE)
    cloth = paint(rng)
    for side in (x - 0.05, x + w - 0.05):
        for k in range(4):
            pen.box(side + 0.025 * k, y0 - 0.04, side + 0.025 * (k + 1), y1 + 0.06, tone(cloth, 0.8 + 0.2 * (k % 2)))


def living(pen: Pen, rng: Generator) -> Stage:
    y, w = rng.uniform(0.56, 0.66), _aspect(pen)
    _wall(pen, rng, y)
    left, right = rng.uniform(0.02, w / 2 - 0.3), rng.uniform(w / 2 + 0.05, w - 0.3)
    _window(pen, rng, left if rng.random() < 0.5 else right)
    for x in np.arange(rng.uniform(0, 0.2), w, rng.uniform(0.4, 0.7)).tolist():
        if rng.random() < 0.4:
            pen.box(x, 0.12, x + 0.2, 0.34, hsv(rng, 0.05, 0.12, 0.3, 0.8, 0.25, 0.8))
            pen.box(x + 0.02, 0.14, x + 0.18, 0.32, hsv(rng, 0, 1, 0.1, 0.5, 0.7, 0.95))
            pen.blob([(x + 0.02, 0.32), (x + 0.06, 0.22), (x + 0.12, 0.26), (x + 0.18, 0.2), (x + 0.18, 0.32)],
                paint(rng))
    wood = hsv(rng, 0.05, 0.1, 0.3, 0.65, 0.45, 0.8)
    _gradient(pen, y, 1, tone(wood, 0.85), wood)
    _floor(pen, rng, y, kind="boards", contrast=0.6, zoom=2.2, horizon=y - 0.25)
    if rng.random() < 0.5:
        rug, x = paint(rng), rng.uniform(0.3 * w, 0.7 * w)
        for k in range(4):
            pen.oval(x, 0.87, 0.42 - 0.09 * k, 0.1 - 0.022 * k, tone(rug, 0.75 + 0.35 * (k % 2)))
    return Stage(y, y + 0.09)


def kitchen(pen: Pen, rng: Generator) -> Stage:
    y, w = rng.uniform(0.56, 0.64), _aspect(pen)
    glaze, front = hsv(rng, 0, 1, 0.03, 0.35, 0.75, 0.95), hsv(rng, 0, 1, 0.1, 0.6, 0.45, 0.9)
    _gradient(pen, 0, y, glaze, glaze)
    _weave(pen, rng, 0, y, kind="tiles", contrast=0.4, zoom=rng.uniform(0.6, 0.9))
    pitch = rng.uniform(0.2, 0.28)
    for x in np.arange(rng.uniform(-0.2, 0), w, pitch).tolist():
        for top, bottom in ((-0.02, 0.2), (y - 0.25, y)):
            pen.box(x, top, x + pitch, bottom, tone(front, 0.75))
            pen.box(x + 0.01, top + 0.01, x + pitch - 0.01, bottom - 0.01, front)
            pen.box(x + 0.035, top + 0.035, x + pitch - 0.035, bottom - 0.035, tone(front, 0.92))
            pen.box(x + pitch - 0.05, (top + bottom) / 2 - 0.03, x + pitch - 0.038, (top + bottom) / 2 + 0.03,
                (90, 90, 92))
    pen.box(0, y - 0.275, w, y - 0.24, hsv(rng, 0.05, 0.12, 0.2, 0.5, 0.3, 0.6))
    stone = hsv(rng, 0, 1, 0.03, 0.25, 0.6, 0.85)
    _gradient(pen, y, 1, tone(stone, 0.85), stone)
    _floor(pen, rng, y, kind=str(rng.choice(["checker", "tiles"])), contrast=0.6, zoom=2.2, horizon=y - 0.25)
    return Stage(y, y + 0.09)


def counter(pen: Pen, rng: Generator) -> Stage:
    y = rng.uniform(0.55, 0.68)
    if rng.random() < 0.5:
        glaze = hsv(rng, 0, 1, 0.03, 0.4, 0.6, 0.92)
        _gradient(pen, 0, y, glaze, tone(glaze, 0.9))
        _weave(pen, rng, 0, y, kind=str(rng.choice(["tiles", "bricks"])), contrast=0.45, zoom=rng.uniform(0.8, 1.4))
    else:
        _wall(pen, rng, y)
    wood = hsv(rng, 0.04, 0.1, 0.3, 0.7, 0.4, 0.8)
    _gradient(pen, y, 1, tone(wood, 0.85), tone(wood, 1.1))
    _floor(pen, rng, y, kind="planks", contrast=0.6, zoom=2.5, horizon=y - 0.3)
    pen.box(0, 0.965, _aspect(pen), 1.01, tone(wood, 0.5))
    return Stage(y, y + 0.07, 0.94)


SETTINGS: dict[str, Callable[[Pen, Generator], Stage]] = {
    "airfield": airfield, "sea": sea, "beach": beach, "road": road, "street": street, "meadow": meadow,
    "railway": railway, "living": living, "kitchen": kitchen, "counter": counter,
}
