"""The world of the `tiny` data: painted scenes in which the twenty VOC classes stand where they belong.

A scene is a setting (sky and airfield, sea, road, street, meadow, railway, living room, kitchen,
counter) with a few figures. Settings are regular on purpose (fences, tiles, windows, rails,
waves): what a hole hides can be guessed from what surrounds it, which is what inpainting learns
from. Figures are drawn from parts, so that a class is known by its shape and texture, not by one
colour. Everything is painted back to front at FINE times the final size; what a figure still
shows at the end is its mask, and boxes and label images are made from that mask alone.
"""

from __future__ import annotations

import colorsys
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Frame = NDArray[np.float64]
Colour = tuple[int, int, int]
Point = tuple[float, float]
Points = Sequence[Point] | NDArray[np.float64]  # (n, 2)

FINE = 2  # canvas pixels per image pixel: the second half of the anti-aliasing
SHIFT = 4  # fractional bits of the coordinates handed to OpenCV
TILE = 256  # side of a texture tile, pixels
WHITE, BLACK, GREY = (238, 238, 234), (28, 28, 30), (128, 128, 130)


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


# ---------------------------------------------------------------------------------------------
# Colours and textures


def hsv(rng: Generator, *bounds: float) -> Colour:
    """A random RGB colour; `bounds` are hue, saturation and value, each low then high, in 0..1."""
    h, s, v = (rng.uniform(bounds[i], bounds[i + 1]) for i in (0, 2, 4))
    r, g, b = colorsys.hsv_to_rgb(h % 1.0, s, v)
    return round(r * 255), round(g * 255), round(b * 255)


def paint(rng: Generator) -> Colour:
    """A colour as of painted metal or cloth: any hue, sometimes white, grey or black."""
    if rng.random() < 0.25:
        return hsv(rng, 0, 1, 0, 0.1, 0.15, 0.95)
    return hsv(rng, 0, 1, 0.45, 0.9, 0.4, 0.95)


def tone(colour: Colour, factor: float) -> Colour:
    """The colour made darker (factor < 1) or lighter."""
    r, g, b = (min(255, round(c * factor)) for c in colour)
    return r, g, b


def _noise(name: str, along: float, across: float) -> NDArray[np.float64]:
    """Periodic noise, (TILE, TILE), unit variance; features of `along` x `across` pixels."""
    rng = np.random.default_rng([TILE, *name.encode()])
    f = np.fft.fftfreq(TILE)
    band = np.exp(-20 * ((f[None, :] * along) ** 2 + (f[:, None] * across) ** 2))
    band[0, 0] = 0
    field = np.fft.ifft2(np.fft.fft2(rng.standard_normal((TILE, TILE))) * band).real
    return np.asarray(field / field.std(), dtype=np.float64)


def _grid(columns: int, rows: int, *, joint: float, stagger: float = 0.0) -> NDArray[np.float64]:
    """Tiles or bricks, (TILE, TILE): each cell its own shade, the joints between them dark."""
    rng = np.random.default_rng([columns, rows])
    at = np.arange(TILE) / TILE
    y, row = np.modf(at * rows)
    x, column = np.modf(at[None, :] * columns + stagger * (row[:, None] % 2))
    shade = rng.normal(0, 0.5, (rows, columns))
    cells = shade[row.astype(int)[:, None], column.astype(int) % columns]
    seam = (y[:, None] < joint) | (x < joint * columns / rows)
    return np.asarray(np.where(seam, -2.5, cells), dtype=np.float64)


def _bands(kind: str) -> NDArray[np.float64]:
    """Woven patterns, (TILE, TILE): stripes, plaid, dots or a checkerboard, around zero."""
    wave = np.sin(np.arange(TILE) * (2 * math.pi * 8 / TILE))
    x, y = wave[None, :], wave[:, None]
    patterns = {
        "stripes": np.sign(x) + 0 * y,
        "plaid": np.sign(x) + np.sign(y),
        "dots": np.where(x + y > 1.2, 2.0, -0.3),
        "checker": 1.2 * np.sign(x * y),
    }
    return np.asarray(patterns[kind], dtype=np.float64)


@functools.cache
def tile(kind: str) -> Image:
    """A periodic texture, (TILE, TILE) uint8, to multiply an image with: 128 leaves it alone."""
    makers: dict[str, Callable[[], NDArray[np.float64]]] = {
        "grain": lambda: _noise("grain", 1.5, 1.5),
        "fur": lambda: _noise("fur", 5, 1.2),
        "wool": lambda: _noise("wool", 5, 5),
        "wood": lambda: _noise("wood", 40, 1.5),
        "leaf": lambda: _noise("leaf", 3, 6),
        "cloud": lambda: _noise("a", 90, 60) + 0.5 * _noise("b", 30, 24) + 0.3 * _noise("c", 9, 9),
        "grass": lambda: _noise("grass", 2, 3) + 0.6 * _noise("d", 30, 30),
        "gravel": lambda: _noise("gravel", 4, 4) + 0.8 * _noise("e", 1, 1),
        "waves": lambda: _noise("waves", 26, 6) + 0.7 * _noise("f", 9, 3),
        "planks": lambda: _grid(2, 12, joint=0.06, stagger=0.5) + 0.5 * _noise("wood", 40, 1.5),
        "boards": lambda: (_grid(2, 12, joint=0.06, stagger=0.5) + 0.5 * _noise("g", 40, 2)).T,
        "bricks": lambda: _grid(8, 16, joint=0.14, stagger=0.5) + 0.3 * _noise("grain", 1.5, 1.5),
        "tiles": lambda: _grid(8, 8, joint=0.08) + 0.2 * _noise("grain", 1.5, 1.5),
    }
    field = makers[kind]() if kind in makers else _bands(kind)
    return np.clip(128 + 32 * field, 0, 255).astype(np.uint8)


def _fade(texture: Image, contrast: float) -> Image:
    """The texture with its departures from 128 scaled by `contrast`; same shape."""
    faded = cv2.convertScaleAbs(texture, alpha=contrast, beta=128 * (1 - contrast))
    return np.asarray(faded, dtype=np.uint8)


def _multiply(region: Image, texture: Image) -> None:
    """Multiply an RGB view (h, w, 3) in place by a texture (h, w)."""
    region[:] = cv2.multiply(region, cv2.merge([texture] * 3), scale=1 / 128)


def _swatch(rng: Generator, kind: str, shape: tuple[int, int], zoom: float) -> Image:
    """A randomly placed piece (h, w) of a tile, its features `zoom` times as large."""
    texture = tile(kind)
    h, w = (math.ceil(side / zoom) for side in shape)
    y, x = rng.integers(0, TILE, 2)
    piece = texture.take(range(y, y + h), 0, mode="wrap").take(range(x, x + w), 1, mode="wrap")
    resized = cv2.resize(piece, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.uint8)


# ---------------------------------------------------------------------------------------------
# The pen


@dataclass(frozen=True)
class Pen:
    """Draws on a canvas (h, w, 3) through `frame`, a 2 x 3 affine map to canvas pixels.

    A figure is drawn in its own units: x to the right, y down, feet at y = 0, top at about -1.
    Its outline is kept in `mask`, (h + 2 m, w + 2 m) with a margin m so that what the border of
    the image cuts off is known too; a setting has no mask. `sway` bends the figure a little.
    """

    canvas: Image
    frame: Frame
    mask: Image | None = None
    margin: int = 0
    sway: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def place(self, points: Points) -> NDArray[np.float64]:
        """Canvas coordinates (n, 2) of points in figure units."""
        much, a, b = self.sway
        p = np.array(points, dtype=np.float64)
        if much:
            p += much * np.sin(p[:, ::-1] * (4, 3) + (a, b))
        return np.asarray(p @ self.frame[:, :2].T + self.frame[:, 2], dtype=np.float64)

    def poly(self, points: Points, colour: Colour) -> None:
        """A filled polygon."""
        at = self.place(points)
        fixed = np.rint(at * (1 << SHIFT)).astype(np.int32)
        cv2.fillPoly(self.canvas, [fixed], colour, cv2.LINE_AA, SHIFT)
        if self.mask is not None:
            cv2.fillPoly(self.mask, [fixed + (self.margin << SHIFT)], (255,), cv2.LINE_AA, SHIFT)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        """A filled rectangle."""
        self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour)

    def blob(self, points: Points, colour: Colour) -> None:
        """A filled closed curve that follows the polygon with its corners cut (Chaikin, twice)."""
        p = np.asarray(points, dtype=np.float64)
        for _ in range(2):
            after = np.roll(p, -1, 0)
            p = np.stack([0.8 * p + 0.2 * after, 0.2 * p + 0.8 * after], 1).reshape(-1, 2)
        self.poly(p, colour)

    def oval(self, x: float, y: float, rx: float, ry: float, colour: Colour, turn: float = 0) -> None:
        """A filled ellipse about (x, y), turned by `turn` radians."""
        c, s = math.cos(turn), math.sin(turn)
        self.poly(_ring() @ ((rx * c, rx * s), (-ry * s, ry * c)) + (x, y), colour)

    def line(self, points: Points, width: float, colour: Colour, *, closed: bool = False) -> None:
        """A line of `width` figure units with round joints."""
        scale = math.sqrt(abs(float(np.linalg.det(self.frame[:, :2]))))
        thick = max(1, round(width * scale))
        fixed = np.rint(self.place(points) * (1 << SHIFT)).astype(np.int32)
        cv2.polylines(self.canvas, [fixed], closed, colour, thick, cv2.LINE_AA, SHIFT)
        if self.mask is not None:
            fixed += self.margin << SHIFT
            cv2.polylines(self.mask, [fixed], closed, (255,), thick, cv2.LINE_AA, SHIFT)

    def ring(self, x: float, y: float, r: float, width: float, colour: Colour) -> None:
        """A circle of radius `r`, drawn as a line."""
        self.line(_ring() * r + (x, y), width, colour, closed=True)


@functools.cache
def _circle() -> tuple[Point, ...]:
    """Twenty-four points of the unit circle."""
    return tuple((math.cos(k * math.pi / 12), math.sin(k * math.pi / 12)) for k in range(24))


@functools.cache
def _ring() -> NDArray[np.float64]:
    """The same points, (24, 2)."""
    return np.array(_circle())


# ---------------------------------------------------------------------------------------------
# The twenty figures. Each faces right; mirroring, size, tilt and sway come from its frame.
# An outline reads as a row of points, not as a column: hence
# fmt: off


def _legs(pen: Pen, rng: Generator, xs: Sequence[float], *, top: float, width: float, coat: Colour) -> None:
    """Straight or stepping legs from y = `top` to the ground, each with a dark foot."""
    for x in xs:
        step = rng.uniform(-0.06, 0.06)
        pen.line([(x, top), (x + step * 0.6, top / 2), (x + step, -width / 2)], width, coat)
        pen.line([(x + step, -width / 2), (x + step + width * 0.3, -width / 2)], width, tone(coat, 0.45))


def aeroplane(pen: Pen, rng: Generator, *, flying: bool = False) -> None:
    hull, livery = hsv(rng, 0, 1, 0, 0.12, 0.75, 0.97), paint(rng)
    pen.poly([(-0.75, -0.55), (-1.2, -0.72), (-1.05, -0.5)], tone(hull, 0.75))
    pen.poly([(-0.1, -0.5), (-0.35, -0.85), (-0.2, -0.85), (0.3, -0.52)], tone(hull, 0.7))
    pen.blob([(-1.2, -0.6), (-0.8, -0.65), (0.7, -0.66), (1.05, -0.58), (1.18, -0.44), (0.9, -0.34), (-0.5, -0.34),
        (-0.9, -0.45)], hull)
    pen.poly([(-0.7, -0.62), (-1.2, -1), (-1.0, -1), (-0.4, -0.64)], livery)
    pen.poly([(-0.9, -0.46), (-0.4, -0.38), (0.95, -0.38), (0.8, -0.33), (-0.5, -0.335)], livery)
    for k in range(11):
        pen.oval(-0.55 + 0.125 * k, -0.54, 0.03, 0.04, (60, 75, 95))
    pen.poly([(0.92, -0.6), (1.02, -0.56), (1.06, -0.5), (0.93, -0.5)], (50, 62, 82))
    pen.oval(0.12, -0.24, 0.17, 0.075, tone(livery, 0.8))
    pen.oval(0.27, -0.24, 0.03, 0.07, (40, 40, 45))
    pen.poly([(0.3, -0.42), (-0.1, -0.42), (-0.65, -0.06), (-0.45, -0.06)], tone(hull, 0.86))
    if not flying:
        for x in (-0.15, 0.75):
            pen.line([(x, -0.34), (x, -0.06)], 0.03, (80, 80, 85))
            pen.oval(x, -0.055, 0.07, 0.055, BLACK)


def bicycle(pen: Pen, rng: Generator) -> None:
    frame, r = paint(rng), rng.uniform(0.33, 0.37)
    crank, seat, bar = (-0.08, -r), (-0.2, -0.85), (0.4, -0.92)
    for x in (-0.52, 0.52):
        for a, b in _circle()[::3]:
            pen.line([(x, -r), (x + r * a, -r + r * b)], 0.012, (150, 150, 155))
        pen.ring(x, -r, r - 0.03, 0.05, BLACK)
        pen.ring(x, -r, r - 0.075, 0.02, (175, 175, 180))
    tubes = [[(-0.52, -r), crank], [(-0.52, -r), (-0.18, -0.72)], [crank, seat], [(-0.17, -0.7), (0.36, -0.74)],
        [crank, (0.38, -0.68)], [(0.52, -r), bar]]
    for tube in tubes:
        pen.line(tube, 0.05, frame)
    pen.blob([(-0.32, -0.92), (-0.06, -0.89), (-0.08, -0.84), (-0.3, -0.83)], BLACK)
    pen.line([bar, (0.52, -0.97), (0.56, -0.88)], 0.045, BLACK)
    pen.ring(*crank, 0.07, 0.03, (90, 90, 95))
    pen.line([(crank[0] - 0.08, crank[1] + 0.1), (crank[0] + 0.08, crank[1] - 0.1)], 0.03, BLACK)


def bird(pen: Pen, rng: Generator, *, flying: bool = False) -> None:
    back = hsv(rng, 0, 1, 0.35, 0.9, 0.3, 0.8)
    breast = hsv(rng, 0.02, 0.16, 0.1, 0.8, 0.75, 0.95)
    lift = rng.uniform(0.2, 0.45)
    if flying:
        pen.poly([(-0.1, -0.55), (-0.5, -0.7 - lift), (-0.2, -0.72 - lift), (0.25, -0.55)], tone(back, 0.7))
    else:
        for x in (-0.02, 0.1):
            pen.line([(x, -0.25), (x + 0.03, -0.03), (x + 0.12, -0.02)], 0.03, (150, 100, 50))
    pen.poly([(-0.3, -0.5), (-0.85, -0.32), (-0.8, -0.2), (-0.25, -0.32)], tone(back, 0.8))
    pen.blob([(-0.45, -0.4), (-0.2, -0.62), (0.15, -0.72), (0.22, -0.95), (0.42, -1.0), (0.55, -0.86), (0.45, -0.6),
        (0.3, -0.3), (0, -0.18), (-0.3, -0.24)], back)
    pen.blob([(0.1, -0.5), (0.4, -0.68), (0.38, -0.4), (0.2, -0.24), (-0.1, -0.22)], breast)
    pen.poly([(0.5, -0.9), (0.76, -0.8), (0.5, -0.76)], (225, 160, 50))
    pen.oval(0.4, -0.87, 0.035, 0.035, BLACK)
    pen.oval(0.41, -0.88, 0.012, 0.012, WHITE)
    tip = (-0.45, -0.85 - lift) if flying else (-0.55, -0.22)
    pen.blob([(0.18, -0.6), tip, (tip[0] + 0.12, tip[1] + 0.05), (0, -0.32), (0.2, -0.4)], tone(back, 0.6))
    for k in range(3):
        pen.line([(0.1 - 0.1 * k, -0.48), (tip[0] + 0.1 + 0.05 * k, tip[1] + 0.03)], 0.02, tone(back, 0.4))


def boat(pen: Pen, rng: Generator) -> None:
    hull, deck = paint(rng), hsv(rng, 0.06, 0.1, 0.3, 0.6, 0.5, 0.8)
    sails = rng.random() < 0.6
    if sails:
        cloth = hsv(rng, 0, 1, 0, 0.15, 0.8, 0.98)
        pen.line([(0.02, -0.2), (0.02, -1)], 0.025, tone(deck, 0.6))
        pen.blob([(-0.03, -0.96), (-0.03, -0.28), (-0.5, -0.27), (-0.3, -0.55)], cloth)
        pen.poly([(0.06, -0.92), (0.07, -0.3), (0.5, -0.27)], tone(cloth, 0.85))
        pen.line([(-0.08, -0.62), (-0.3, -0.6)], 0.03, hull)
    else:
        pen.box(-0.35, -0.55, 0.15, -0.2, WHITE)
        pen.box(-0.4, -0.62, 0.22, -0.54, tone(hull, 0.8))
        for x in (-0.3, -0.14, 0.02):
            pen.box(x, -0.49, x + 0.1, -0.37, (62, 84, 108))
        pen.line([(-0.2, -0.6), (-0.2, -0.95)], 0.03, GREY)
        pen.line([(-0.2, -0.9), (0.6, -0.22)], 0.012, GREY)
    pen.blob([(-0.62, -0.24), (-0.6, -0.24), (0.6, -0.24), (0.75, -0.3), (0.72, -0.28), (0.5, 0), (-0.5, 0)], hull)
    pen.line([(-0.58, -0.21), (0.62, -0.22)], 0.035, deck)
    pen.line([(-0.53, -0.09), (0.55, -0.09)], 0.03, WHITE)


def bottle(pen: Pen, rng: Generator) -> None:
    glass = hsv(rng, *((0.22, 0.45, 0.5, 0.9, 0.2, 0.55) if rng.random() < 0.6 else (0.03, 0.1, 0.6, 0.9, 0.25, 0.5)))
    label, cap = hsv(rng, 0, 1, 0.05, 0.5, 0.8, 0.95), paint(rng)
    w, shoulder = rng.uniform(0.13, 0.19), rng.uniform(-0.68, -0.52)
    n = w * rng.uniform(0.34, 0.45)
    right = [(w, 0.0), (w, shoulder), (w * 0.8, shoulder - 0.1), (n, shoulder - 0.18), (n, -0.95)]
    pen.poly(right + [(-x, y) for x, y in reversed(right)], glass)
    pen.box(-w, shoulder * 0.8, w, shoulder * 0.25, label)
    pen.box(-w, shoulder * 0.72, w, shoulder * 0.62, cap)
    for k in range(3):
        pen.box(-w * 0.6, shoulder * (0.52 - 0.08 * k), w * 0.5, shoulder * (0.49 - 0.08 * k), tone(label, 0.5))
    pen.box(-n * 1.15, -1, n * 1.15, -0.92, cap)
    pen.line([(-w * 0.6, shoulder * 0.92), (-w * 0.6, -0.06)], w * 0.14, tone(glass, 1.9))
    pen.line([(-n * 0.4, -0.88), (-n * 0.5, shoulder - 0.16)], n * 0.3, tone(glass, 1.9))


def _wheel(pen: Pen, x: float, r: float) -> None:
    """A wheel that stands on the ground at `x`, with tyre, rim and hub."""
    pen.oval(x, -r, r, r, BLACK)
    pen.oval(x, -r, r * 0.58, r * 0.58, (165, 165, 170))
    pen.oval(x, -r, r * 0.2, r * 0.2, (70, 70, 75))


def bus(pen: Pen, rng: Generator) -> None:
    body, band = hsv(rng, 0, 1, 0.55, 0.95, 0.55, 0.95), paint(rng)
    length, decks = rng.uniform(0.95, 1.2), 2 if rng.random() < 0.25 else 1
    pen.poly([(-length, -0.1), (-length, -0.96), (-length + 0.05, -1), (length - 0.06, -1), (length, -0.92),
        (length, -0.1)], body)
    pen.box(-length, -0.36, length, -0.28, band)
    rows = ((-0.92, -0.7), (-0.6, -0.4)) if decks == 2 else ((-0.86, -0.48),)
    glass, columns = hsv(rng, 0.55, 0.62, 0.2, 0.4, 0.25, 0.5), int(rng.integers(5, 8))
    pitch = (2 * length - 0.45) / columns
    for top, bottom in rows:
        for k in range(columns):
            x = -length + 0.07 + pitch * k
            pen.box(x, top, x + pitch * 0.85, bottom, glass)
            pen.poly([(x, bottom), (x + pitch * 0.4, top), (x + pitch * 0.55, top)], tone(glass, 1.5))
    pen.box(length - 0.33, -0.84, length - 0.1, -0.14, tone(glass, 0.8))
    pen.line([(length - 0.215, -0.84), (length - 0.215, -0.14)], 0.02, tone(body, 0.7))
    pen.poly([(length - 0.06, -0.84), (length, -0.8), (length, -0.48), (length - 0.06, -0.46)], tone(glass, 1.3))
    pen.oval(length - 0.04, -0.2, 0.04, 0.05, (250, 240, 180))
    pen.box(-length, -0.26, -length + 0.04, -0.16, (200, 40, 40))
    for x in (-length * 0.6, length * 0.5):
        _wheel(pen, x, 0.155)


def car(pen: Pen, rng: Generator) -> None:
    body = paint(rng)
    glass = hsv(rng, 0.52, 0.62, 0.15, 0.35, 0.35, 0.65)
    tail = rng.uniform(-0.75, -0.45)
    pen.blob([(tail - 0.2, -0.58), (tail + 0.12, -0.98), (0.2, -1.0), (0.58, -0.6), (0.3, -0.5), (tail, -0.5)], body)
    pen.blob([(-1.08, -0.2), (-1.08, -0.58), (-0.7, -0.64), (0.55, -0.62), (1.0, -0.52), (1.1, -0.38), (1.08, -0.16)],
        body)
    pen.poly([(tail, -0.62), (tail + 0.18, -0.9), (-0.12, -0.92), (-0.12, -0.62)], glass)
    pen.poly([(-0.05, -0.62), (-0.05, -0.92), (0.16, -0.91), (0.42, -0.62)], tone(glass, 1.15))
    pen.line([(-0.08, -0.58), (-0.08, -0.22)], 0.02, tone(body, 0.6))
    pen.line([(-1.0, -0.44), (1.0, -0.42)], 0.025, tone(body, 1.35))
    pen.box(-1.07, -0.2, 1.07, -0.13, tone(body, 0.4))
    pen.box(-0.28, -0.52, -0.16, -0.48, tone(body, 0.55))
    pen.oval(1.02, -0.42, 0.07, 0.06, (250, 244, 200))
    pen.box(-1.08, -0.52, -1.0, -0.4, (205, 40, 36))
    for x in (-0.62, 0.62):
        pen.oval(x, -0.22, 0.26, 0.25, tone(body, 0.35))
        _wheel(pen, x, 0.21)


def _face(pen: Pen, x: float, y: float, r: float, eye: Colour) -> None:
    """A cat's face of radius `r` seen from the front: eyes, nose, whiskers."""
    for side in (-1, 1):
        pen.oval(x + side * r * 0.42, y - r * 0.1, r * 0.2, r * 0.2, eye)
        pen.oval(x + side * r * 0.42, y - r * 0.1, r * 0.07, r * 0.18, BLACK)
        for k in (0.2, 0.4):
            pen.line([(x + side * r * 0.3, y + r * 0.35), (x + side * r * 1.05, y + r * k)], 0.01, WHITE)
    pen.poly([(x - r * 0.14, y + r * 0.22), (x + r * 0.14, y + r * 0.22), (x, y + r * 0.4)], (215, 130, 130))


def cat(pen: Pen, rng: Generator) -> None:
    warm = rng.random() < 0.6
    coat = hsv(rng, *((0.05, 0.1, 0.5, 0.8, 0.6, 0.9) if warm else (0.08, 0.6, 0.0, 0.15, 0.3, 0.6)))
    dark, pale = tone(coat, 0.55), tone(coat, 1.4)
    curl = rng.uniform(0.3, 0.5)
    pen.line([(-0.15, -0.06), (-curl, -0.1), (-curl - 0.06, -0.3), (-curl + 0.06, -0.42)], 0.085, dark)
    pen.blob([(-0.3, 0), (-0.36, -0.2), (-0.2, -0.52), (0, -0.62), (0.2, -0.52), (0.36, -0.2), (0.3, 0)], coat)
    for row in range(4):
        y = -0.12 - 0.1 * row
        for side in (-1, 1):
            pen.line([(side * (0.33 - 0.05 * row), y), (side * (0.2 - 0.02 * row), y - 0.03)], 0.035, dark)
    pen.blob([(-0.1, -0.1), (-0.13, -0.4), (0, -0.52), (0.13, -0.4), (0.1, -0.1)], pale)
    for x in (-0.1, 0.1):
        pen.line([(x, -0.3), (x, -0.06)], 0.1, coat)
        pen.oval(x, -0.045, 0.075, 0.045, pale)
    lean = rng.uniform(-0.08, 0.08)
    for side in (-1, 1):
        pen.poly([(lean + side * 0.07, -0.86), (lean + side * 0.24, -1), (lean + side * 0.25, -0.72)], coat)
        pen.poly([(lean + side * 0.13, -0.86), (lean + side * 0.21, -0.94), (lean + side * 0.22, -0.78)],
            (214, 150, 140))
    pen.oval(lean, -0.7, 0.265, 0.215, coat)
    for k in (-0.06, 0.0, 0.06):
        pen.line([(lean + k, -0.89), (lean + k * 0.8, -0.8)], 0.025, dark)
    pen.oval(lean, -0.62, 0.13, 0.1, pale)
    _face(pen, lean, -0.7, 0.25, hsv(rng, 0.15, 0.35, 0.5, 0.8, 0.7, 0.9))


def chair(pen: Pen, rng: Generator) -> None:
    wood = hsv(rng, 0.04, 0.1, 0.45, 0.8, 0.35, 0.75) if rng.random() < 0.65 else paint(rng)
    seat = paint(rng) if rng.random() < 0.5 else tone(wood, 1.2)
    dark, bars = tone(wood, 0.65), rng.random() < 0.5
    for x in (-0.16, 0.3):
        pen.line([(x, -0.45), (x, -0.1)], 0.05, dark)
    for x in (-0.27, 0.17):
        pen.line([(x - 0.03, -1), (x, -0.44)], 0.055, wood)
    for k in range(4):
        if bars:
            pen.line([(-0.28 + 0.004 * k, -0.95 + 0.12 * k), (0.17, -0.95 + 0.12 * k)], 0.05, wood)
        else:
            pen.line([(-0.22 + 0.11 * k, -0.95), (-0.2 + 0.11 * k, -0.47)], 0.035, wood)
    pen.line([(-0.3, -0.97), (0.15, -0.97)], 0.07, wood)
    pen.poly([(-0.29, -0.48), (0.18, -0.5), (0.34, -0.4), (-0.16, -0.37)], seat)
    pen.poly([(-0.29, -0.48), (-0.16, -0.37), (0.34, -0.4), (0.34, -0.34), (-0.16, -0.31), (-0.29, -0.42)], dark)
    for x, y in ((-0.27, -0.03), (-0.14, 0), (0.32, -0.02)):
        pen.line([(x, -0.38), (x - 0.01, y - 0.02)], 0.055, wood)


def cow(pen: Pen, rng: Generator) -> None:
    dairy = rng.random() < 0.6
    coat = hsv(rng, 0.05, 0.1, 0.03, 0.12, 0.82, 0.95) if dairy else hsv(rng, 0.03, 0.08, 0.5, 0.75, 0.35, 0.65)
    patch = BLACK if dairy and rng.random() < 0.6 else hsv(rng, 0.03, 0.07, 0.6, 0.8, 0.25, 0.45)
    _legs(pen, rng, (-0.38, 0.36), top=-0.4, width=0.1, coat=tone(coat, 0.7))
    pen.line([(-0.58, -0.72), (-0.66, -0.5), (-0.64, -0.28)], 0.035, coat)
    pen.oval(-0.64, -0.26, 0.04, 0.07, patch)
    pen.oval(-0.28, -0.3, 0.12, 0.08, (226, 168, 160))
    down = rng.uniform(-0.02, 0.3)
    pen.blob([(-0.56, -0.8), (0, -0.78), (0.4, -0.86), (0.68, -0.92 + down), (0.72, -0.6 + down), (0.5, -0.45),
        (0.4, -0.34), (0, -0.28), (-0.4, -0.34), (-0.62, -0.5)], coat)
    for _ in range(int(rng.integers(4, 7)) if dairy else 2):
        x, y = rng.uniform(-0.46, 0.32), rng.uniform(-0.67, -0.45)
        turns = rng.uniform(0.6, 1.2, 8) * rng.uniform(0.1, 0.17)
        pen.blob([(x + t * a, y + 0.8 * t * b) for t, (a, b) in zip(turns, _circle()[::3], strict=True)], patch)
    _legs(pen, rng, (-0.48, 0.28), top=-0.4, width=0.11, coat=coat)
    for x in (0.6, 0.72):
        pen.line([(x, -0.92 + down), (x - 0.02, -1.0 + down), (x + 0.04, -1.06 + down)], 0.03, (225, 215, 190))
    pen.oval(0.54, -0.85 + down, 0.1, 0.045, tone(patch, 1.2), 0.3)
    pen.blob([(0.56, -0.95 + down), (0.76, -0.93 + down), (0.92, -0.66 + down), (0.88, -0.56 + down),
        (0.74, -0.58 + down), (0.6, -0.74 + down)], patch if rng.random() < 0.6 else coat)
    pen.oval(0.87, -0.61 + down, 0.085, 0.07, (214, 160, 150))
    pen.oval(0.73, -0.83 + down, 0.025, 0.025, BLACK)


def diningtable(pen: Pen, rng: Generator) -> None:
    wood = hsv(rng, 0.04, 0.1, 0.45, 0.8, 0.4, 0.75)
    cloth = paint(rng) if rng.random() < 0.5 else None
    back, front = rng.uniform(0.65, 0.8), rng.uniform(0.95, 1.1)
    for x, top in ((-back * 0.85, -0.7), (back * 0.85, -0.7)):
        pen.line([(x, top), (x, -0.16)], 0.08, tone(wood, 0.5))
    for x in (-front * 0.88, front * 0.88):
        pen.line([(x, -0.66), (x, -0.05)], 0.1, tone(wood, 0.75))
    pen.poly([(-back, -0.96), (back, -0.96), (front, -0.7), (-front, -0.7)], cloth or wood)
    drop = -0.45 if cloth else -0.6
    pen.poly([(-front, -0.71), (front, -0.71), (front, drop), (-front, drop)], tone(cloth or wood, 0.7))
    if cloth:
        for k in range(9):
            x = -front + (2 * front) * (k + 0.5) / 9
            pen.line([(x, -0.7), (x, drop)], 0.03, tone(cloth, 0.55))
    for x in np.linspace(-0.6, 0.6, int(rng.integers(2, 5))).tolist():
        pen.oval(x, -0.83, 0.15, 0.055, WHITE)
        pen.oval(x, -0.835, 0.09, 0.03, (205, 205, 200))
        pen.oval(x, -0.84, 0.06, 0.025, paint(rng))


def dog(pen: Pen, rng: Generator) -> None:
    coat = hsv(rng, 0.04, 0.1, 0.2, 0.75, 0.2, 0.85)
    dark, pale = tone(coat, 0.6), tone(coat, 1.35)
    wag = rng.uniform(-0.1, 0.15)
    _legs(pen, rng, (-0.34, 0.3), top=-0.4, width=0.085, coat=tone(coat, 0.7))
    pen.line([(-0.46, -0.6), (-0.6, -0.72), (-0.64 + wag, -0.92)], 0.07, coat)
    pen.blob([(-0.5, -0.62), (0, -0.62), (0.3, -0.68), (0.4, -0.86), (0.6, -0.82), (0.5, -0.5), (0.4, -0.34),
        (0.1, -0.32), (-0.2, -0.4), (-0.48, -0.36)], coat)
    pen.blob([(0.42, -0.6), (0.46, -0.45), (0.3, -0.33), (0.05, -0.32), (0.2, -0.42)], pale)
    _legs(pen, rng, (-0.43, 0.22), top=-0.42, width=0.095, coat=coat)
    pen.blob([(0.34, -0.98), (0.6, -1.0), (0.68, -0.86), (0.92, -0.82), (0.94, -0.7), (0.7, -0.66), (0.44, -0.68)],
        coat)
    pen.oval(0.78, -0.71, 0.14, 0.04, pale)
    pen.oval(0.93, -0.8, 0.045, 0.04, BLACK)
    pen.oval(0.62, -0.87, 0.028, 0.03, BLACK)
    pen.blob([(0.34, -0.98), (0.48, -0.96), (0.5, -0.74), (0.42, -0.58), (0.3, -0.66)], dark)
    pen.line([(0.36, -0.62), (0.48, -0.56)], 0.05, paint(rng))
    if rng.random() < 0.4:
        pen.poly([(0.74, -0.68), (0.82, -0.68), (0.78, -0.56)], (225, 110, 120))


def horse(pen: Pen, rng: Generator) -> None:
    coat = hsv(rng, 0.03, 0.08, 0.45, 0.8, 0.25, 0.7)
    mane = tone(coat, rng.choice([0.35, 1.7]))
    nod = rng.uniform(0, 0.12)
    _legs(pen, rng, (-0.3, 0.3), top=-0.45, width=0.07, coat=tone(coat, 0.65))
    pen.blob([(-0.46, -0.62), (-0.6, -0.56), (-0.64, -0.2), (-0.54, -0.16), (-0.5, -0.4)], mane)
    pen.blob([(-0.5, -0.64), (-0.2, -0.65), (0.1, -0.67), (0.28, -0.84 + nod), (0.38, -1.0 + nod), (0.5, -0.96 + nod),
        (0.7, -0.72 + nod), (0.64, -0.62 + nod), (0.5, -0.7 + nod), (0.42, -0.6), (0.36, -0.42), (0.1, -0.34),
        (-0.2, -0.36), (-0.5, -0.42)], coat)
    _legs(pen, rng, (-0.42, 0.24), top=-0.48, width=0.075, coat=coat)
    pen.blob([(0.02, -0.66), (0.22, -0.86 + nod), (0.36, -1.02 + nod), (0.42, -0.94 + nod), (0.3, -0.78 + nod),
        (0.16, -0.62)], mane)
    pen.poly([(0.38, -0.96 + nod), (0.4, -1.06 + nod), (0.46, -0.95 + nod)], coat)
    pen.oval(0.5, -0.87 + nod, 0.022, 0.022, BLACK)
    pen.oval(0.66, -0.68 + nod, 0.05, 0.045, tone(coat, 0.5))
    if rng.random() < 0.5:
        pen.line([(0.53, -0.92 + nod), (0.62, -0.78 + nod)], 0.03, WHITE)


def motorbike(pen: Pen, rng: Generator) -> None:
    body, steel = paint(rng), (150, 152, 158)
    for x in (-0.62, 0.66):
        pen.ring(x, -0.3, 0.24, 0.12, BLACK)
        pen.ring(x, -0.3, 0.16, 0.04, steel)
        pen.oval(x, -0.3, 0.05, 0.05, steel)
    pen.line([(-0.62, -0.3), (-0.1, -0.36)], 0.07, (70, 70, 76))
    pen.line([(0.66, -0.3), (0.4, -0.86)], 0.06, steel)
    pen.blob([(-0.3, -0.22), (-0.3, -0.55), (0.1, -0.62), (0.35, -0.5), (0.28, -0.2)], (66, 66, 72))
    for k in range(4):
        pen.line([(-0.08 + 0.02 * k, -0.5 + 0.07 * k), (0.22, -0.5 + 0.07 * k)], 0.025, steel)
    pen.line([(0.2, -0.25), (-0.2, -0.17), (-0.85, -0.22)], 0.07, steel)
    pen.blob([(-0.12, -0.62), (0.0, -0.8), (0.3, -0.84), (0.42, -0.66), (0.2, -0.56)], body)
    pen.blob([(-0.8, -0.72), (-0.4, -0.66), (-0.05, -0.68), (0, -0.58), (-0.5, -0.54)], BLACK)
    pen.blob([(-0.95, -0.62), (-0.7, -0.66), (-0.4, -0.58), (-0.45, -0.48), (-0.75, -0.52)], body)
    pen.blob([(0.36, -0.62), (0.62, -0.66), (0.92, -0.48), (0.6, -0.58)], body)
    pen.line([(0.4, -0.86), (0.36, -0.96), (0.22, -0.94)], 0.05, BLACK)
    pen.blob([(0.42, -0.9), (0.56, -0.88), (0.6, -0.76), (0.46, -0.72)], tone(body, 0.8))
    pen.oval(0.57, -0.8, 0.05, 0.07, (250, 244, 205))


def _head(pen: Pen, rng: Generator, skin: Colour, x: float, y: float) -> None:
    """A person's head about (x, y): hair, ear, eye; with a cap or long hair at times."""
    hair = hsv(rng, 0.04, 0.12, 0.3, 0.8, 0.08, 0.65)
    if rng.random() < 0.4:
        pen.blob([(x - 0.09, y - 0.06), (x + 0.02, y - 0.09), (x - 0.01, y + 0.14), (x - 0.1, y + 0.13)], hair)
    pen.box(x - 0.03, y + 0.04, x + 0.03, y + 0.12, tone(skin, 0.85))
    pen.oval(x, y, 0.068, 0.085, skin)
    pen.blob([(x - 0.08, y + 0.03), (x - 0.085, y - 0.07), (x, y - 0.11), (x + 0.08, y - 0.06), (x + 0.06, y - 0.04),
        (x - 0.03, y - 0.035)], hair)
    pen.oval(x + 0.03, y, 0.011, 0.013, BLACK)
    pen.line([(x + 0.02, y + 0.045), (x + 0.05, y + 0.042)], 0.012, (170, 70, 70))


def _skin(rng: Generator) -> Colour:
    """One of the tones of human skin."""
    return hsv(rng, 0.04, 0.075, 0.3, 0.55, 0.4, 0.93)


def person(pen: Pen, rng: Generator) -> None:
    skin, shirt, cloth = _skin(rng), paint(rng), hsv(rng, 0.55, 0.72, 0.15, 0.7, 0.15, 0.5)
    stride, lift, skirt = rng.uniform(0.02, 0.13), rng.uniform(-0.06, 0.16), rng.random() < 0.2
    lower = skin if skirt else cloth
    for side, shade in ((-1, 0.8), (1, 1.0)):
        pen.line([(side * 0.045, -0.5), (side * stride * 0.7, -0.26), (side * stride - 0.01, -0.03)], 0.1, tone(lower,
            shade))
        pen.line([(side * stride - 0.02, -0.022), (side * stride + 0.06, -0.02)], 0.045, BLACK)
    pen.line([(-0.1, -0.76), (-0.16, -0.6), (-0.13 - lift, -0.46)], 0.065, tone(shirt, 0.75))
    pen.oval(-0.13 - lift, -0.45, 0.032, 0.035, skin)
    if skirt:
        pen.poly([(-0.1, -0.54), (0.1, -0.54), (0.18, -0.3), (-0.18, -0.3)], cloth)
    pen.blob([(-0.15, -0.8), (0, -0.83), (0.15, -0.8), (0.12, -0.6), (0.115, -0.46), (-0.115, -0.46), (-0.12, -0.6)],
        shirt)
    if rng.random() < 0.4:
        for k in range(3):
            pen.line([(-0.1, -0.72 + 0.08 * k), (0.1, -0.72 + 0.08 * k)], 0.028, tone(shirt, 0.55))
    pen.line([(0.12, -0.76), (0.17, -0.62), (0.15 + lift, -0.47)], 0.065, tone(shirt, 1.1))
    pen.oval(0.15 + lift, -0.455, 0.032, 0.035, skin)
    _head(pen, rng, skin, 0.0, -0.9)


def rider(pen: Pen, rng: Generator) -> None:
    """A person who sits astride, hip at the origin, hands forward."""
    skin, shirt, cloth = _skin(rng), paint(rng), hsv(rng, 0.55, 0.72, 0.15, 0.7, 0.15, 0.5)
    pen.blob([(-0.1, 0.03), (-0.1, -0.2), (-0.04, -0.4), (0.1, -0.42), (0.16, -0.3), (0.12, 0.03)], shirt)
    pen.line([(0, 0), (0.2, 0.06), (0.14, 0.32)], 0.1, cloth)
    pen.line([(0.13, 0.34), (0.22, 0.34)], 0.05, BLACK)
    pen.line([(0.06, -0.34), (0.18, -0.2), (0.36, -0.2)], 0.065, tone(shirt, 0.8))
    pen.oval(0.37, -0.2, 0.035, 0.035, skin)
    _head(pen, rng, skin, 0.08, -0.5)


def pottedplant(pen: Pen, rng: Generator) -> None:
    pot = hsv(rng, 0.02, 0.07, 0.5, 0.8, 0.5, 0.8) if rng.random() < 0.6 else paint(rng)
    leaf, bloom = hsv(rng, 0.24, 0.4, 0.5, 0.85, 0.3, 0.65), hsv(rng, 0.8, 1.15, 0.5, 0.9, 0.8, 1)
    flowers, narrow = rng.random() < 0.4, rng.uniform(0.035, 0.075)
    for k in range(int(rng.integers(14, 24))):
        angle = rng.uniform(-2.9, -0.25)
        reach = rng.uniform(0.2, 0.5)
        x, y = reach * 0.75 * math.cos(angle), -0.45 + reach * math.sin(angle)
        shade = tone(leaf, rng.uniform(0.65, 1.3))
        pen.line([(0, -0.36), (x * 0.6, -0.45 + (y + 0.45) * 0.7), (x, y)], 0.018, tone(leaf, 0.6))
        pen.oval(x, y, 0.13, narrow, shade, angle + rng.uniform(-0.5, 0.5))
        if flowers and k % 4 == 0:
            pen.oval(x, y, 0.055, 0.055, bloom)
            pen.oval(x, y, 0.02, 0.02, (245, 210, 70))
    pen.poly([(-0.2, -0.36), (0.2, -0.36), (0.15, 0), (-0.15, 0)], pot)
    pen.box(-0.23, -0.4, 0.23, -0.31, tone(pot, 1.15))
    pen.line([(-0.19, -0.29), (0.19, -0.29)], 0.02, tone(pot, 0.6))


def sheep(pen: Pen, rng: Generator) -> None:
    wool = hsv(rng, 0.08, 0.14, 0.05, 0.2, 0.75, 0.95)
    skin = BLACK if rng.random() < 0.5 else hsv(rng, 0.05, 0.1, 0.2, 0.4, 0.55, 0.8)
    down = rng.uniform(-0.05, 0.25)
    _legs(pen, rng, (-0.32, -0.2, 0.2, 0.32), top=-0.3, width=0.075, coat=skin)
    pen.oval(-0.54, -0.55, 0.09, 0.12, tone(wool, 0.85))
    pen.oval(0, -0.56, 0.46, 0.29, wool)
    for a, b in _circle()[::2]:
        bump = rng.uniform(0.1, 0.15)
        pen.oval(0.46 * a, -0.56 + 0.27 * b, bump, bump, tone(wool, 0.92 - 0.1 * b))
    for _ in range(9):
        pen.ring(rng.uniform(-0.38, 0.38), rng.uniform(-0.72, -0.42), 0.055, 0.015, tone(wool, 0.78))
    pen.oval(0.46, -0.84 + down, 0.11, 0.045, skin, 0.4)
    pen.blob([(0.42, -0.9 + down), (0.62, -0.94 + down), (0.78, -0.68 + down), (0.72, -0.58 + down),
        (0.56, -0.62 + down), (0.42, -0.72 + down)], skin)
    pen.oval(0.52, -0.92 + down, 0.13, 0.08, wool)
    pen.oval(0.62, -0.8 + down, 0.025, 0.025, WHITE)
    pen.oval(0.625, -0.8 + down, 0.013, 0.013, BLACK)


def sofa(pen: Pen, rng: Generator) -> None:
    cloth, half = paint(rng), rng.uniform(0.85, 1.1)
    seats = int(rng.integers(2, 4))
    width = 2 * (half - 0.2) / seats
    for x in (-half + 0.1, half - 0.1):
        pen.box(x - 0.04, -0.12, x + 0.04, 0, (70, 48, 34))
    pen.blob([(-half + 0.05, -0.2), (-half + 0.08, -0.98), (half - 0.08, -0.98), (half - 0.05, -0.2)], tone(cloth, 0.8))
    for k in range(seats):
        x = -half + 0.2 + width * k
        pen.blob([(x, -0.48), (x + 0.02, -0.94), (x + width - 0.02, -0.94), (x + width, -0.48)], tone(cloth, 0.95))
    pen.box(-half + 0.1, -0.34, half - 0.1, -0.1, tone(cloth, 0.72))
    for k in range(seats):
        x = -half + 0.2 + width * k
        pen.blob([(x, -0.3), (x, -0.54), (x + width, -0.54), (x + width, -0.3)], tone(cloth, 1.15))
    for side in (-1, 1):
        outer, inner = side * half, side * (half - 0.22)
        pen.blob([(outer, -0.08), (outer, -0.6), (outer - side * 0.04, -0.68), (inner, -0.66), (inner, -0.08)], cloth)
    if rng.random() < 0.6:
        x = rng.uniform(-0.6, 0.6)
        pen.poly([(x - 0.16, -0.5), (x - 0.12, -0.8), (x + 0.18, -0.76), (x + 0.14, -0.48)], paint(rng))


def train(pen: Pen, rng: Generator) -> None:
    body, band = hsv(rng, 0, 1, 0.4, 0.95, 0.35, 0.9), hsv(rng, 0, 1, 0, 0.6, 0.8, 0.95)
    glass = hsv(rng, 0.55, 0.62, 0.2, 0.4, 0.2, 0.42)
    pen.poly([(-2.2, -0.14), (-2.2, -0.95), (1.0, -0.95), (1.35, -0.62), (1.5, -0.3), (1.45, -0.14)], body)
    pen.poly([(-2.2, -0.95), (-2.15, -1), (0.85, -1), (1.0, -0.93), (-2.2, -0.9)], tone(body, 0.55))
    pen.poly([(-2.2, -0.42), (1.43, -0.42), (1.49, -0.32), (-2.2, -0.32)], band)
    for k in range(12):
        x = -2.1 + 0.24 * k
        if k % 4 == 3:
            pen.box(x + 0.01, -0.85, x + 0.17, -0.18, tone(body, 0.65))
            pen.box(x + 0.04, -0.8, x + 0.14, -0.5, glass)
        else:
            pen.box(x, -0.8, x + 0.18, -0.5, glass)
            pen.poly([(x, -0.5), (x + 0.08, -0.8), (x + 0.12, -0.8)], tone(glass, 1.5))
    for x in (-1.22, 0.15):
        pen.box(x - 0.025, -0.97, x + 0.025, -0.12, (46, 46, 50))
    pen.poly([(0.92, -0.84), (1.06, -0.84), (1.3, -0.56), (0.98, -0.56)], tone(glass, 1.25))
    pen.oval(1.4, -0.26, 0.05, 0.05, (250, 244, 190))
    pen.box(-2.2, -0.16, 1.4, -0.09, (52, 52, 56))
    for x in (-1.9, -1.65, -0.85, -0.6, 0.45, 0.7, 1.05):
        pen.oval(x, -0.085, 0.09, 0.085, BLACK)
        pen.oval(x, -0.085, 0.04, 0.038, GREY)


def tvmonitor(pen: Pen, rng: Generator) -> None:
    case = hsv(rng, 0, 1, 0, 0.15, 0.08, 0.3) if rng.random() < 0.75 else hsv(rng, 0, 1, 0, 0.08, 0.7, 0.85)
    half = rng.uniform(0.6, 0.8)
    pen.poly([(-0.07, -0.2), (0.07, -0.2), (0.1, -0.04), (-0.1, -0.04)], tone(case, 0.8))
    pen.blob([(-0.3, 0), (-0.28, -0.06), (0.28, -0.06), (0.3, 0)], case)
    pen.box(-half, -1, half, -0.16, case)
    x0, y0, x1, y1 = -half + 0.06, -0.94, half - 0.06, -0.24
    sky, land = hsv(rng, 0.45, 0.75, 0.4, 0.9, 0.6, 1), hsv(rng, 0, 0.5, 0.4, 0.9, 0.3, 0.8)
    pen.box(x0, y0, x1, y1, sky)
    if rng.random() < 0.5:
        pen.blob([(x0, y1), (x0, y1 - 0.3), (0, y1 - rng.uniform(0.1, 0.5)), (x1, y1 - 0.3), (x1, y1)], land)
        pen.oval(rng.uniform(x0 + 0.15, x1 - 0.15), -0.78, 0.09, 0.09, (250, 240, 170))
    else:
        for k in range(6):
            pen.box(x0 + 0.06, y0 + 0.08 + 0.1 * k, x0 + rng.uniform(0.2, 2 * half - 0.2), y0 + 0.13 + 0.1 * k, WHITE)
    pen.poly([(x0, y0), (x0 + 0.3, y0), (x0, y0 + 0.45)], tone(sky, 1.25))
    pen.oval(half - 0.1, -0.2, 0.02, 0.02, (90, 220, 110))


@dataclass(frozen=True)
class Figure:
    """How a class appears: `size` is its height over the image's shorter side, far and near; `half` its half width."""

    draw: Callable[[Pen, Generator], None]
    settings: tuple[str, ...]
    size: tuple[float, float]
    half: float
    texture: str
    contrast: float
    company: tuple[str, ...] = ()


@dataclass(frozen=True)
class Load:
    """What may sit on a figure: class, its drawing, the seat in the carrier's units, its size."""

    name: str
    draw: Callable[[Pen, Generator], None]
    seat: Point
    size: float
    chance: float


PEOPLED = ("street", "road", "meadow", "living", "kitchen", "railway", "airfield", "beach")
FIGURES: dict[str, Figure] = {
    "aeroplane": Figure(aeroplane, ("airfield", "sea"), (0.22, 0.36), 1.2, "grain", 0.12, ("aeroplane", "car")),
    "bicycle": Figure(bicycle, ("road", "street", "meadow"), (0.36, 0.56), 0.87, "grain", 0.15, ("person", "bicycle")),
    "bird": Figure(bird, ("sea", "beach", "meadow", "airfield"), (0.26, 0.44), 0.8, "fur", 0.6, ("bird",)),
    "boat": Figure(boat, ("sea",), (0.4, 0.72), 0.7, "wood", 0.25, ("boat", "bird")),
    "bottle": Figure(bottle, ("counter", "counter", "kitchen"), (0.38, 0.68), 0.2, "grain", 0.1, ("bottle", "bottle")),
    "bus": Figure(bus, ("road", "street"), (0.34, 0.48), 1.1, "grain", 0.12, ("car", "person")),
    "car": Figure(car, ("road", "street", "airfield"), (0.22, 0.36), 1.1, "grain", 0.12, ("car", "person", "bus")),
    "cat": Figure(cat, ("living", "kitchen", "counter"), (0.36, 0.6), 0.4, "fur", 0.7, ("sofa", "cat")),
    "chair": Figure(chair, ("living", "kitchen"), (0.42, 0.66), 0.35, "wood", 0.6, ("diningtable", "chair")),
    "cow": Figure(cow, ("meadow",), (0.34, 0.54), 0.8, "fur", 0.35, ("cow", "cow")),
    "diningtable": Figure(diningtable, ("kitchen", "living"), (0.32, 0.44), 1.05, "wood", 0.6, ("chair", "person")),
    "dog": Figure(dog, ("meadow", "street", "living", "beach"), (0.34, 0.54), 0.8, "fur", 0.7, ("person", "sofa")),
    "horse": Figure(horse, ("meadow", "road"), (0.44, 0.7), 0.65, "fur", 0.35, ("horse", "person")),
    "motorbike": Figure(motorbike, ("road", "street"), (0.34, 0.52), 0.9, "grain", 0.15, ("person", "car")),
    "person": Figure(person, PEOPLED, (0.5, 0.84), 0.2, "grain", 0.15),
    "pottedplant": Figure(pottedplant, ("living", "street", "counter"), (0.38, 0.66), 0.4, "leaf", 0.5, ("sofa",)),
    "sheep": Figure(sheep, ("meadow",), (0.3, 0.5), 0.65, "wool", 0.7, ("sheep", "sheep", "dog")),
    "sofa": Figure(sofa, ("living",), (0.32, 0.46), 1.0, "plaid", 0.3, ("tvmonitor", "person", "pottedplant")),
    "train": Figure(train, ("railway",), (0.3, 0.44), 0.8, "grain", 0.12, ("person", "person")),
    "tvmonitor": Figure(tvmonitor, ("living", "counter"), (0.34, 0.52), 0.7, "grain", 0.05, ("sofa", "bottle")),
}
CLASSES = tuple(FIGURES)
LOADS: dict[str, Load] = {
    "horse": Load("person", rider, (-0.06, -0.66), 0.85, 0.35),
    "bicycle": Load("person", rider, (-0.18, -0.92), 1.15, 0.35),
    "motorbike": Load("person", rider, (-0.25, -0.68), 1.05, 0.35),
    "diningtable": Load("bottle", bottle, (0.35, -0.8), 0.7, 0.45),
    "sofa": Load("cat", cat, (-0.3, -0.42), 0.75, 0.3),
}
AIRBORNE = {"aeroplane": functools.partial(aeroplane, flying=True), "bird": functools.partial(bird, flying=True)}
RAISED = frozenset({"tvmonitor", "bottle", "pottedplant"})  # stand on a cabinet in a room


# ---------------------------------------------------------------------------------------------
# The settings. Units: y from 0 (top) to 1 (bottom), x from 0 to the aspect ratio.


@dataclass(frozen=True)
class Stage:
    """Where figures stand: feet between y = `far` and y = `near`; `level` fixes them to a line."""

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
    swatch = _swatch(rng, kind, region.shape[:2], zoom * pen.canvas.shape[0] / TILE)
    _multiply(region, _fade(swatch, contrast))


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
    _multiply(region, np.asarray(resized, dtype=np.uint8))


def _sky(pen: Pen, rng: Generator, horizon: float) -> None:
    """A sky with clouds, or one of evening, above the horizon."""
    if rng.random() < 0.8:
        upper, lower = hsv(rng, 0.54, 0.62, 0.35, 0.75, 0.65, 0.95), hsv(rng, 0.5, 0.6, 0.05, 0.25, 0.85, 0.98)
    else:
        upper, lower = hsv(rng, 0.6, 0.75, 0.2, 0.45, 0.5, 0.75), hsv(rng, 0.02, 0.12, 0.25, 0.6, 0.85, 0.98)
    _gradient(pen, 0, horizon + 0.01, upper, lower)
    region = _rows(pen, 0, horizon)
    swatch = _swatch(rng, "cloud", region.shape[:2], rng.uniform(1.5, 3))
    cover = cv2.subtract(swatch, np.full_like(swatch, rng.integers(125, 165)))
    alpha = cv2.convertScaleAbs(cover, alpha=rng.uniform(2, 5))
    gap = cv2.subtract(np.full_like(region, 246), region)
    region[:] = cv2.add(region, cv2.multiply(gap, cv2.merge([alpha] * 3), scale=1 / 255))


def _tree(pen: Pen, rng: Generator, x: float, y: float, size: float) -> None:
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


def _house(pen: Pen, rng: Generator, x: float, y: float, width: float) -> None:
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
    return Stage(h + 0.14)


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
    return Stage(h + 0.12)


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
    return Stage(shore + 0.12)


def road(pen: Pen, rng: Generator) -> Stage:
    h, w = rng.uniform(0.42, 0.5), _aspect(pen)
    _sky(pen, rng, h)
    x = rng.uniform(-0.2, 0)
    while x < w:
        width = rng.uniform(0.22, 0.42)
        if rng.random() < 0.75:
            _house(pen, rng, x, h + 0.02, width)
        else:
            _tree(pen, rng, x + width / 2, h + 0.02, 0.32)
        x += width + 0.02
    _gradient(pen, h + 0.015, 1, hsv(rng, 0.18, 0.3, 0.2, 0.5, 0.45, 0.6), hsv(rng, 0.18, 0.3, 0.3, 0.5, 0.4, 0.6))
    grey, vanish = hsv(rng, 0.6, 0.7, 0, 0.08, 0.28, 0.45), w / 2
    pen.poly([(vanish - 0.12, h + 0.015), (vanish + 0.12, h + 0.015), (vanish + 1.25, 1.05), (vanish - 1.25, 1.05)],
        tone(grey, 1.5))
    pen.poly([(vanish - 0.09, h + 0.015), (vanish + 0.09, h + 0.015), (vanish + 1.05, 1.05), (vanish - 1.05, 1.05)],
        grey)
    _floor(pen, rng, h + 0.015, kind="gravel", contrast=0.4, zoom=1.5, horizon=h - 0.02)
    _dashes(pen, h - 0.02, vanish, WHITE, width=0.025)
    return Stage(h + 0.16)


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
    return Stage(y + 0.1)


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
        _tree(pen, rng, rng.uniform(0, w), h + 0.04, rng.uniform(0.25, 0.45))
    if rng.random() < 0.7:
        base, wood = h + rng.uniform(0.05, 0.1), hsv(rng, 0.06, 0.1, 0.2, 0.5, 0.45, 0.8)
        for rail in (0.045, 0.09):
            pen.line([(0, base - rail), (w, base - rail)], 0.012, tone(wood, 0.9))
        pitch = rng.uniform(0.1, 0.16)
        for k in range(int(w / pitch) + 1):
            pen.box(k * pitch, base - 0.12, k * pitch + 0.02, base + 0.01, wood)
    for _ in range(int(rng.integers(0, 30))):
        pen.oval(rng.uniform(0, w), rng.uniform(h + 0.15, 1), 0.008, 0.007, hsv(rng, 0.1, 1, 0, 0.8, 0.9, 1))
    return Stage(h + 0.16)


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
    return Stage(level + 0.1, 0.98, level)


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
    return Stage(y + 0.09)


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
    return Stage(y + 0.09)


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
    return Stage(y + 0.07, 0.94)


SETTINGS: dict[str, Callable[[Pen, Generator], Stage]] = {
    "airfield": airfield, "sea": sea, "beach": beach, "road": road, "street": street, "meadow": meadow,
    "railway": railway, "living": living, "kitchen": kitchen, "counter": counter,
}
SIZES = ((250, 188), (250, 188), (250, 188), (250, 188), (188, 250), (188, 250), (250, 167), (220, 220))

# fmt: on

# ---------------------------------------------------------------------------------------------
# Composing


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
            seat = np.array([[load.size, 0, load.seat[0]], [0, load.size, load.seat[1]], [0, 0, 1]])
            loaded.append(Actor(load.name, load.draw, actor.frame @ seat, actor.depth))
    return loaded


def _shadow(canvas: Image, actor: Actor) -> None:
    """Darken the ground under a standing figure."""
    x, y = actor.frame[:, 2]
    rx, ry = abs(actor.frame[0, 0]) * 0.6, abs(actor.frame[1, 1]) * 0.07
    top, left = max(0, int(y - ry)), max(0, int(x - rx))
    region = canvas[top : int(y + ry) + 1, left : max(left, int(x + rx) + 1)]
    if region.size == 0:
        return
    yy, xx = np.ogrid[: region.shape[0], : region.shape[1]]
    reach = ((xx + left - x) / rx) ** 2 + ((yy + top - y) / ry) ** 2
    _multiply(region, (128 - 60 * np.clip(1 - reach, 0, 1)).astype(np.uint8))


def _finish(canvas: Image, rng: Generator, mask: Image, figure: Figure) -> None:
    """Give a drawn figure its texture and its volume: darker towards its edges."""
    x, y, w, h = cv2.boundingRect(mask)
    if w == 0:
        return
    part, inside = canvas[y : y + h, x : x + w], mask[y : y + h, x : x + w]
    texture = _fade(_swatch(rng, figure.texture, (h, w), 0.9 * FINE), figure.contrast)
    rim = cv2.distanceTransform(inside, cv2.DIST_L2, 3)
    edge = cv2.convertScaleAbs(rim, alpha=36 / (0.08 * h + 2), beta=0)
    volume = cv2.add(cv2.min(edge, (36,)), np.full_like(inside, 98))
    lit = part.copy()
    _multiply(lit, np.asarray(cv2.multiply(texture, volume, scale=1 / 128), dtype=np.uint8))
    cv2.copyTo(lit, inside, part)


def _outline(canvas: Image) -> tuple[Image, int]:
    """An empty mask (h + 2 m, w + 2 m) for the canvas, and its margin m."""
    margin = max(canvas.shape) // 4
    return np.zeros((canvas.shape[0] + 2 * margin, canvas.shape[1] + 2 * margin), np.uint8), margin


def _perform(canvas: Image, rng: Generator, actor: Actor) -> Image:
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


def _develop(rng: Generator, canvas: Image) -> Image:
    """The photograph: light of the hour, exposure, slight noise; (h / FINE, w / FINE, 3)."""
    image = _shrink(canvas)
    gain = rng.uniform(0.8, 1.12) * rng.uniform(0.94, 1.06, 3)
    lit = cv2.transform(image, np.diag(gain))
    noise = rng.integers(0, 9, image.shape, dtype=np.uint8)
    return np.asarray(cv2.subtract(cv2.add(lit, noise), np.full_like(image, 4)), dtype=np.uint8)


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
            _shadow(canvas, actor)
        drawn.append((actor.name, _perform(canvas, rng, actor)))
    return Scene(_develop(rng, canvas), setting, _visible(drawn, max(canvas.shape) // 4))
