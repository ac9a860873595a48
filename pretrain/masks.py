"""The four kinds of holes (paper 3.3; protocols 2.3). True = dropped, the paper's M̂ = 1.

Every function returns N×1×S×S bool on the generator's device, another hole for every image, never
an empty one.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from torch import Tensor

from pretrain.files import Missing
from pretrain.listing import printable, real_folder, walk
from pretrain.progress import log
from pretrain.voc_masks import VOID, read_labels

CAP = 0.25  # paper 3.3: "up to 1/4 of the image"
GIVE_SHAPES = "give --shapes a VOC year's folder with SegmentationClass"
SHAPE_SIDE = 64  # silhouettes are kept as squares of this many pixels

Mask = Callable[..., Tensor]


def central(count: int, side: int, generator: torch.Generator) -> Tensor:
    """The centre square of half the side (64 of 128 in the released train.lua)."""
    mask = torch.zeros(count, 1, side, side, dtype=torch.bool, device=generator.device)
    low = (side - side // 2) // 2
    mask[:, :, low : low + side // 2, low : low + side // 2] = True
    return mask


def random_block(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Several smaller, possibly overlapping squares, at most a quarter of the image in all.

    Paper: number and size not stated; we try eight squares of 1/8 to 1/3 of the side and keep each
    that stays under the cap.
    """
    mask = torch.zeros(count, 1, side, side, dtype=torch.bool, device=generator.device)
    for _ in range(8):
        size = (_uniform(count, generator) * (1 / 3 - 1 / 8) + 1 / 8) * side
        rows, columns = (_span(size, side, generator) for _ in range(2))
        mask = _add(mask, rows[:, None, :, None] & columns[:, None, None, :])
    return mask


def _span(size: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """N → N×side bool: an interval of round(size) pixels at a uniform position."""
    size = size.round()
    low = (_uniform(len(size), generator) * (side - size + 1)).floor()
    pixel = torch.arange(side, device=size.device)
    return (pixel >= low[:, None]) & (pixel < (low + size)[:, None])


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device)


def _add(mask: Tensor, candidate: Tensor, area: Tensor | None = None) -> Tensor:
    """The union of the two where it stays under the cap, else `mask`. `area`: H×W shares of the whole, else equal."""
    union = mask | candidate
    fits = (union.float().mean((1, 2, 3)) if area is None else (union * area).sum((1, 2, 3))) <= CAP
    return torch.where(fits.view(-1, 1, 1, 1), union, mask)


def random_pattern(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Thresholded smooth noise, as in the released train_random.lua, but one per image.

    Released code: 600×600 uniform noise, bicubic to 10000×10000, ones below 0.25, a random window
    whose coverage is strictly between 20% and 30%, shared by the batch. We: the same noise, made
    only where a window falls, drawn again for each image. Torch 7's bicubic is Catmull and Rom's, and it maps
    corners to corners; of its windows of side 227 one in ten is accepted. (Torch's own kernel overshoots
    more, covers 18% instead of 17%, and one in five is.)
    """
    cell, mask = 9999 / 599, torch.zeros(count, 1, side, side, dtype=torch.bool, device=generator.device)
    cells = int(np.ceil(side / cell)) + 6  # two at the edges see too few others, one is for the offset
    missing = torch.arange(count, device=generator.device)
    while len(missing):
        noise = torch.rand(len(missing), 1, cells, cells, generator=generator, device=generator.device)
        smooth = F.interpolate(noise, scale_factor=cell, mode="bicubic", antialias=True)  # else not Catmull and Rom's
        low = int(torch.randint(2 * int(cell), 3 * int(cell), (), generator=generator, device=generator.device))
        drawn = smooth[:, :, low : low + side, low : low + side] < CAP
        coverage = drawn.float().mean((1, 2, 3))
        good = (coverage > 0.2) & (coverage < 0.3)
        mask[missing[good]] = drawn[good]
        missing = missing[~good]
    return mask


def random_region(count: int, side: int, generator: torch.Generator, *, shapes: Tensor) -> Tensor:
    """Deformed silhouettes (`shapes`: K×64×64 bool) pasted anywhere, at most a quarter of the image.

    Paper: the deformation is not stated; we scale (0.25 to 0.75 of the side, less with every try),
    rotate up to 45°, mirror and bend each, and keep each that stays under the cap. Where none of six
    does, or none lies in the image, we draw again.
    """
    if not shapes.flatten(1).any(1).all():
        raise ValueError("a silhouette without a pixel")
    mask = torch.zeros(count, 1, side, side, dtype=torch.bool, device=generator.device)
    missing = torch.arange(count, device=generator.device)
    while len(missing):
        drawn = _regions(len(missing), side, generator, shapes=shapes)
        good = drawn.flatten(1).any(1)
        mask[missing[good]] = drawn[good]
        missing = missing[~good]
    return mask


def _regions(count: int, side: int, generator: torch.Generator, *, shapes: Tensor) -> Tensor:
    """As random_region, but some may be empty. Made in cells of 2×2 pixels, of which an odd side cuts the last ones."""
    device, half = generator.device, (side + 1) // 2
    shapes = shapes.to(device)
    mask = torch.zeros(count, 1, half, half, dtype=torch.bool, device=device)
    cell = torch.tensor([2.0] * (side // 2) + [1.0] * (side % 2), device=device) / side
    for attempt in range(6):
        index = torch.randint(len(shapes), (count,), generator=generator, device=device)
        grid = _warp(count, half, generator, shrink=0.85**attempt)
        pasted = F.grid_sample(shapes[index, None].float(), grid, align_corners=False)
        mask = _add(mask, pasted > 0.5, cell[:, None] * cell)
    return mask.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :side, :side]


def _warp(count: int, side: int, generator: torch.Generator, *, shrink: float) -> Tensor:
    """N×side×side×2 sampling grid that puts a silhouette, deformed, at a random place."""
    device = generator.device
    draw = torch.rand(count, 5, generator=generator, device=device)
    size = (0.25 + 0.5 * draw[:, 0]) * shrink
    angle = (draw[:, 1] - 0.5) * (torch.pi / 2)
    mirror = torch.where(draw[:, 2] < 0.5, -1.0, 1.0)
    centre = draw[:, 3:] * 2 - 1
    cos, sin = angle.cos() / size, angle.sin() / size
    matrix = torch.stack([torch.stack([cos * mirror, -sin * mirror], 1), torch.stack([sin, cos], 1)], 1)
    theta = torch.cat([matrix, -matrix @ centre[:, :, None]], 2)
    bend = torch.randn(count, 2, 4, 4, generator=generator, device=device) * 0.12
    bend = F.interpolate(bend, size=(side, side), mode="bicubic", align_corners=True)
    grid = F.affine_grid(theta, [count, 1, side, side], align_corners=False)
    return grid + bend.permute(0, 2, 3, 1)


def silhouettes(folders: Sequence[Path]) -> Tensor:
    """K×64×64 bool: every silhouette of at least 1% of its image in VOC folders (…/VOC2012).

    The connected parts of each object of SegmentationObject where that is there, else those of each
    class of SegmentationClass.
    Images 2007_* of VOC2012 are VOC2007 images, some of its test set, and are left out. Raises
    Missing when there is no mask, Failed when one cannot be decoded.
    """
    paths = mask_files(folders)
    shapes = [shape for path in paths for shape in _parts(path)]
    if not shapes:
        raise Missing(f"{paths[0].parent}: no object in it is large enough to cut a silhouette from: {GIVE_SHAPES}")
    return torch.from_numpy(np.stack(shapes))


def mask_files(folders: Sequence[Path]) -> list[Path]:
    """The masks that `silhouettes` cuts from. Raises Missing when there is none in one of the folders."""
    paths = list[Path]()
    for folder in folders:
        found: dict[str, Path] = {}
        for kind in ("SegmentationClass", "SegmentationObject"):
            if (real_folder(folder, remedy=GIVE_SHAPES) / kind).is_dir():
                listing = walk(folder / kind, {".png"}, deep=False)
                for line in listing.notes(folder / kind):
                    _log_once(line)
                found |= {p.stem: p for p in listing.files if not p.stem.startswith("2007_")}
        if not found:
            raise Missing(f"{printable(folder)}: no segmentation masks to cut silhouettes from: {GIVE_SHAPES}")
        paths += found.values()
    if not paths:
        raise Missing(f"no folder: no segmentation masks to cut silhouettes from: {GIVE_SHAPES}")
    return paths


@cache
def _log_once(line: str) -> None:
    """As plans look for masks often."""
    log(line)


def _parts(path: Path) -> list[np.ndarray[tuple[int, int], np.dtype[np.bool_]]]:
    labels = read_labels(path)
    parts = []
    for value in np.setdiff1d(np.unique(labels), (0, VOID)):
        numbered, _ = ndimage.label(labels == value)
        for number, box in enumerate(ndimage.find_objects(numbered), start=1):
            part = numbered[box] == number
            if part.sum() >= 0.01 * labels.size:
                square = Image.fromarray(part).resize((SHAPE_SIDE, SHAPE_SIDE), Image.Resampling.NEAREST)
                parts.append(np.array(square, dtype=np.bool_))
    return parts


MASKS: dict[str, Mask] = {
    "central": central,
    "random-block": random_block,
    "random-region": random_region,
    "random-pattern": random_pattern,
}
