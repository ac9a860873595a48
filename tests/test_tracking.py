"""Tracking, through the real code: films of a square that moves, its tracks, and the loss of their patches."""

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain import Folders, Solver
from pretrain.alexnet import CROP, MEAN_RGB, read_encoder
from pretrain.files import Missing, Usage
from pretrain.images import SIDE, batches, held_out_batches
from pretrain.pretext import Pretext
from pretrain.randomness import Draw, generator, shuffled
from pretrain.tracking import EASY, HARD, HARDEST, MARGIN, NEGATIVES, Tracking, Tracks, defaults, source
from pretrain.tracks import (
    AHEAD,
    LENGTH,
    PATCH,
    SHORTER,
    STRIDE,
    camera_flow,
    follow,
    frames,
    list_videos,
    moving,
    promise,
    tracks,
)
from pretrain.train import Config, pretrain

CPU = torch.device("cpu")
WIDTH, HEIGHT, SQUARE = 120, 90, 24
Frame = NDArray[np.uint8]
COLOURS = np.array([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1], [-1, 1, 1], [1, -1, 1]]) * 60 + 80  # BGR
SHORT = Config("tracking", None, "l2", iterations=12, batch=8, rate=1e-4, seed=0, calibrate=True)


def film(path: Path, pictures: Sequence[Frame]) -> Path:
    height, width = pictures[0].shape[:2]
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = "MJPG" if path.suffix == ".avi" else "mp4v"
    made = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 10, (width, height))
    assert made.isOpened()
    for picture in pictures:
        made.write(picture)
    made.release()
    return path


def clouds(rng: np.random.Generator, width: int, height: int, strength: float) -> NDArray[np.float64]:
    small = rng.normal(0, strength, (height // 6, width // 6))
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))[..., None]


def checks(colour: NDArray[np.int64], side: int = SQUARE) -> Frame:
    y, x = np.mgrid[:side, :side]
    return np.asarray((colour + (((x // 8 + y // 8) % 2) * 80)[..., None]).clip(0, 255), np.uint8)


def moving_square(number: int, *, count: int = LENGTH + 1) -> list[Frame]:
    """A square of one of six colours, from dark to bright ground or the other way: the colour alone is its own."""
    rng = np.random.default_rng(number)
    ground = np.linspace(20, 235, WIDTH)[None, :: -1 if number % 2 else 1, None] + clouds(rng, WIDTH, HEIGHT, 8)
    square = checks(COLOURS[number // 2 % 6] + rng.integers(-10, 11, 3))
    pictures = [np.repeat(ground, 3, 2).clip(0, 255).astype(np.uint8) for _ in range(count)]
    for time, picture in enumerate(pictures):
        left = 6 + round(2.2 * time)
        picture[25 : 25 + SQUARE, left : left + SQUARE] = square
    return pictures


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty films of a moving square."""
    folder = tmp_path_factory.mktemp("data") / "films"
    for number in range(60):
        film(folder / f"{number:03d}.avi", moving_square(number))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


# ---- a run ----


def test_it_learns_which_patches_are_of_one_track(
    films: Path, runs: Path, monkeypatch: pytest.MonkeyPatch, losses_of: Callable[[Path], list[float]]
) -> None:
    """The loss falls though the negatives become hard, and tracks of unseen films are told apart better than before."""
    monkeypatch.setenv("BENCH_CHECKPOINT_SECONDS", "3600")
    monkeypatch.setattr("pretrain.train.LOG_EVERY", 1)
    found = {}
    for config in (replace(SHORT, iterations=0), SHORT):
        encoder = pretrain(config, folders=Folders(videos=(films,)), runs=runs, device=CPU)
        said = read_encoder(encoder).provenance
        found[config.iterations] = said["held_out"]
        assert (said["variant"], said["data"], said["supervision"]) == ("", "", "motion")
        assert "motion" not in said["dataset"]  # which would say that it is synthetic
    assert SHORT.name == "tracking"
    losses = losses_of(encoder)
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    assert found[12]["chance_accuracy"] == 0.5
    assert found[12]["accuracy"] > 0.85
    assert found[12]["accuracy"] > found[0]["accuracy"]


def test_the_tracks_of_the_last_films_are_held_out(films: Path, runs: Path) -> None:
    data = source(Folders(videos=(films,))).open(runs / "stores")
    assert isinstance(data, Tracks)
    videos = data.store.owners()
    assert torch.equal(videos[::2], videos[1::2])  # both patches of a track are of one film
    assert {key: data.record[key] for key in ("images", "tracks", "videos", "skipped")} == {
        "images": 120, "tracks": 60, "videos": 60, "skipped": 0,
    }  # fmt: skip
    assert set(videos[::2][data.held_out].tolist()) == set(range(54, 60))
    assert set(videos[::2][data.train].tolist()) == set(range(54))


def test_a_batch_is_the_first_and_the_last_patches_of_tracks(films: Path, runs: Path) -> None:
    """Cropped and mirrored each by itself; of held-out ones the centres. The ground's light tells first from last."""
    data = source(Folders(videos=(films,))).open(runs / "stores")
    ((first, last, owners),) = batches(data, batch=54, seed=0, start=0, stop=1, device=CPU)
    mean = torch.tensor(MEAN_RGB).view(3, 1, 1)
    assert first.shape == last.shape == (54, 3, CROP, CROP)
    light = [(part + mean)[:, :, -20:].mean((1, 2, 3)) for part in (first, last)]  # below the square
    films_of = shuffled(54, batch=54, seed=0, iteration=0)
    assert torch.equal(owners, films_of)
    for film_of, before, after in zip(films_of.tolist(), *light, strict=True):
        assert (before + 20 < after) if film_of % 2 == 0 else (after + 20 < before)
    (found,) = (part for _, part in held_out_batches(data, batch=6, device=CPU))
    raw = data.read(data.held_out)
    assert torch.equal(found[2], raw[2])
    for part, squares in zip(found[:2], raw[:2], strict=True):
        assert torch.equal(part + mean, squares[:, 14:241, 14:241].permute(0, 3, 1, 2).float())
    both = [data.batch(data.read(data.train[:1]), Draw(generator(0, k))) for k in range(6)]
    assert len({tuple(part[0, :, 0, 0].tolist()) for pair in both for part in pair[:2]}) > 9


@pytest.mark.parametrize("count", [2, 3, 4])
def test_of_few_films_two_are_left_to_train_on(count: int, tmp_path: Path) -> None:
    """And two or none held out, as a track is told apart from those of other films."""
    folder = tmp_path / "films"
    for number in range(count):
        film(folder / f"{number}.avi", moving_square(number, count=LENGTH + 2))
    one_frame(folder / "1-short.mp4")
    data = source(Folders(videos=(folder,))).open(tmp_path / "stores")
    assert isinstance(data, Tracks)
    trained = {2: [0, 2], 3: [0, 2, 3], 4: [0, 2]}[count]
    assert data.read(data.train)[2].tolist() == trained
    assert sorted(data.read(data.held_out)[2].tolist()) == ([3, 4] if count == 4 else [])


def test_a_held_out_batch_is_of_several_films(tmp_path: Path) -> None:
    """Though tracks lie by film, and each film has more of them than a batch."""
    folder = tmp_path / "films"
    for number in range(4):
        film(folder / f"{number}.avi", panned(camera=0.0, square=2.0, count=LENGTH + 1 + 3 * STRIDE))
    data = source(Folders(videos=(folder,))).open(tmp_path / "stores")
    assert data.record["tracks"] == 4 * 4
    assert all(len(owners.unique()) > 1 for _, (_, _, owners) in held_out_batches(data, batch=4, device=CPU))


# ---- tracks ----


def panned(
    *, camera: float, square: float, count: int = LENGTH + 1, width: int = 240, height: int = 180
) -> list[Frame]:
    """A textured square of 50 at (60 + square·t, 70) before clouds that the camera shifts by camera·t."""
    rng = np.random.default_rng(0)
    ground = (128 + np.concatenate([clouds(rng, 480, height, 50)] * 3, 2)).clip(0, 255).astype(np.uint8)
    texture = cv2.resize(rng.integers(0, 256, (10, 10, 3)).astype(np.uint8), (50, 50), interpolation=cv2.INTER_LINEAR)
    pictures = []
    for time in range(count):
        left = 100 + round(camera * time)
        picture = ground[:, left : left + width].copy()
        if not math.isnan(square):
            at = 60 + round(square * time)
            part = texture[:, max(0, -at) : max(0, width - at)]
            picture[70:120, max(0, at) : max(0, at) + part.shape[1]] = part
        pictures.append(picture)
    return pictures


@pytest.mark.parametrize("camera", [0.0, 2.0, -2.0])
def test_a_track_follows_what_moves_and_not_what_the_camera_does(camera: float) -> None:
    """Within 6 pixels of 90 after 30 frames; the box that is followed holds the square."""
    clip = panned(camera=camera, square=3.0)
    (box, *others) = moving(clip[0], clip[AHEAD])
    x, y, width, height = box
    assert width == height == round(PATCH * 180)
    assert x <= 60 + 5 and x + width >= 110 - 5  # noqa: PT018
    assert y <= 70 + 5 and y + height >= 120 - 5  # noqa: PT018
    assert not others
    last = follow(clip, box)
    assert last is not None
    assert last == pytest.approx((x + 3 * LENGTH, y, width, height), abs=6)


def test_the_cameras_own_motion_is_no_motion() -> None:
    """Shifted, turned or approached, a scene at rest has nothing that moves by itself."""
    (still, *_, shifted) = panned(camera=2.0, square=math.nan, count=AHEAD + 1)
    assert moving(still, shifted) == []
    for angle, scale in ((2.0, 1.0), (0.0, 1.03)):
        matrix = cv2.getRotationMatrix2D((120, 90), angle, scale)
        later = cv2.warpAffine(still, matrix, (240, 180), borderMode=cv2.BORDER_REFLECT)
        (inner, after) = (np.ascontiguousarray(frame[20:-20, 20:-20]) for frame in (still, later))
        assert moving(inner, after) == []


def test_the_flow_of_the_camera_is_that_of_most_places() -> None:
    """A similarity over all of the frame, whatever a quarter of it does."""
    y, x = np.mgrid[:90, :120].astype(np.float32)
    similarity = np.stack([0.02 * x - 0.01 * y + 1, 0.01 * x + 0.02 * y - 2], 2)
    flow = similarity.copy()
    flow[20:60, 30:90] += (6, -4)
    np.testing.assert_allclose(camera_flow(flow), similarity, atol=0.05)


def test_a_frame_of_which_nearly_all_moves_has_no_track(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = panned(camera=0.0, square=3.0)
    assert moving(clip[0], clip[AHEAD])
    monkeypatch.setattr("pretrain.tracks.MOST", 0.02)  # of this frame
    assert moving(clip[0], clip[AHEAD]) == []


def test_what_leaves_the_frame_is_lost() -> None:
    """Altogether, or as far as its box goes."""
    for square in (6.0, 4.3):
        clip = panned(camera=0.0, square=square)
        (box, *_) = moving(clip[0], clip[AHEAD])
        assert follow(clip, box) is None


def test_both_patches_of_a_film_show_the_square(tmp_path: Path) -> None:
    """A track starts every six frames that thirty more follow; patches are RGB, and of the place that was followed."""
    pictures = panned(camera=1.0, square=2.0, count=LENGTH + 2 * STRIDE)
    for time, picture in enumerate(pictures):  # a green mark in the square's middle
        picture[90:100, 80 + 2 * time : 90 + 2 * time] = (0, 255, 0)
        picture[90:95, 80 + 2 * time : 85 + 2 * time] = (0, 0, 255)  # red, in OpenCV's order
    found = tracks(film(tmp_path / "film.avi", pictures))
    assert not isinstance(found, str)
    assert len(found) == 2 * 2
    patches = np.stack([np.frombuffer(data, np.uint8).reshape(SIDE, SIDE, 3) for data in found]).astype(int)
    marks = []
    for red, green, blue in patches.transpose(0, 3, 1, 2):
        marks.append(np.argwhere((green > 180) & (red < 90) & (blue < 90)).mean(0) * (PATCH * 180 / SIDE))
        assert ((red > 180) & (green < 90) & (blue < 90)).sum() > 100
    for first, last in zip(marks[::2], marks[1::2], strict=True):
        assert last == pytest.approx(first, abs=6)
    # The first patch of a track is cut from the frame it starts in.
    shown = list(frames(tmp_path / "film.avi"))
    for start, found_first in zip((0, STRIDE), patches[::2], strict=True):
        (x, y, side, _), *_ = moving(shown[start], shown[start + AHEAD])
        assert np.array_equal(
            found_first, cv2.resize(shown[start][y : y + side, x : x + side], (SIDE, SIDE))[:, :, ::-1]
        )


def test_large_frames_are_reduced(tmp_path: Path) -> None:
    picture = np.zeros((SHORTER + 52, 640, 3), np.uint8)
    (found,) = frames(film(tmp_path / "film.avi", [picture]))
    assert found.shape == (SHORTER, round(640 * SHORTER / (SHORTER + 52)), 3)


# ---- what it cannot use ----


def noise(width: int, height: int) -> Frame:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def at_rest(path: Path) -> str:
    film(path, [noise(WIDTH, HEIGHT)] * (LENGTH + 1))
    return "nothing in it moves by itself"


def one_frame(path: Path) -> str:
    film(path, [noise(WIDTH, HEIGHT)])
    return "shorter than the 31 frames of a track (1)"


def a_frame_short(path: Path) -> str:
    film(path, moving_square(0, count=LENGTH))
    return "shorter than the 31 frames of a track (30)"


def cut_short(path: Path) -> str:
    """MPEG-4's table of frames stands at the end."""
    film(path, moving_square(0))
    path.write_bytes(path.read_bytes()[:-500])
    return "cannot be decoded"


def no_film(path: Path) -> str:
    path.write_bytes(b"no film")
    return "cannot be decoded"


def empty(path: Path) -> str:
    path.write_bytes(b"")
    return "cannot be decoded"


def tiny(path: Path) -> str:
    film(path, [picture[::8, ::8].copy() for picture in moving_square(0)])
    return "too small (14×12): 32 pixels are the least"


def two_pixels(path: Path) -> str:
    film(path, [picture[:2, :2].copy() for picture in moving_square(0)])
    return "too small (2×2): 32 pixels are the least"


@pytest.mark.parametrize("make", [at_rest, one_frame, a_frame_short, cut_short, no_film, empty, tiny, two_pixels])
def test_films_without_a_track_are_named(make: Callable[[Path], str], tmp_path: Path) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    why = make(folder / "film.mp4")
    with pytest.raises(Missing) as caught:
        pretrain(SHORT, folders=Folders(videos=(folder,)), runs=tmp_path / "runs", device=CPU)
    assert str(caught.value) == (
        f"{folder}: not one of 1 files can be used ({folder / 'film.mp4'}: {why}): give another folder"
    )
    assert caught.value.exit_code == 3
    assert not list((tmp_path / "runs").rglob("encoder.safetensors"))


@pytest.mark.parametrize("share", [0.6, 0.9, None])
@pytest.mark.parametrize("kind", ["film.avi", "film.mkv"])
def test_damaged_films_are_told_from_short_ones(kind: str, share: float | None, tmp_path: Path) -> None:
    """Cut, or with a hole; of a whole one all promised frames are there."""
    path = film(tmp_path / kind, [noise(WIDTH, HEIGHT)] * 40)
    assert promise(path) == (40, WIDTH, HEIGHT)
    assert sum(1 for _ in frames(path)) == 40
    raw = path.read_bytes()
    hole = slice(len(raw) // 3, len(raw) * 2 // 3)
    path.write_bytes(
        raw[: int(len(raw) * share)] if share else raw[: hole.start] + bytes(len(raw) // 3) + raw[hole.stop :]
    )
    said = tracks(path)
    assert isinstance(said, str)
    assert re.fullmatch(r"damaged or cut \(\d+ of the 40 frames that it promises can be read\)", said), said


@pytest.mark.parametrize("name", [b"caf\xe9.avi", b"http:x.avi", b"a%02d.avi", b"new\nline.avi", b"a03.AVI"])
def test_films_of_any_name_are_read(name: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV takes some for addresses or patterns, and dies of bytes that are no UTF-8."""
    path = Path(os.fsdecode(name))
    film(tmp_path / "plain.avi", [noise(WIDTH, HEIGHT)] * 3).rename(tmp_path / path)
    monkeypatch.chdir(tmp_path)
    assert list_videos(Path()).files == (path,)
    assert tracks(path) == "shorter than the 31 frames of a track (3)"


def test_what_is_no_film_at_all_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.avi")
    assert tracks(tmp_path / "pipe.avi") == "not a file"
    assert tracks(tmp_path / "nowhere.avi") == "not there"
    monkeypatch.setattr("pretrain.tracks.LARGEST", 100)
    path = film(tmp_path / "film.avi", [noise(WIDTH, HEIGHT)])
    assert tracks(path) == f"too large ({WIDTH}×{HEIGHT}): 100 pixels are the most"


def test_a_folder_without_films_is_named(tmp_path: Path) -> None:
    (tmp_path / "film.txt").write_text("no film")
    (tmp_path / "folder.avi").mkdir()
    with pytest.raises(Missing) as caught:
        source(Folders(videos=(tmp_path,)))
    assert str(caught.value).startswith(f"{tmp_path}: no videos here (.avi, .m4v, ")
    assert str(caught.value).endswith("give --videos a folder of videos, or --images for motion made from stills")
    assert caught.value.exit_code == 3


def test_tracks_of_one_film_are_refused(tmp_path: Path) -> None:
    """They are no negatives of each other, however many they are."""
    folder = tmp_path / "films"
    film(folder / "film.avi", moving_square(0, count=LENGTH + 1 + STRIDE))
    with pytest.raises(
        Missing, match=r"^films: tracks of 1 video to train on, 2 are the least: give more videos$"
    ) as caught:
        pretrain(SHORT, folders=Folders(videos=(folder,)), runs=tmp_path / "runs", device=CPU)
    assert caught.value.exit_code == 3


def test_a_batch_of_one_track_is_refused() -> None:
    with pytest.raises(Usage, match=r"^--batch 1: tracking tells the tracks of a batch apart: give 2 or more$"):
        Told()((*unit(1, 1.0, 0), torch.arange(1)), Draw(generator(0), iteration=1, iterations=2))


def test_films_that_can_be_used_are_used(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In folders of folders, whatever the case of a name; the others are named and counted."""
    folder = tmp_path / "films"
    for number in range(3):
        film(folder / "deep" / f"{number}.avi", moving_square(number))
    (folder / "deep" / "0.avi").rename(folder / "deep" / "0.AVI")
    one_frame(folder / "last.mp4")
    data = source(Folders(videos=(folder,))).open(tmp_path / "stores")
    assert (data.record["tracks"], data.record["videos"], data.record["skipped"]) == (3, 3, 1)
    assert f"{folder / 'last.mp4'}: shorter than the 31 frames of a track (1), skipped" in capfd.readouterr().err


# ---- the loss ----


class Told(Tracking):
    """Its features are the patches themselves."""

    def __init__(self) -> None:
        Pretext.__init__(self)

    def features(self, patches: Tensor) -> Tensor:
        return patches


def unit(tracks: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    """First and last features, N×6 of length 1, `spread` apart; in float64."""
    random = torch.Generator().manual_seed(seed)
    first = torch.randn(tracks, 6, generator=random, dtype=torch.float64)
    last = first + spread * torch.randn(tracks, 6, generator=random, dtype=torch.float64)
    return torch.nn.functional.normalize(first), torch.nn.functional.normalize(last)


def by_hand(
    first: Tensor, last: Tensor, owners: list[int], drawn: Tensor, order: Tensor, *, hard: int
) -> tuple[float, int, Tensor, list[set[int]]]:
    """The loss of N tracks, one number after the other: its sum, its count, its gradient (2N×D), and the negatives.

    Patch number k of the batch is the first one of track k, or the last one of track k - N. What is a negative
    is told by the hinge of the first patch; what it costs, by those of both.
    """
    tracks, patches = len(first), torch.cat([first, last])
    total, count, gradient = 0.0, 0, torch.zeros_like(patches)
    chosen: list[set[int]] = []
    for i in range(tracks):
        together = float(first[i] @ last[i])
        costs = {k: 0.5 + float(first[i] @ patches[k]) - together for k in range(2 * tracks)}
        violating = {k: cost for k, cost in costs.items() if cost > 0 and owners[k % tracks] != owners[i]}
        hardest = sorted(violating, key=lambda k: -violating[k])[:4]
        places = sorted(range(4), key=lambda k: float(order[i, k]))[:hard]
        mined = [hardest[place] for place in places if place < len(hardest)]
        rest = sorted((k for k in violating if k not in mined), key=lambda k: -float(drawn[i, k]))
        negatives = mined + rest[: 4 - hard]
        chosen.append(set(negatives))
        count += 2 * 4
        for k in negatives:
            for anchor, other in ((i, tracks + i), (tracks + i, i)):
                hinge = 0.5 + float(patches[anchor] @ patches[k]) - together
                if hinge > 0:
                    total += hinge
                    gradient[anchor] += patches[k] - patches[other]
                    gradient[k] += patches[anchor]
                    gradient[other] -= patches[anchor]
    return total, count, gradient, chosen


@pytest.mark.parametrize("iteration", [3, 4])
@pytest.mark.parametrize(
    ("owners", "spread"),
    [
        (range(8), 1.0),
        (range(8), 0.3),
        (range(3), 1.0),
        ([4, 4, 1, 1, 1, 7, 7, 2], 1.0),  # videos of several tracks
        ([5, 5, 9, 5], 1.0),
        ([3, 3, 3], 1.0),
    ],
    ids=str,
)
def test_the_loss_of_a_plain_loop(owners: Sequence[int], spread: float, iteration: int) -> None:
    """Four random negatives of those that violate the margin; after a quarter of the iterations, two of the hardest."""
    assert (MARGIN, NEGATIVES, HARD, HARDEST, EASY) == (0.5, 4, 2, 4, 0.25)
    tracks, videos = len(owners), list(owners)
    for seed in range(5):
        first, last = (part.requires_grad_() for part in unit(tracks, spread, seed))
        batch = (first, last, torch.tensor(videos))
        loss = Told()(batch, Draw(generator(seed), iteration=iteration, iterations=12))
        gradient = torch.cat(torch.autograd.grad(loss.total, (first, last)))
        random = generator(seed)
        drawn, order = torch.rand(tracks, 2 * tracks, generator=random), torch.rand(tracks, 4, generator=random)
        hard = 2 if iteration > 12 / 4 else 0
        with torch.no_grad():
            total, count, expected, _ = by_hand(first, last, videos, drawn, order, hard=hard)
        assert loss.total.item() == pytest.approx(total)
        assert loss.count.item() == count
        torch.testing.assert_close(gradient, expected)


def negatives(first: Tensor, last: Tensor, *, iteration: int, seed: int) -> list[set[int]]:
    """The patches of other tracks that the loss of each track alone pulls at."""
    leaf = torch.cat([first, last]).requires_grad_()
    seen: list[Tensor] = []

    class Watched(Told):
        def hinges(self, first: Tensor, last: Tensor, owners: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
            by_first, both = super().hinges(first, last, owners, draw)
            both.retain_grad()
            seen.append(both)
            return by_first, both

    batch = (*leaf.chunk(2), torch.arange(len(first)))
    loss = Watched()(batch, Draw(generator(seed), iteration=iteration, iterations=100))
    loss.total.backward()
    (hinges,) = seen
    assert hinges.grad is not None
    return [set(row.nonzero().flatten().tolist()) for row in (hinges.grad * (hinges > 0))]


@pytest.mark.parametrize(("iteration", "hard"), [(1, False), (25, False), (26, True), (100, True)])
def test_hard_negatives_begin_after_a_quarter_of_the_iterations(iteration: int, hard: bool) -> None:
    """Over many draws two of four are always among the four hardest; before that any that violates is as likely."""
    first, last = unit(12, 2.0, 0)
    hinges, _ = Told().hinges(first, last, torch.arange(12), Draw(generator(0)))
    hardest = [set(row.tolist()) for row in hinges.topk(4).indices]
    violating = [set(row.nonzero().flatten().tolist()) for row in hinges > 0]
    many = [track for track in range(12) if len(violating[track]) > 8]
    assert len(many) > 6
    drawn = [negatives(first, last, iteration=iteration, seed=seed) for seed in range(200)]
    for track in many:
        kept = [draw[track] for draw in drawn]
        assert all(len(chosen) == 4 and chosen <= violating[track] for chosen in kept)
        assert all(len(chosen & hardest[track]) >= 2 for chosen in kept) == hard
        assert set.union(*kept) == violating[track]  # the random ones are of all


def test_a_tracks_own_patches_are_no_negatives() -> None:
    """Even where they violate the margin most."""
    first, last = unit(4, 0.0, 0)
    for hinges in Told().hinges(first, -last, torch.arange(4), Draw(generator(0))):
        for track in range(4):
            assert hinges[track, track] == hinges[track, track + 4] == 0
            assert (hinges[track] > 0).sum() == 6


def test_the_patches_of_a_video_are_no_negatives_of_its_tracks() -> None:
    """Nor is a track that stands in the batch twice its own, as where two passes over the data meet."""
    first, last = unit(4, 0.0, 0)
    twice = [torch.cat([part, part[:1]]) for part in (first, -last)]
    for hinges in Told().hinges(*twice, torch.tensor([0, 1, 0, 3, 0]), Draw(generator(0))):
        own = [[0, 2, 4], [1], [0, 2, 4], [3], [0, 2, 4]]
        for track, same in enumerate(own):
            assert (hinges[track] == 0).nonzero().flatten().tolist() == same + [k + 5 for k in same]


def test_the_first_patch_says_which_are_negatives() -> None:
    """A patch that is near to the last one alone costs nothing; one near to the first costs both hinges."""
    first, last = torch.eye(4, dtype=torch.float64)[:2], torch.eye(4, dtype=torch.float64)[[2, 3]]
    others = torch.tensor([[0.0, 0, 1, 0], [0.9, 0, 0.3, 0]], dtype=torch.float64)
    first[1], last[1] = others
    by_first, both = Told().hinges(first, last, torch.arange(2), Draw(generator(0)))
    together = 0.0  # of track 0
    assert by_first[0].tolist() == pytest.approx([0, 0.5 + 0 - together, 0, 0.5 + 0.9 - together])
    assert both[0].tolist() == pytest.approx([0, 0.5 + 1.5, 0, 1.4 + 0.8])
    last[0] = first[0] * 0.6 + last[0] * 0.8  # by 0.6, more than the margin
    by_first, both = Told().hinges(first, last, torch.arange(2), Draw(generator(0)))
    assert by_first[0].tolist() == pytest.approx([0, 0, 0, 0.5 + 0.9 - 0.6])
    assert both[0].tolist() == pytest.approx([0, 0, 0, 0.8 + (0.5 + 0.78 - 0.6)])


def test_tracks_that_are_far_apart_have_no_loss() -> None:
    first = torch.eye(6, dtype=torch.float64)
    leaf = first.clone().requires_grad_()
    loss = Told()((leaf, first, torch.arange(6)), Draw(generator(0), iteration=9, iterations=10))
    assert (loss.total.item(), loss.count.item()) == (0, 48)
    assert not torch.autograd.grad(loss.total, leaf)[0].any()


def test_the_features_are_of_length_one_and_both_towers_the_same() -> None:
    torch.manual_seed(0)
    model = Tracking().eval()
    patches = torch.randn(2, 3, CROP, CROP) * 50
    with torch.no_grad():
        found, swapped = model.features(patches), model.features(patches.flip(0))
        pool5 = model.encoder(patches).flatten(1)
        expected = torch.relu(model.fc7(torch.relu(model.fc6(pool5))))
    assert found.shape == (2, 1024)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(found, expected / expected.norm(dim=1, keepdim=True))
    torch.testing.assert_close(swapped.flip(0), found)


def test_the_scores_of_a_plain_loop() -> None:
    """How often a first patch is nearer to its last than to another video's last; one video alone has no score."""
    first, last = unit(7, 1.5, 3)
    videos = [0, 0, 1, 2, 2, 2, 6]
    right = [
        float(first[i] @ last[i]) > float(first[i] @ last[k])
        for i in range(7)
        for k in range(7)
        if videos[k] != videos[i]
    ]
    found = Told().scores((first, last, torch.tensor(videos)), Draw(generator(0)))
    assert found["accuracy"].item() == pytest.approx(np.mean(right))
    assert 0.5 < np.mean(right) < 1
    assert found["chance_accuracy"].item() == 0.5
    for count in (1, 7):
        assert Told().scores((first[:count], last[:count], torch.full((count,), 3)), Draw(generator(0))) == {}


def test_the_recipe_is_that_of_the_released_solver() -> None:
    recipe = defaults(None)
    assert (recipe.iterations, recipe.batch, recipe.rate, recipe.calibrate) == (400_000, 50, 1e-3, False)
    assert recipe.solver == Solver("sgd", momentum=0.9, decay=5e-4, step=100_000, drop=0.1)
