"""Motion made from stills: every view of an image whose colours are its coordinates says where it was taken."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pretrain import Dataset, Folders, egomotion, tracking
from pretrain.alexnet import CROP, mean_rgb, read_encoder
from pretrain.files import Missing, Usage
from pretrain.images import SIDE, batches, held_out_batches
from pretrain.motion import reach, views
from pretrain.randomness import Draw, generator
from pretrain.train import configure, pretrain

CPU = torch.device("cpu")
Coordinates = NDArray[np.float64]


@pytest.fixture(scope="module")
def stills(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images: red is x, green is y, blue is 200."""
    folder = tmp_path_factory.mktemp("data") / "maps"
    folder.mkdir()
    for number in range(40):
        Image.fromarray(chart()).save(folder / f"{number:02d}.png")
    return folder


def chart() -> NDArray[np.uint8]:
    y, x = np.mgrid[:SIDE, :SIDE]
    return np.stack([x, y, np.full_like(x, 200)], 2).astype(np.uint8)


def sampled(view: Tensor) -> Coordinates:
    """A view of the chart, 3×227×227 → 227×227×2: the place (x, y) that each of its pixels shows."""
    return np.asarray((view + mean_rgb()[0])[:2].permute(1, 2, 0).double().numpy())


def window(view: Tensor) -> tuple[Coordinates, float, float]:
    """Where the window of a view lies: its centre (in pixels from the image's corner), its side, its angle."""
    places = sampled(view)
    across = (places[CROP // 2, -1] - places[CROP // 2, 0]) / (CROP - 1)
    return places[CROP // 2, CROP // 2] + 0.5, float(np.hypot(*across)) * CROP, math.atan2(across[1], across[0])


def corners(view: Tensor) -> Coordinates:
    """The 4 corners of a window, in pixels from the image's corner."""
    centre, side, angle = window(view)
    along = np.array([math.cos(angle), math.sin(angle)]) * side / 2
    down = np.array([-along[1], along[0]])
    return np.array([centre + a * along + b * down for a in (-1, 1) for b in (-1, 1)])


# ---- one view ----


def test_a_view_that_is_not_turned_is_a_crop() -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3)).astype(np.uint8)
    centre = torch.tensor([[113.5, 113.5], [116.5, 140.5]])
    found = views(torch.from_numpy(image), centre, torch.full((2,), float(CROP)), torch.zeros(2)) + mean_rgb()
    crops = np.stack([image[0, :CROP, :CROP], image[1, 27 : 27 + CROP, 3 : 3 + CROP]])
    np.testing.assert_allclose(found.permute(0, 2, 3, 1), crops, atol=0.02)


def test_a_view_turned_by_a_right_angle() -> None:
    """The window is turned clockwise, so its top is the image's right, and what it shows is turned the other way."""
    image = np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE, 3)).astype(np.uint8)
    middle, side = torch.full((1, 2), SIDE / 2), torch.full((1,), 226.0)
    straight = views(torch.from_numpy(image), middle, side, torch.zeros(1))[0]
    turned = views(torch.from_numpy(image), middle, side, torch.full((1,), math.pi / 2))[0]
    np.testing.assert_allclose(turned, torch.rot90(straight, 1, (1, 2)), atol=0.05)


@pytest.mark.parametrize("angle", [0.0, 0.26, -0.26, 1.0, 2.5])
def test_every_pixel_of_a_view_is_where_a_plain_loop_finds_it(angle: float) -> None:
    centre, side = (120.0, 140.0), 90.0
    view = views(torch.from_numpy(chart())[None], torch.tensor([centre]), torch.tensor([side]), torch.tensor([angle]))[
        0
    ]
    places, cos, sin = sampled(view), math.cos(angle), math.sin(angle)
    for row in range(0, CROP, 25):
        for column in range(0, CROP, 25):
            across, down = (((k + 0.5) / CROP - 0.5) * side for k in (column, row))
            x, y = centre[0] + cos * across - sin * down, centre[1] + sin * across + cos * down
            assert places[row, column] == pytest.approx((x - 0.5, y - 0.5), abs=1e-3)  # pixel k lies at k + 0.5
    assert window(view)[1:] == pytest.approx((side, angle), abs=1e-3)
    assert np.ptp(corners(view), 0) / 2 == pytest.approx(
        reach(torch.tensor(side), torch.tensor(angle)).item(), abs=0.01
    )


# ---- two views of one still ----


def drawn(source: Callable[[Folders], object], stills: Path, cache: Path, *, seed: int = 0) -> list[tuple[Tensor, ...]]:
    """Three batches of sixteen."""
    data = source(Folders(images=(stills,))).open(cache)  # type: ignore[attr-defined]
    return list(batches(data, batch=16, seed=seed, start=0, stop=3, device=CPU))


def test_the_motion_labelled_is_the_motion_seen(stills: Path, tmp_path: Path) -> None:
    """The first view is not turned; twenty classes of an axis share ±40 pixels, or ±0.26 radians."""
    seen: list[list[int]] = []
    for first, second, labels in drawn(egomotion.source, stills, tmp_path):
        for before, after, told in zip(first, second, labels.tolist(), strict=True):
            (start, side, angle), (end, later, turned) = window(before), window(after)
            assert (side, angle, later) == pytest.approx((egomotion.SPAN, 0, egomotion.SPAN), abs=1e-2)
            share = [*((end - start) / egomotion.STEP), turned / egomotion.TURN]
            for label, moved in zip(told, share, strict=True):  # moved in [-1, 1): place in classes
                assert label - 1e-3 < (moved + 1) / 2 * egomotion.BINS < label + 1 + 1e-3
            seen.append(told)
            for view in (before, after):
                assert -1e-3 < corners(view).min() < corners(view).max() < SIDE + 1e-3
    for axis in zip(*seen, strict=True):
        assert min(axis) <= 1
        assert max(axis) >= egomotion.BINS - 2
        assert len(set(axis)) > egomotion.BINS // 2
    starts = {tuple(window(view)[0].round(3)) for view in first}
    assert len(starts) == 16


def test_two_views_for_tracking_differ_a_little(stills: Path, tmp_path: Path) -> None:
    """By up to 20% of the side along x and y, 15°, 1.25 in scale and 1.2 in contrast, all of it used."""
    found = []
    for first, second, _ in drawn(tracking.source, stills, tmp_path):
        for before, after in zip(first, second, strict=True):
            light = float((after[2] / before[2]).mean())  # blue is the same everywhere
            (start, side, angle), (end, later, turned) = window(before), window(after / light)
            assert 0.4 * SIDE - 1e-2 < side < 0.6 * SIDE + 1e-2
            assert angle == pytest.approx(0, abs=1e-4)
            found.append([*(end - start) / side, turned, math.log(later / side, 1.25), math.log(light, 1.2)])
            for view in (before, after / light):
                assert -1e-2 < corners(view).min() < corners(view).max() < SIDE + 1e-2
    moved = np.array(found)
    most = np.array([0.2, 0.2, 0.26, 1, 1])
    assert (np.abs(moved[:, 2:]) < most[2:] + 1e-2).all()
    within = np.abs(moved[:, :2]) < 0.2 + 1e-2
    assert within.mean() > 0.9  # the others were moved back into the image
    assert (moved.max(0) > 0.7 * most).all()
    assert (moved.min(0) < -0.7 * most).all()


@pytest.mark.parametrize("source", [egomotion.source, tracking.source])
def test_the_same_seed_moves_the_same(source: Callable[[Folders], object], stills: Path, tmp_path: Path) -> None:
    first, again, other = (drawn(source, stills, tmp_path, seed=seed) for seed in (0, 0, 1))
    for one, two, three in zip(first, again, other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(one, three, strict=True))  # nor are they of the same stills
    assert not torch.equal(first[0][1], first[1][1])  # though the images are all the same


@pytest.mark.parametrize("source", [egomotion.source, tracking.source])
def test_one_still_in_twenty_is_held_out_and_always_moves_the_same(
    source: Callable[[Folders], object], stills: Path, tmp_path: Path
) -> None:
    data: Dataset = source(Folders(images=(stills,))).open(tmp_path)  # type: ignore[attr-defined]
    assert data.held_out.tolist() == [19, 39]
    assert data.train.tolist() == [k for k in range(40) if k % 20 != 19]
    ((share, one),), ((_, two),) = (list(held_out_batches(data, batch=4, device=CPU)) for _ in range(2))
    assert share == 1
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_still_that_is_drawn_twice_is_moved_twice(stills: Path) -> None:
    raw = (torch.from_numpy(chart())[None].expand(2, -1, -1, -1),)
    data = object.__new__(egomotion.MovedStills)
    first, second, _ = data.batch(raw, Draw(generator(0, "a")))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(second[0], second[1])


def test_both_views_are_of_the_still_whose_number_they_have(stills: Path, tmp_path: Path) -> None:
    """Three batches of sixteen of 38: the third holds what the first two left and begins again."""
    owners = torch.cat([batch[2] for batch in drawn(tracking.source, stills, tmp_path)])
    data = tracking.source(Folders(images=(stills,))).open(tmp_path)
    assert owners[:38].sort().values.tolist() == data.train.tolist()
    assert torch.equal(data.read(data.held_out)[1], data.held_out)


def test_one_still_has_no_other_to_be_told_from(tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    Image.fromarray(chart()).save(tmp_path / "maps" / "a.png")
    with pytest.raises(Missing, match=r"^maps: 1 image to train on, 2 are the least: give more images$") as caught:
        tracking.source(Folders(images=(tmp_path / "maps",))).open(tmp_path / "stores")
    assert caught.value.exit_code == 3


# ---- what is told of it ----


@pytest.mark.parametrize(("method", "word"), [("egomotion", "egomotion"), ("tracking", "motion")])
def test_an_encoder_says_that_its_motion_is_synthetic(method: str, word: str, stills: Path, tmp_path: Path) -> None:
    folders = Folders(images=(stills,))
    config = configure(method, folders=folders, budget="tiny", iterations=0, batch=2)
    assert config.name == f"{method}-synthetic"
    encoder = pretrain(config, folders=folders, runs=tmp_path, device=CPU)
    assert encoder.parent.name.startswith(f"{method}-synthetic-")
    said = read_encoder(encoder).provenance
    assert (said["method"], said["variant"], said["data"]) == (method, "synthetic", "synthetic")
    assert said["supervision"] == f"{word}, synthetic from stills"
    assert said["dataset"]["motion"] == "synthetic from stills"
    assert said["dataset"]["images"] == 40


@pytest.mark.parametrize("method", ["egomotion", "tracking"])
def test_data_of_two_kinds_or_of_none_is_refused(method: str, stills: Path, tmp_path: Path) -> None:
    with pytest.raises(Usage) as usage:
        configure(method, folders=Folders(images=(stills,), videos=(stills,)), budget="tiny")
    assert str(usage.value).startswith(f"{method}: give --videos ")
    assert str(usage.value).endswith("not both")
    assert usage.value.exit_code == 2
    with pytest.raises(Missing, match=r"^no folder of images: give --images DIR$") as missing:
        configure(method, folders=Folders(), budget="tiny")
    assert missing.value.exit_code == 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(Missing) as missing:
        configure(method, folders=Folders(images=(tmp_path / "empty",)), budget="tiny")
    assert str(missing.value).startswith(f"{tmp_path / 'empty'}: no images here: give --images")


@pytest.mark.parametrize("method", ["egomotion", "tracking"])
def test_a_loss_that_the_method_does_not_have_is_refused(method: str, stills: Path, tmp_path: Path) -> None:
    folders = Folders(images=(stills,))
    config = configure(method, folders=folders, budget="tiny", iterations=0, batch=2, loss="l1")
    with pytest.raises(Usage, match=rf"^--loss l1: {method} has a \S+( loss)?: leave --loss out$") as caught:
        pretrain(config, folders=folders, runs=tmp_path, device=CPU)
    assert caught.value.exit_code == 2
    assert not list(tmp_path.rglob("encoder.safetensors"))
