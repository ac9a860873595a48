"""What the `tiny` data is painted with: colours, textures, and a pen.

Everything is painted at FINE times the final size and shrunk at the end.
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
Frame = NDArray[np.float64]
Colour = tuple[int, int, int]
Point = tuple[float, float]
Points = Sequence[Point] | NDArray[np.float64]  # (n, 2)

FINE = 2  # canvas pixels per image pixel: the second half of the anti-aliasing
SHIFT = 4  # fractional bits of the coordinates handed to OpenCV
TILE = 256  # side of a texture tile, pixels
WHITE, BLACK, GREY = (238, 238, 234), (28, 28, 30), (128, 128, 130)


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


def fade(texture: Image, contrast: float) -> Image:
    """The texture with its departures from 128 scaled by `contrast`; same shape."""
    faded = cv2.convertScaleAbs(texture, alpha=contrast, beta=128 * (1 - contrast))
    return np.asarray(faded, dtype=np.uint8)


def multiply(region: Image, texture: Image) -> None:
    """Multiply an RGB view (h, w, 3) in place by a texture (h, w)."""
    region[:] = cv2.multiply(region, cv2.merge([texture] * 3), scale=1 / 128)


def sample(rng: Generator, kind: str, shape: tuple[int, int], zoom: float) -> Image:
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
def circle() -> tuple[Point, ...]:
    """Twenty-four points of the unit circle."""
    return tuple((math.cos(k * math.pi / 12), math.sin(k * math.pi / 12)) for k in range(24))


@functools.cache
def _ring() -> NDArray[np.float64]:
    """The same points, (24, 2)."""
    return np.array(circle())
