"""Motion made from stills: what two methods that need video are trained on where there is none.

A view is a square window of an image, turned about its centre. Two views of one image are what a
camera sees that has moved between them (Agrawal et al.'s proof of concept on digits; protocols 7.3).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain import Dataset
from pretrain.alexnet import CROP, mean_rgb
from pretrain.images import Found, stills
from pretrain.store import Source, Store

KIND = "synthetic"


def views(raw: Tensor, centre: Tensor, side: Tensor, angle: Tensor) -> Tensor:
    """N×H×H×3 uint8 → N×3×227×227, RGB minus the mean: one square window of each image, resampled.

    `centre` (N×2: x, y) and `side` (N) are in pixels, `angle` (N) in radians: where it is positive,
    the window is turned clockwise.
    """
    extent = raw.shape[1]
    half = side / extent
    cos, sin, at = angle.cos() * half, angle.sin() * half, 2 * centre / extent - 1
    theta = torch.stack([torch.stack([cos, -sin, at[:, 0]], 1), torch.stack([sin, cos, at[:, 1]], 1)], 1)
    grid = F.affine_grid(theta, [len(raw), 3, CROP, CROP], align_corners=False)
    pixels = raw.permute(0, 3, 1, 2).float() - mean_rgb(raw.device)
    return F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)


def reach(side: Tensor, angle: Tensor) -> Tensor:
    """How far a turned window extends from its centre, along x or y: N pixels."""
    return side / 2 * (angle.cos().abs() + angle.sin().abs())


def moved_stills(found: Found, of: str, data: Callable[[Store], Dataset]) -> Source:
    """Stills, as the source of a method that needs motion; `of`: the supervision where the motion is real."""
    return stills(found, f"{of}, synthetic from stills", data, kind=KIND)
