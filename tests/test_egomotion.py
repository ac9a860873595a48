"""Egomotion, through the real code: a pinhole camera before a wall, its two towers, and what it is scored by."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pretrain import Folders
from pretrain.alexnet import read_encoder
from pretrain.egomotion import Egomotion, FramePairs, commonest, source
from pretrain.files import Missing
from pretrain.images import SIDE, batches
from pretrain.randomness import Draw, generator
from pretrain.train import Config, pretrain

CPU = torch.device("cpu")
AXES, CLASSES = 3, 22
WALL, FOV = 3.0, 0.75  # metres before the camera; half of what it sees, by its distance
Pose = tuple[float, float, float]


def seen(pose: Pose, rng: np.random.Generator) -> Image.Image:
    """What a camera at (x, z), turned by yaw, sees: a low wall, red to the right of 0; above it the sky, bright there.

    A step shows where the wall's red begins, a turn where the sky's brightness does, and nearness how tall it is.
    """
    x, z, yaw = pose
    v, u = np.mgrid[-FOV:FOV:64j, -FOV:FOV:64j]
    right = math.cos(yaw) * u + math.sin(yaw)
    ahead = np.maximum(math.cos(yaw) - math.sin(yaw) * u, 0.05)
    away = (WALL - z) / ahead
    wall = np.where((x + away * right > 0)[..., None], (240, 40, 30), (30, 220, 40))
    sky = np.where((right > 0)[..., None], (230, 230, 255), (10, 10, 60))
    down = (away * v)[..., None]
    pixels = np.where(down < -0.1, sky, np.where(down < 1.1, wall, (120, 110, 90)))
    return Image.fromarray((pixels + rng.normal(0, 12, pixels.shape)).clip(0, 255).astype(np.uint8))


def drive(root: Path, name: str, poses: list[Pose], rng: np.random.Generator) -> None:
    """One sequence, as KITTI's odometry set has them."""
    folder = root / "sequences" / name / "image_2"
    folder.mkdir(parents=True)
    (root / "poses").mkdir(exist_ok=True)
    lines = []
    for number, (x, z, yaw) in enumerate(poses):
        seen((x, z, yaw), rng).save(folder / f"{number:06d}.png")
        cos, sin = math.cos(yaw), math.sin(yaw)
        lines.append(" ".join(map(repr, [cos, 0.0, sin, x, 0.0, 1.0, 0.0, 0.0, -sin, 0.0, cos, z])))
    (root / "poses" / f"{name}.txt").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred drives of two frames: to the left or right, back or ahead, turning to the left or right."""
    root, rng = tmp_path_factory.mktemp("data") / "drives", np.random.default_rng(0)
    for number in range(100):
        x, z, yaw = (rng.integers(0, 2, 3) * 2.0 - 1).tolist()
        drive(root, f"{number:03d}", [(0.0, 0.0, 0.0), (2.0 * x, 1.5 * z, 0.25 * yaw)], rng)
    return root


@pytest.fixture(scope="module")
def model() -> Egomotion:
    """Untrained, its top filled more widely, so that what it says differs between pairs."""
    torch.manual_seed(0)
    made = Egomotion(torch.full((AXES, CLASSES), 1 / CLASSES)).eval()
    for layer in (made.join1, made.join2, made.fc, made.motion):
        torch.nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
    return made


@pytest.fixture(scope="module")
def pairs() -> tuple[Tensor, Tensor, Tensor]:
    """Five pairs of noise, and labels."""
    random = torch.Generator().manual_seed(0)
    first, second = (torch.randn(5, 3, 227, 227, generator=random) * 50 for _ in range(2))
    return first, second, torch.randint(CLASSES, (5, AXES), generator=random)


def draw() -> Draw:
    return Draw(generator(0, "test"))


# ---- a run ----


def test_it_learns_how_the_camera_moved(
    drives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, losses_of: Callable[[Path], list[float]]
) -> None:
    """The loss falls, and the motion of drives that it has not seen is told more often than by guessing."""
    monkeypatch.setenv("BENCH_CHECKPOINT_SECONDS", "3600")
    monkeypatch.setattr("pretrain.train.LOG_EVERY", 1)
    config = Config("egomotion", None, "l2", iterations=15, batch=8, rate=3e-5, seed=0, calibrate=True)
    assert config.name == "egomotion"  # nothing synthetic about it
    encoder = pretrain(config, folders=Folders(videos=(drives,)), runs=tmp_path, device=CPU)
    losses = losses_of(encoder)
    assert len(losses) == 15
    assert losses[0] == pytest.approx(AXES * math.log(CLASSES), rel=0.1)  # it begins by guessing
    assert np.mean(losses[-3:]) < 0.4 * losses[0]
    said = read_encoder(encoder).provenance
    assert (said["variant"], said["data"], said["supervision"]) == ("", "", "egomotion")
    assert said["held_out"]["chance_accuracy"] == pytest.approx(0.5, abs=0.15)
    assert said["held_out"]["accuracy"] > said["held_out"]["chance_accuracy"] + 0.2


# ---- the network ----


def test_both_towers_have_the_same_weights(model: Egomotion, pairs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Frames that change places, and what joins them too, say the same; each of the two counts."""
    first, second, _ = pairs
    with torch.no_grad():
        found = model.logits(first, second, draw())
        assert found.shape == (5, CLASSES, AXES)
        for other in (model.logits(second, first, draw()), model.logits(first, first, draw())):
            assert (other - found).abs().max() > 0.01 * found.std()
        weight = model.join1.weight.clone()
        model.join1.weight.copy_(weight.roll(256, 1))
        changed = model.logits(second, first, draw())
        model.join1.weight.copy_(weight)
    torch.testing.assert_close(changed, found, rtol=1e-4, atol=1e-5)
    assert [name for name, _ in model.named_parameters() if name.startswith("encoder")] == [
        f"encoder.conv{k}.{kind}" for k in range(1, 6) for kind in ("weight", "bias")
    ]


def test_the_loss_is_a_softmax_for_each_axis(model: Egomotion, pairs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Against a plain loop, summed over axes, counted in pairs; its gradient at an axis is by its label alone."""
    first, second, labels = pairs
    seen: list[Tensor] = []
    handle = model.motion.register_forward_hook(lambda _, __, output: seen.append(output))
    loss = model(pairs, draw())
    handle.remove()
    (top,) = seen
    (gradient,) = torch.autograd.grad(loss.total, top)
    expected, wanted = 0.0, torch.zeros(5, CLASSES, AXES)
    logits = model.logits(first, second, draw()).detach().double()
    for pair in range(5):
        for axis in range(AXES):
            told = int(labels[pair, axis])
            powers = [math.exp(float(value)) for value in logits[pair, :, axis]]
            expected -= math.log(powers[told] / sum(powers))
            wanted[pair, :, axis] = torch.tensor(powers) / sum(powers)
            wanted[pair, told, axis] -= 1
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert loss.count.item() == 5
    torch.testing.assert_close(gradient.view(5, CLASSES, AXES), wanted, rtol=1e-4, atol=1e-6)


def test_dropout_is_on_the_layer_of_500(model: Egomotion, pairs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Half of it while it trains, by the run's own numbers; none of it when it is scored."""
    kept: list[Tensor] = []
    handle = model.motion.register_forward_hook(lambda _, inputs, __: kept.append(inputs[0]))
    with torch.no_grad():
        whole, *trained = (model.logits(*pairs[:2], draw(), training=on) for on in (False, True, True))
    handle.remove()
    assert torch.equal(*trained)
    assert not torch.equal(whole, trained[0])
    shown = kept[0] > 0
    dropped = (kept[1] == 0)[shown]
    assert dropped.float().mean().item() == pytest.approx(0.5, abs=0.05)
    torch.testing.assert_close(kept[1][shown][~dropped], 2 * kept[0][shown][~dropped])


def test_the_scores_of_a_plain_loop(model: Egomotion, pairs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Accuracy over pairs and axes; chance is the guess that was most often right in training, of equals a share."""
    first, second, labels = pairs
    counts = torch.zeros(AXES, CLASSES, dtype=torch.int64)
    with torch.no_grad():
        guessed = model.logits(first, second, draw()).argmax(1)
    told = labels.clone()
    told[:3] = guessed[:3]  # these the network gets right
    told[3, 0], told[4] = guessed[3, 0], (guessed[4] + 1) % CLASSES
    for axis, seen in enumerate(told[0].tolist()):
        counts[axis, seen] = 7
    tie = (int(told[4, 2]) + 1) % CLASSES if int(told[4, 2]) + 1 != int(told[0, 2]) else (int(told[4, 2]) + 2) % CLASSES
    counts[2, tie] = 7
    right = chance = 0.0
    for pair in range(5):
        for axis in range(AXES):
            right += float(guessed[pair, axis] == told[pair, axis])
            best = [label for label in range(CLASSES) if counts[axis, label] == counts[axis].max()]
            chance += (int(told[pair, axis]) in best) / len(best)
    other = Egomotion(commonest(counts))
    other.load_state_dict(model.state_dict())
    found = other.eval().scores((first, second, told), draw())
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {"accuracy": right / 15, "chance_accuracy": chance / 15}
    )
    assert 10 <= right < 15


# ---- batches ----


def test_both_frames_of_a_pair_are_cropped_alike_and_not_mirrored(drives: Path) -> None:
    """On a chart whose red is x and whose green is y: one crop for a pair, another for the next."""
    y, x = np.mgrid[:SIDE, :SIDE]
    chart = torch.from_numpy(np.stack([x, y, x], 2).astype(np.uint8))[None].expand(8, -1, -1, -1)
    data = object.__new__(FramePairs)
    labels = torch.arange(24).view(8, 3)
    first, second, told = data.batch((chart, chart, labels), draw())
    assert torch.equal(first, second)
    assert torch.equal(told, labels)
    places = first[:, :2] + torch.tensor([123.0, 117.0]).view(2, 1, 1)
    corners = {(int(left), int(top)) for left, top in places[:, :, 0, 0]}
    assert len(corners) > 4
    assert min(min(corner) for corner in corners) >= 0
    for image, (left, top) in zip(places, places[:, :, 0, 0].tolist(), strict=True):
        assert torch.equal(image[0], left + torch.arange(227.0).expand(227, 227))
        assert torch.equal(image[1], top + torch.arange(227.0)[:, None].expand(227, 227))


def test_a_batch_is_the_frames_and_the_labels_of_its_pairs(drives: Path, tmp_path: Path) -> None:
    """What moved is told from the pictures: the red of the wall's middle row, the bright of the sky's."""
    data = source(Folders(videos=(drives,))).open(tmp_path)
    assert isinstance(data, FramePairs)
    ((_, second, labels),) = batches(data, batch=20, seed=0, start=0, stop=1, device=CPU)
    for image, told in zip(second + torch.tensor([123.0, 117.0, 104.0]).view(3, 1, 1), labels.tolist(), strict=True):
        wall, sky = image[:, 140], image[:, 10]
        to_the_right = (wall[0] > wall[1]).float().mean() > 0.5
        turned_right = (sky[2] > 150).float().mean() > 0.5
        assert (told[0] > CLASSES / 2, told[2] > CLASSES / 2) == (to_the_right, turned_right)


# ---- what it cannot use ----


def test_drives_that_cannot_be_decoded_are_named(tmp_path: Path) -> None:
    """Frames cut short: none of them is left, and no encoder is made of nothing."""
    root = tmp_path / "drives"
    for number in range(2):
        drive(root, f"{number:02d}", [(0.0, 0.0, 0.0), (1.0, 1.0, 0.2)], np.random.default_rng(0))
    frames = sorted(root.rglob("*.png"))
    for path in frames:
        path.write_bytes(path.read_bytes()[:200])
    config = Config("egomotion", None, "l2", iterations=1, batch=2, rate=1e-4, seed=0)
    with pytest.raises(Missing) as caught:
        pretrain(config, folders=Folders(videos=(root,)), runs=tmp_path / "runs", device=CPU)
    assert str(caught.value) == (
        f"{root}: not one of 4 files can be used ({frames[0]}: cannot be decoded): give another folder"
    )
    assert caught.value.exit_code == 3
    assert not list((tmp_path / "runs").rglob("encoder.safetensors"))


def test_films_are_no_frames_with_poses(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"")
    with pytest.raises(Missing) as caught:
        source(Folders(videos=(tmp_path,)))
    assert str(caught.value).startswith(
        f"{tmp_path}: no sequences/NN/image_2 with poses/NN.txt: give --videos a folder"
    )
    assert str(caught.value).endswith("or --images for motion made from stills")
    assert caught.value.exit_code == 3
