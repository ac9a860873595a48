"""The films of the embedded data: their frames, files and poses agree, and something in them moves."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks.embedded import tiny, videos
from benchmarks.embedded.billboards import SIZE, Billboard
from benchmarks.embedded.worlds import WORLDS, World
from pretrain.files import digest

Matrix = NDArray[np.float64]
FRAMES = 10
COUNTS = tiny.Counts(1, 1, 1, 1, 1, sequences=2, frames=FRAMES)
AXES = {"x": 0, "z": 1, "yaw": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "tiny"
    tiny.make_tiny(root, counts=COUNTS)
    return root


@pytest.fixture(scope="module")
def indoors(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, World]:
    """A film of a kitchen, whose wall and floor fill most of the picture."""
    root, frames = tmp_path_factory.mktemp("kitchen"), 24
    index = next(k for k in range(len(WORLDS)) if videos.staged(0, k, 1).setting == "kitchen")
    videos.sequence(root, index, seed=0, frames=frames)
    return root, videos.staged(0, index, frames)


def poses_of(path: Path) -> Matrix:
    """(frames, 3, 4) of one file of poses."""
    return np.array([[float(x) for x in line.split()] for line in path.read_text().splitlines()]).reshape(-1, 3, 4)


def frames_of(folder: Path) -> list[NDArray[np.uint8]]:
    return [np.asarray(Image.open(path)) for path in sorted((folder / "image_2").glob("*.jpg"))]


def motion(a: Matrix, b: Matrix) -> Matrix:
    """How far b is to the right of a and before it, and turned (to the right, radians), in a's coordinates, (3,)."""
    turn, step = a[:, :3].T @ b[:, :3], a[:, :3].T @ (b[:, 3] - a[:, 3])
    return np.array([step[0], step[2], np.arctan2(turn[0, 2], turn[2, 2])])


def moved(a: Matrix, by: Matrix) -> Matrix:
    """The pose (3, 4) reached from `a` by the motion."""
    x, z, yaw = by
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    return np.column_stack([a[:, :3] @ turn, a[:, 3] + a[:, :3] @ (x, 0, z)])


def room_from(frame: NDArray[np.uint8], a: Matrix, b: Matrix, world: World) -> tuple[NDArray[np.uint8], Matrix]:
    """What a frame at pose `a` says that pose `b` sees of wall and floor, (h, w, 3), and where it says so, (h, w)."""
    u, v = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(videos.INTRINSICS).T @ b[:, :3].T
    wall = (world.billboards[0].at[2] - b[2, 3]) / rays[..., 2]
    with np.errstate(divide="ignore"):
        floor = np.where(rays[..., 1] > 0, (world.ground.height - b[1, 3]) / rays[..., 1], np.inf)
    points = b[:, 3] + rays * np.minimum(wall, floor)[..., None]
    seen = np.concatenate([points, np.ones((*u.shape, 1))], -1) @ videos.projection(a).T
    at = (seen[..., :2] / seen[..., 2:]).astype(np.float32)
    inside = ((at >= 0) & (at <= np.array(SIZE) - 1)).all(-1) & (seen[..., 2] > 0.5)
    return np.asarray(cv2.remap(frame, at[..., 0], at[..., 1], cv2.INTER_LINEAR)), inside


def test_the_layout_is_that_of_kittis_odometry_set(made: Path) -> None:
    names = sorted(path.relative_to(made / "odometry").as_posix() for path in (made / "odometry").rglob("*.*"))
    sequences = [
        [f"sequences/{n}/calib.txt", *(f"sequences/{n}/image_2/{k:06d}.jpg" for k in range(10))] for n in ("00", "01")
    ]
    assert names == sorted(["poses/00.txt", "poses/01.txt", *sequences[0], *sequences[1]])
    assert sorted(path.name for path in (made / "videos").iterdir()) == ["00.avi", "01.avi"]
    label, *numbers = (made / "odometry/sequences/01/calib.txt").read_text().split()
    assert label == "P2:"
    assert np.array(numbers, float).reshape(3, 4) == pytest.approx(np.column_stack([videos.INTRINSICS, [0, 0, 0]]))


def test_same_seed_same_bytes_whatever_the_workers(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "ALONE", 0)
    tiny.make_tiny(tmp_path / "again", counts=COUNTS)
    roots = (made, tmp_path / "again")
    assert len({digest(root, (path for path in root.rglob("*") if path.is_file())) for root in roots}) == 1


def test_another_seed_and_another_sequence_are_other_films(made: Path, tmp_path: Path) -> None:
    videos.sequence(tmp_path, 0, seed=1, frames=2)
    first, second = ((made / f"odometry/poses/{n}.txt").read_text() for n in ("00", "01"))
    assert len({first[:400], second[:400], (tmp_path / "odometry/poses/00.txt").read_text()[:400]}) == 3
    assert (tmp_path / "odometry/sequences/00/image_2/000000.jpg").read_bytes() != (
        made / "odometry/sequences/00/image_2/000000.jpg"
    ).read_bytes()


def test_poses_are_rigid_and_start_at_the_origin(made: Path) -> None:
    for path in (made / "odometry/poses").iterdir():
        poses = poses_of(path)
        assert poses.shape == (FRAMES, 3, 4)
        assert poses[0] == pytest.approx(np.eye(3, 4), abs=1e-9)
        for rotation in poses[:, :, :3]:
            assert rotation @ rotation.T == pytest.approx(np.eye(3), abs=1e-8)
            assert np.linalg.det(rotation) == pytest.approx(1)


@pytest.mark.parametrize("name", ["00", "01"])
def test_the_film_shows_the_frames(made: Path, name: str) -> None:
    frames = frames_of(made / "odometry/sequences" / name)
    assert {frame.shape for frame in frames} == {(188, 250, 3)}
    film = cv2.VideoCapture(str(made / "videos" / f"{name}.avi"))
    shown = []
    while (read := film.read())[0]:
        shown.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    assert len(shown) == len(frames) == FRAMES
    differences = np.array([[abs(a.astype(int) - b).mean() for b in frames] for a in shown])
    assert np.diag(differences).max() < 6  # the codecs'
    assert (differences.argmin(1) == np.arange(FRAMES)).all()


def test_poses_agree_with_the_pixels_on_every_axis(indoors: tuple[Path, World]) -> None:
    """Wall and floor, moved as the poses say, give the later frame; with one axis wrong they do not."""
    root, world = indoors
    poses = poses_of(next((root / "odometry/poses").iterdir()))
    frames = frames_of(next((root / "odometry/sequences").iterdir()))

    def error(first: int, later: int, by: Matrix) -> float:
        pose = moved(poses[first], by)
        pose[1, 3] = poses[later][1, 3]  # the hand also rises and sinks
        expected, inside = room_from(frames[first], poses[first], pose, world)
        return float(np.median(abs(expected.astype(int) - frames[later])[inside]))

    for axis in AXES.values():
        # The pair that moves most along this axis tells most about it.
        first = max(range(len(frames) - 7), key=lambda k: abs(motion(poses[k], poses[k + 7])[axis]))
        true = motion(poses[first], poses[first + 7])
        right = error(first, first + 7, true)
        assert right < 8  # noise, codec, and the figures that the room does not foretell
        for factor in (-1, 0, 0.5, 1.5):
            wrong = true * np.where(np.arange(3) == axis, factor, 1)
            assert error(first, first + 7, wrong) > 1.5 * right, (axis, factor)


def test_turning_right_shifts_the_picture_left_by_as_much_as_it_should(indoors: tuple[Path, World]) -> None:
    """The optical flow of what is above the figures, measured in the pixels, is that of a turn, f · tan(yaw)."""
    root, world = indoors
    poses = poses_of(next((root / "odometry/poses").iterdir()))
    frames = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in frames_of(next((root / "odometry/sequences").iterdir()))]
    steps = [motion(poses[k], poses[k + 2]) for k in range(len(frames) - 2)]
    wall = float(world.billboards[0].at[2])
    # Among those that turn by more than a degree, the pair that moves aside least for it.
    turning = [k for k, (_, _, yaw) in enumerate(steps) if abs(yaw) > np.radians(1)]
    first = min(turning, key=lambda k: abs(steps[k][0] / wall / steps[k][2]))
    yaw = steps[first][2]
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(frames[first], frames[first + 2], None)
    shift = float(np.median(flow[:60, 75:175, 0]))
    assert shift == pytest.approx(-videos.FOCAL * np.tan(yaw), rel=0.1)


def test_the_camera_moves_both_ways_along_three_axes_that_tell_nothing_of_each_other() -> None:
    paths = [videos.path(0, index, 48) for index in range(12)]
    pairs = np.array([[motion(p[k], p[k + 7]) for k in range(41)] for p in paths])  # (12, 41, 3)
    assert ((pairs.max(1) > 0) & (pairs.min(1) < 0)).mean() > 0.9
    every = pairs.reshape(-1, 3)
    assert abs(np.corrcoef(every.T) - np.eye(3)).max() < 0.25
    scored = (every - every.mean(0)) / every.std(0)
    assert all(len(np.unique(np.digitize(column, np.linspace(-2, 2, 21)))) > 15 for column in scored.T)
    assert (abs(np.degrees(every[:, 2])) < 20).all()


def movers(world: World) -> list[Billboard]:
    return [board for board in world.billboards if board.velocity.any()]


def test_figures_move_by_themselves_and_nothing_else_does() -> None:
    world = videos.staged(0, 0, 48)
    still = World(world.setting, world.ground, tuple(b for b in world.billboards if not b.velocity.any()), world.gain)
    pose = videos.path(0, 0, 48)[24]
    before, after = (videos.picture(world, pose, time).astype(int) for time in (20, 28))
    assert (abs(before - after).max(2) > 20).mean() > 0.01
    assert (videos.picture(still, pose, 20) == videos.picture(still, pose, 28)).all()


def spans(board: Billboard, poses: Matrix) -> Iterator[tuple[float, float, float]]:
    """Left, right and height in pixels, frame by frame."""
    h, w = board.picture.shape[:2]
    for time, pose in enumerate(poses):
        corners = np.array([(0, 0, 1), (w, h, 1)]) @ (videos.projection(pose) @ board.plane(time)).T
        (left, top), (right, bottom) = corners[:, :2] / corners[:, 2:]
        yield left, right, bottom - top


def test_every_setting_is_filmed_and_its_movers_can_be_followed() -> None:
    settings, followed, grown = set(), [], []
    for index in range(len(WORLDS)):
        world, poses = videos.staged(0, index, 48), videos.path(0, index, 48)
        settings.add(world.setting)
        assert len(movers(world)) >= 2
        for board in movers(world):
            seen = [height for left, right, height in spans(board, poses) if 0 < (left + right) / 2 < SIZE[0]]
            followed.append(len(seen))
            grown.append(max(seen) / min(seen))
    assert settings == set(WORLDS)
    assert np.mean(np.array(followed) >= 30) > 0.8
    assert min(followed) >= 15
    assert 1.1 < np.median(grown) < 2
