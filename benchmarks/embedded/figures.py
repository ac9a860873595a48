"""The twenty figures of the `tiny` data, drawn from parts, and FIGURES: where and how each appears.

Each faces right, in its own units (see Pen); mirroring, size, tilt and sway come from its frame.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from benchmarks.embedded.textures import BLACK, GREY, WHITE, Colour, Pen, Point, circle, hsv, paint, tone

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
        for a, b in circle()[::3]:
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
        pen.blob([(x + t * a, y + 0.8 * t * b) for t, (a, b) in zip(turns, circle()[::3], strict=True)], patch)
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
    for a, b in circle()[::2]:
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
LOADS: dict[str, Load] = {
    "horse": Load("person", rider, (-0.06, -0.66), 0.85, 0.35),
    "bicycle": Load("person", rider, (-0.18, -0.92), 1.15, 0.35),
    "motorbike": Load("person", rider, (-0.25, -0.68), 1.05, 0.35),
    "diningtable": Load("bottle", bottle, (0.35, -0.8), 0.7, 0.45),
    "sofa": Load("cat", cat, (-0.3, -0.42), 0.75, 0.3),
}
AIRBORNE = {"aeroplane": functools.partial(aeroplane, flying=True), "bird": functools.partial(bird, flying=True)}
RAISED = frozenset({"tvmonitor", "bottle", "pottedplant"})  # stand on a cabinet in a room
