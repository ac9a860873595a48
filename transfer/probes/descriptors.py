"""Control rows without an encoder: what a probe makes of colours, gradients and pixels alone."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.alexnet import MEAN_RGB
from transfer import voc

Vector = NDArray[np.float32]


def colour_histogram(square: voc.Bytes) -> Vector:
    """S×S×3 → 512: the share of pixels in each of 8×8×8 cells of RGB."""
    cells = (square.reshape(-1, 3).astype(np.int64) // 32) @ (64, 8, 1)
    return (np.bincount(cells, minlength=512) / len(cells)).astype(np.float32)


def hog(square: voc.Bytes) -> Vector:
    """S×S×3 → 8,100: OpenCV's histograms of oriented gradients (Dalal and Triggs 2005) of 128×128 pixels.

    Cells of 8×8 with 9 directions, blocks of 2×2 cells one cell apart: OpenCV's own defaults.
    """
    import cv2

    small = cv2.resize(square, (128, 128), interpolation=cv2.INTER_AREA)
    descriptor = cv2.HOGDescriptor((128, 128), (16, 16), (8, 8), (8, 8), 9)
    return np.asarray(descriptor.compute(np.ascontiguousarray(small)), dtype=np.float32).reshape(-1)


def pixels(square: voc.Bytes) -> Vector:
    """S×S×3 → 3,072: 32×32 pixels, minus the mean that encoders subtract."""
    import cv2

    small = cv2.resize(square, (32, 32), interpolation=cv2.INTER_AREA)
    return np.asarray(small.astype(np.float32) - np.array(MEAN_RGB, dtype=np.float32)).reshape(-1)


DESCRIPTORS: dict[str, tuple[int, Callable[[voc.Bytes], Vector]]] = {  # name → version, function
    "colour-histogram": (1, colour_histogram),
    "hog": (1, hog),
    "pixels": (1, pixels),
}


@dataclass(frozen=True)
class Descriptor:
    """One of DESCRIPTORS in an encoder's place: it has one layer, of its own name, and no tensors."""

    name: str
    architecture: None = None

    @property
    def path(self) -> str:
        """What errors call it."""
        return self.name

    @property
    def sha256(self) -> str:
        """A digest of its name and version."""
        return hashlib.sha256(f"descriptor {self.name} {DESCRIPTORS[self.name][0]}".encode()).hexdigest()

    @property
    def provenance(self) -> dict[str, Any]:
        """What a result says of it."""
        return {"method": self.name, "variant": "", "supervision": "no encoder", "iterations": 0, "seed": 0}

    def describe(self, squares: NDArray[np.uint8]) -> dict[str, Vector]:
        """n×S×S×3 → its one layer, n×numbers."""
        return {self.name: np.stack([DESCRIPTORS[self.name][1](square) for square in squares])}
