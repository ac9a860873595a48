"""The four kinds of holes (paper 3.3, protocols 2.3) and the silhouettes of random regions."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from pretrain.files import Failed, Missing
from pretrain.masks import MASKS, central, random_block, random_pattern, random_region, silhouettes
from pretrain.voc_masks import voc_colour

L = torch.zeros(1, 64, 64, dtype=torch.bool)  # a wide L: a column and a foot
L[:, :, :24] = True
L[:, 44:] = True

Mask = Callable[[int, int, torch.Generator], Tensor]


def regions(count: int, side: int, generator: torch.Generator) -> Tensor:
    return random_region(count, side, generator, shapes=torch.cat([L, ~L]))


KINDS: dict[str, Mask] = {
    "central": central,
    "random-block": random_block,
    "random-region": regions,
    "random-pattern": random_pattern,
}
RANDOM = [kind for kind in KINDS if kind != "central"]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coverage(mask: Tensor) -> Tensor:
    return mask.double().mean((1, 2, 3))


def test_all_kinds_are_tested() -> None:
    assert set(MASKS) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("count", "side"), [(1, 227), (16, 227), (1, 64), (40, 64), (40, 131), (7, 32)])
def test_shape_and_share(kind: str, count: int, side: int) -> None:
    for seed in range(3):
        mask = KINDS[kind](count, side, seeded(seed))
        assert mask.dtype == torch.bool
        assert mask.shape == (count, 1, side, side)
        share = coverage(mask)
        assert share.min() > 0
        if kind == "random-pattern":
            assert share.min() > 0.2
            assert share.max() < 0.3
        else:
            assert share.max() <= 0.25


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_generator_gives_the_same_holes(kind: str) -> None:
    first = KINDS[kind](4, 131, seeded(3))
    torch.rand(10)  # the global generator plays no part
    before = torch.get_rng_state()
    assert torch.equal(KINDS[kind](4, 131, seeded(3)), first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", RANDOM)
def test_every_image_and_every_draw_has_its_own_hole(kind: str) -> None:
    generator = seeded(0)
    drawn = torch.cat([KINDS[kind](6, 227, generator) for _ in range(2)])
    assert len({mask.numpy().tobytes() for mask in drawn}) == 12


@pytest.mark.parametrize("kind", RANDOM)
def test_holes_fall_everywhere(kind: str) -> None:
    where = KINDS[kind](300, 64, seeded(0)).double().mean(0)[0]
    for quarter in (where[:32, :32], where[:32, 32:], where[32:, :32], where[32:, 32:]):
        assert abs(quarter.mean() / where.mean() - 1) < 0.2
    assert min(edge.max() for edge in (where[0], where[-1], where[:, 0], where[:, -1])) > 0  # the borders too


def test_random_holes_use_their_share() -> None:
    """On average more than a tenth of the image is dropped, or there would be little to learn."""
    for kind in RANDOM:
        assert coverage(KINDS[kind](200, 64, seeded(1))).mean() > 0.1


@pytest.mark.parametrize(("side", "low", "high"), [(227, 57, 170), (128, 32, 96), (131, 33, 98)])
def test_central_is_the_centre_square(side: int, low: int, high: int) -> None:
    expected = torch.zeros(side, side, dtype=torch.bool)
    expected[low:high, low:high] = True
    assert torch.equal(central(2, side, seeded(0)), expected.expand(2, 1, side, side))
    assert abs(low - (side - high)) <= 1


def rectangles(mask: Tensor) -> bool:
    """Whether each row of a hole is made of runs of at least an eighth of the side."""
    runs = [len(run) for row in mask.int().tolist() for run in "".join(map(str, row)).split("0") if run]
    return min(runs) >= round(mask.shape[0] / 8)


def test_blocks_are_squares() -> None:
    masks = random_block(60, 96, seeded(0))[:, 0]
    assert all(rectangles(mask) and rectangles(mask.T) for mask in masks)
    corners = (
        F.conv2d(masks[:, None].float(), torch.tensor([[[[1.0, -1.0], [-1.0, 1.0]]]]), padding=1).abs().sum((1, 2, 3))
    )
    assert corners.max() > 4  # several squares, not one


def catmull_rom(noise: torch.Tensor, *, low: int, side: int) -> torch.Tensor:
    """Torch 7's image.scale of 600 cells to 10000 pixels, at pixels low … low + side, in double precision."""
    place = (torch.arange(low, low + side, dtype=torch.float64) + 0.5) * 599 / 9999 - 0.5
    first, x = place.floor().long(), place - place.floor()
    taps = (-x + 2 * x**2 - x**3, 2 - 5 * x**2 + 3 * x**3, x + 4 * x**2 - 3 * x**3, x**3 - x**2)
    weights = torch.zeros(side, len(noise), dtype=torch.float64)
    for k, tap in enumerate(taps):
        weights[torch.arange(side), first + k - 1] = tap / 2
    return weights @ noise.double() @ weights.T


def test_patterns_are_torch_7_s_windows() -> None:
    """Drawn again until the coverage fits; as many fit as of windows of a whole 10000×10000 field (10.6% of 20,000)."""
    side, cells, tries = 227, 20, 0
    for seed in range(20):
        draws = seeded(seed)
        for _ in range(200):
            noise = torch.rand(1, 1, cells, cells, generator=draws)[0, 0]
            low = int(torch.randint(32, 48, (), generator=draws))
            expected, tries = catmull_rom(noise, low=low, side=side) < 0.25, tries + 1
            if 0.2 < expected.double().mean() < 0.3:
                break
        mask = random_pattern(1, side, seeded(seed))[0, 0]
        assert (mask != expected).sum() <= 2  # float32 at the threshold
    assert 0.06 < 20 / tries < 0.17


def test_patterns_are_smooth() -> None:
    """One noise cell is 16.7 pixels: few neighbours differ, where white noise would differ in 3 of 8."""
    mask = random_pattern(8, 227, seeded(0))
    assert (mask[..., 1:] != mask[..., :-1]).double().mean() < 0.05
    lone = F.avg_pool2d(mask.float(), 3, 1, 1)[mask]
    assert (lone < 0.2).double().mean() < 0.01


# ---- random regions ----


def enclosed(mask: Tensor) -> int:
    """How many pixels of an S×S hole's surroundings cannot be reached from the border."""
    return int((ndimage.binary_fill_holes(mask.numpy()) & ~mask.numpy()).sum())


def test_regions_have_the_form_of_their_silhouettes() -> None:
    """Turning, bending and mirroring leave a ring a ring, and make none of a disc."""
    y, x = np.ogrid[-1:1:64j, -1:1:64j]
    radius = torch.from_numpy(np.hypot(y, x))[None]
    rings = random_region(100, 128, seeded(0), shapes=(radius < 0.95) & (radius > 0.45))[:, 0]
    discs = random_region(100, 128, seeded(0), shapes=radius < 0.95)[:, 0]
    assert np.mean([enclosed(mask) > 20 for mask in rings]) > 0.5
    assert np.mean([enclosed(mask) > 20 for mask in discs]) < 0.05


def test_regions_are_turned_by_45_degrees_at_most() -> None:
    """A lying bar never stands, and a standing one never lies: what hangs over is bending."""
    lying = torch.zeros(1, 64, 64, dtype=torch.bool)
    lying[:, 28:36] = True
    for shape, upright in ((lying, False), (lying.transpose(1, 2), True)):
        masks = random_region(200, 128, seeded(0), shapes=shape)[:, 0]
        wide = masks.any(1).sum(1) / masks.any(2).sum(1)
        assert ((wide < 1) == upright).double().mean() > 0.75
        assert masks.double().mean((1, 2)).min() > 0


def test_a_silhouette_without_a_pixel_is_refused() -> None:
    with pytest.raises(ValueError, match="without a pixel"):
        random_region(2, 64, seeded(0), shapes=torch.zeros(1, 64, 64, dtype=torch.bool))


@pytest.mark.parametrize("side", [227, 228])
def test_every_region_is_pasted_silhouettes_never_blocks(side: int) -> None:
    """Also at odd sides, where the last cells are cut, and with silhouettes that seldom fit or seldom show."""
    disc = (torch.arange(64) - 31.5).square()[:, None] + (torch.arange(64) - 31.5).square() < 30**2
    point = torch.zeros(64, 64, dtype=torch.bool)
    point[30:34, 30:34] = True
    for shape in (disc, point):
        holes = random_region(300, side, seeded(0), shapes=shape[None])
        assert coverage(holes).min() > 0
        assert coverage(holes).max() <= 0.25
        assert shape is point or not any(rectangles(mask) for mask in holes[:, 0])


def test_every_silhouette_is_used() -> None:
    """A thin bar and a square differ in the length of their outlines."""
    bar, square = torch.zeros(1, 64, 64, dtype=torch.bool), torch.ones(1, 64, 64, dtype=torch.bool)
    bar[:, 26:38] = True
    shares = {name: coverage(random_region(100, 64, seeded(1), shapes=shape)).mean().item()
              for name, shape in {"bar": bar, "square": square, "both": torch.cat([bar, square])}.items()}  # fmt: skip
    assert shares["bar"] < shares["both"] < shares["square"]


# ---- silhouettes ----

PALETTE = [channel for label in range(256) for channel in voc_colour(label)]


def write_mask(path: Path, labels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels, mode="P")
    image.putpalette(PALETTE)
    image.save(path)


def scene(*boxes: tuple[int, int, int, int, int]) -> NDArray[np.uint8]:
    """100×120 labels with a void frame around each (label, top, left, bottom, right)."""
    labels = np.zeros((100, 120), np.uint8)
    for label, top, left, bottom, right in boxes:
        labels[top - 2 : bottom + 2, left - 2 : right + 2] = 255
        labels[top:bottom, left:right] = label
    return labels


def test_silhouettes_are_cut_to_their_boxes(tmp_path: Path) -> None:
    labels = scene((9, 10, 10, 74, 74))
    labels[10:54, 34:74] = 0  # an L of 64 × 64 pixels: nothing is resized
    write_mask(tmp_path / "SegmentationClass" / "2008_000001.png", labels)
    found = silhouettes([tmp_path])
    assert found.dtype == torch.bool
    assert torch.equal(found, L)


def test_a_part_in_the_box_of_another_is_not_of_it(tmp_path: Path) -> None:
    labels = scene((9, 10, 10, 74, 74))
    labels[10:54, 34:74] = 0
    labels[14:44, 40:70] = 9
    write_mask(tmp_path / "SegmentationClass" / "2008_000001.png", labels)
    found = silhouettes([tmp_path])
    assert found.shape == (2, 64, 64)
    assert torch.equal(found[0], L[0])
    assert found[1].all()


def test_the_parts_of_a_class_are_apart_and_small_ones_and_void_are_left_out(tmp_path: Path) -> None:
    labels = scene((3, 10, 10, 40, 50), (3, 60, 10, 90, 50), (3, 10, 80, 20, 91), (20, 60, 80, 70, 92))
    write_mask(tmp_path / "SegmentationClass" / "2008_000001.png", labels)  # the third: 110 of 12000 pixels, < 1%
    found = silhouettes([tmp_path])
    assert found.shape == (3, 64, 64)  # 12 × 10 = 120 pixels are 1%, which counts
    assert found.all()


def test_objects_are_preferred_to_classes(tmp_path: Path) -> None:
    touching = scene((5, 10, 10, 90, 90))
    write_mask(tmp_path / "SegmentationClass" / "2008_000001.png", touching)
    write_mask(tmp_path / "SegmentationClass" / "2008_000002.png", touching)
    touching[10:90, 50:90] = 6
    write_mask(tmp_path / "SegmentationObject" / "2008_000001.png", touching)
    assert len(silhouettes([tmp_path])) == 2 + 1


def test_images_of_voc2007_are_left_out(tmp_path: Path) -> None:
    for kind in ("SegmentationClass", "SegmentationObject"):
        write_mask(tmp_path / kind / "2007_000032.png", scene((1, 10, 10, 60, 60), (2, 10, 70, 60, 110)))
    with pytest.raises(Missing, match="no segmentation masks"):
        silhouettes([tmp_path])
    write_mask(tmp_path / "SegmentationObject" / "2008_000032.png", scene((1, 10, 10, 60, 60)))
    assert len(silhouettes([tmp_path])) == 1


def test_several_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_mask(tmp_path / name / "SegmentationClass" / f"{name}.png", scene((1, 10, 10, 60, 60)))
    assert len(silhouettes([tmp_path / "a", tmp_path / "b"])) == 2
    (tmp_path / "empty").mkdir()
    for name, said in (("nowhere", "no such folder"), ("empty", "no segmentation masks")):
        with pytest.raises(Missing, match=f"{name}: {said}"):
            silhouettes([tmp_path / "a", tmp_path / name])


def test_the_same_tree_gives_the_same_silhouettes(tmp_path: Path) -> None:
    for k in range(5):
        write_mask(
            tmp_path / "SegmentationClass" / f"{9 - k}.png", scene((1, 10, 10, 40 + 9 * k, 60), (2, 70, 30, 90, 99))
        )
    assert torch.equal(silhouettes([tmp_path]), silhouettes([tmp_path]))


@pytest.mark.parametrize("labels", [scene(), scene((255, 10, 10, 60, 60)), scene((1, 10, 10, 14, 14))])
def test_nothing_to_cut_from(labels: NDArray[np.uint8], tmp_path: Path) -> None:
    with pytest.raises(Missing, match=f"{tmp_path}: no segmentation masks .* give --shapes"):
        silhouettes([tmp_path])
    write_mask(tmp_path / "SegmentationClass" / "2008_000001.png", labels)
    with pytest.raises(Missing, match="no object in it is large enough") as caught:
        silhouettes([tmp_path])
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage"])
def test_a_mask_that_cannot_be_read_is_named(damage: str, tmp_path: Path) -> None:
    good, bad = (tmp_path / "SegmentationObject" / f"2008_00000{k}.png" for k in (1, 2))
    write_mask(good, np.random.default_rng(0).integers(0, 20, (100, 120), dtype=np.uint8))
    whole = good.read_bytes()
    write_mask(good, scene((1, 10, 10, 60, 60)))
    bad.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "garbage": b"P6 nonsense"}[damage])
    with pytest.raises(Failed, match="corrupt or truncated mask") as caught:
        silhouettes([tmp_path])
    assert str(caught.value).startswith(f"{bad}: ")
    assert "\n" not in str(caught.value)
    assert type(caught.value) is Failed


def write_grey(path: Path, labels: NDArray[np.generic]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(path)
    return path


def swapped(labels: NDArray[np.uint8]) -> Image.Image:
    """As an editor saves it: the same colours, other labels."""
    image = Image.fromarray(1 - labels, mode="P")
    image.putpalette([*voc_colour(1), *voc_colour(0)])
    return image


OBJECT = scene((1, 10, 10, 60, 60))
NO_MASKS = {
    "in colours, RGB": Image.fromarray(np.full((100, 120, 3), 7, np.uint8)),
    "of 1 bit": Image.fromarray(OBJECT == 1),
    "of 16 bits": Image.fromarray(OBJECT.astype(np.uint16)),
    "coloured (128, 0, 0), in VOC's (0, 0, 0)": swapped((OBJECT == 1).astype(np.uint8)),
    "grey levels [38, 220], not labels": Image.fromarray(np.where(OBJECT == 255, 220, 38 * OBJECT).astype(np.uint8)),
    "black and white mask, where 255 is void": Image.fromarray(np.where(OBJECT == 1, 255, 0).astype(np.uint8)),
}


@pytest.mark.parametrize("said", NO_MASKS)
def test_masks_that_are_not_vocs_are_named(said: str, tmp_path: Path) -> None:
    path = tmp_path / "SegmentationClass" / "2008_000001.png"
    path.parent.mkdir()
    NO_MASKS[said].save(path)
    with pytest.raises(Failed) as caught:
        silhouettes([tmp_path])
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).count("\n") == 0


def test_grey_labels_are_masks_too(tmp_path: Path) -> None:
    write_grey(tmp_path / "SegmentationClass" / "2008_000001.png", OBJECT)
    assert len(silhouettes([tmp_path])) == 1


def test_what_a_mac_or_a_nas_leaves_is_no_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "SegmentationClass"
    write_mask(folder / "2008_000001.png", OBJECT)
    for name in ("._2008_000001.png", ".hidden.png", "2008_000001.png~", "Thumbs.db"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    (folder / "@eaDir").mkdir()
    write_mask(folder / "@eaDir" / "x.png", OBJECT)
    (folder / "2008_000002.npy").touch()
    for _ in range(2):
        assert len(silhouettes([tmp_path])) == 1
    said = f"{folder}: not looked at: 5 hidden or left by a system, 1 of .npy\n"
    assert capsys.readouterr().err == said  # once
