"""Frames with poses, against plain loops: what is found, what is refused, and which way the camera moved."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain import Folders
from pretrain.egomotion import BINS, WIDTH, FramePairs, source
from pretrain.files import Failed, Missing
from pretrain.odometry import APART, find_sequences, in_order, left_out, motion, pairs
from pretrain.store import Store


def pose(x: float, z: float, yaw: float) -> list[float]:
    """A camera at (x, 0, z), turned to the right by `yaw`: camera to world, row by row."""
    cos, sin = math.cos(yaw), math.sin(yaw)
    return [cos, 0, sin, x, 0, 1, 0, 0, -sin, 0, cos, z]


def drive(root: Path, name: str, poses: list[list[float]], *, frames: int | None = None) -> Path:
    """Write one sequence of plain frames, and its poses. Returns the folder of the frames."""
    folder = root / "sequences" / name / "image_2"
    folder.mkdir(parents=True)
    for number in range(len(poses) if frames is None else frames):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(folder / f"{number:06d}.png")
    (root / "poses").mkdir(exist_ok=True)
    (root / "poses" / f"{name}.txt").write_text("".join(" ".join(map(repr, row)) + "\n" for row in poses))
    return folder


def wandering(count: int, seed: int) -> list[list[float]]:
    rng = np.random.default_rng(seed)
    return [pose(*row) for row in (rng.normal(size=(count, 3)) * (1.0, 2.0, 0.1)).tolist()]


def scaled(text: str, factor: float) -> str:
    """The poses in other units of length, all nine numbers of the rotation with them."""
    return "".join(" ".join(str(factor * float(word)) for word in line.split()) + "\n" for line in text.splitlines())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(3):
        drive(tmp_path / "drives", f"{number:02d}", wandering(10, number))
    return tmp_path / "drives"


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ((1.0, 0.0, 0.0), (1.0, 0.0, 0.0)),
        ((0.0, 1.0, 0.0), (0.0, 1.0, 0.0)),
        ((0.0, 0.0, 0.2), (0.0, 0.0, 0.2)),
        ((0.0, 0.0, -3.0), (0.0, 0.0, -3.0)),
    ],
)
def test_the_axes_of_a_camera_that_looks_ahead(
    second: tuple[float, float, float], expected: tuple[float, float, float]
) -> None:
    """To the right is +x, forward +z, and a turn to the right a positive yaw."""
    first, later = (np.array(pose(*where)).reshape(1, 3, 4) for where in ((0, 0, 0), second))
    assert motion(first, later)[0] == pytest.approx(expected, abs=1e-12)


def test_motion_is_told_in_the_first_cameras_axes() -> None:
    """A camera that looks to the right (yaw 90°) and moves along the world's x moves forward."""
    first = np.array(pose(5, 7, math.pi / 2)).reshape(1, 3, 4)
    later = np.array(pose(8, 7, math.pi / 2 + 0.1)).reshape(1, 3, 4)
    assert motion(first, later)[0] == pytest.approx((0, 3, 0.1), abs=1e-12)


def test_what_is_seen_agrees_with_what_is_told() -> None:
    """A point of the world moves through the camera as the motion says: R2ᵀ(p - t2) = Rᵀ(R1ᵀ(p - t1) - moved)."""
    one, two = (np.array(row).reshape(3, 4) for row in wandering(2, 5))
    x, z, yaw = motion(one[None], two[None])[0]
    point = np.array([1.0, 0.0, 9.0])
    before, after = (m[:, :3].T @ (point - m[:, 3]) for m in (one, two))
    turn = np.array(pose(0, 0, yaw)).reshape(3, 4)[:, :3]
    assert turn.T @ (before - (x, 0, z)) == pytest.approx(after)


def test_the_pairs_of_a_plain_loop(root: Path, tmp_path: Path) -> None:
    """No pair spans two sequences, none is more than seven apart, and a frame that cannot be decoded is in none."""
    (root / "sequences" / "01" / "image_2" / "000004.png").write_bytes(b"not a picture")
    data = source(Folders(videos=(root,))).open(tmp_path / "stores")
    assert isinstance(data, FramePairs)
    assert data.record["skipped"] == 1
    expected, square = [], 0
    for number, sequence in enumerate(find_sequences(root)):
        numbers = {}
        for frame in range(10):
            if (number, frame) != (1, 4):
                numbers[frame], square = square, square + 1
        for i in numbers:
            for j in numbers:
                if 0 < j - i <= APART:
                    one, two = sequence.poses[i], sequence.poses[j]
                    moved = one[:, :3].T @ (two[:, 3] - one[:, 3])
                    turned = one[:, :3].T @ two[:, :3]
                    yaw = math.atan2(turned[0, 2], turned[2, 2])
                    expected.append((number, numbers[i], numbers[j], moved[0], moved[2], yaw))
    found = data.found
    rows = torch.cat([torch.stack([found.sequence, found.first, found.second], 1), found.motion], 1)
    np.testing.assert_allclose(sorted(map(tuple, rows.tolist())), sorted(expected), atol=1e-12)


def test_labels_are_bins_of_motion_scored_on_the_training_pairs(root: Path, tmp_path: Path) -> None:
    data = source(Folders(videos=(root,))).open(tmp_path / "stores")
    assert isinstance(data, FramePairs)
    moved = data.found.motion.numpy()
    train = data.found.sequence.numpy() < 2  # the last of the three is held out
    assert data.train.tolist() == np.flatnonzero(train).tolist()
    assert data.held_out.tolist() == np.flatnonzero(~train).tolist()
    scaled = (moved - moved[train].mean(0)) / moved[train].std(0)
    for row, labels in zip(scaled, data.labels.tolist(), strict=True):
        assert labels == [min(max(math.floor(v / WIDTH) + BINS // 2 + 1, 0), BINS + 1) for v in row]
    for axis in range(3):
        seen = data.labels[data.train, axis].tolist()
        most = max(seen.count(label) for label in range(BINS + 2))
        best = [float(seen.count(label) == most) for label in range(BINS + 2)]
        assert data.usual[axis].tolist() == pytest.approx([share / sum(best) for share in best])


def test_other_poses_are_other_data(root: Path, tmp_path: Path) -> None:
    before = source(Folders(videos=(root,))).open(tmp_path / "stores").record
    assert before["pairs"] == 3 * sum(10 - apart for apart in range(1, APART + 1))
    assert before["sequences"] == 3
    path = root / "poses" / "00.txt"
    path.write_text("".join(" ".join(map(repr, row)) + "\n" for row in wandering(10, 9)))
    assert source(Folders(videos=(root,))).open(tmp_path / "stores").record["sha256"] != before["sha256"]


def test_frames_are_sought_as_kitti_has_them(tmp_path: Path) -> None:
    """image_2 before others, or the only folder there; sequences without poses are left out."""
    left = drive(tmp_path, "00", wandering(3, 0))
    left.with_name("image_3").mkdir()
    drive(tmp_path, "01", wandering(2, 1)).rename(tmp_path / "sequences" / "01" / "frames")
    drive(tmp_path, "11", wandering(2, 2))
    (tmp_path / "poses" / "11.txt").unlink()
    found = find_sequences(tmp_path)
    assert [(d.frames[0].parent.name, len(d.frames), d.poses.shape) for d in found] == [
        ("image_2", 3, (3, 3, 4)),
        ("frames", 2, (2, 3, 4)),
    ]


def test_frames_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Padded or not."""
    folder = drive(tmp_path, "00", wandering(11, 0))
    for path in sorted(folder.iterdir()):
        path.rename(path.with_name(f"{int(path.stem)}.png"))
    (found,) = find_sequences(tmp_path)
    assert [path.stem for path in found.frames] == [str(number) for number in range(11)]


@pytest.mark.parametrize(
    "names",
    [
        [f"{9.5 + k / 4}" for k in range(12)],  # times whose last zeros are cut off
        [f"{9.5 + k / 4:g}" for k in range(12)],
        [f"cam2_{k}" for k in range(95, 107)],
        [f"2011_09_26_{k:010d}" for k in range(12)],
        [f"{1403636579763555584 + 50_000_000 * k}" for k in range(12)],
        [f"frame{k}.rgb" for k in range(12)],
    ],
)
def test_frames_are_ordered_by_their_number(names: list[str]) -> None:
    frames = [Path(f"{name}.png") for name in names]
    assert in_order(sorted(frames)) == frames


@pytest.mark.parametrize(
    "names",
    [
        ["left", "right"],
        ["a1", "b2"],
        ["1_1", "2_2"],
        ["1", "01"],
        ["-1", "1"],
        ["9.9", "9.10", "9.11"],
        ["1e-05", "0.1"],
    ],
)
def test_frames_whose_order_cannot_be_told_are_refused(names: list[str]) -> None:
    with pytest.raises(Failed, match="the order of the frames cannot be told, ") as caught:
        in_order([Path(f"{name}.png") for name in names])
    assert "\n" not in str(caught.value)


def test_one_number_in_two_suffixes_is_refused(tmp_path: Path) -> None:
    folder = drive(tmp_path, "00", wandering(2, 0))
    (folder / "000001.png").rename(folder / "000000.jpg")
    with pytest.raises(Failed, match="the order of the frames cannot be told"):
        find_sequences(tmp_path)


def test_of_several_cameras_one_must_be_chosen(tmp_path: Path) -> None:
    """KITTI's grey download."""
    folder = drive(tmp_path, "00", wandering(3, 0))
    folder.rename(folder.with_name("image_0"))
    (folder.parent / "velodyne").mkdir()
    (folder.parent / "times.txt").write_text("0\n1\n2\n")
    assert find_sequences(tmp_path)[0].frames[0].parent.name == "image_0"
    shutil.copytree(folder.with_name("image_0"), folder.with_name("image_1"))
    with pytest.raises(Failed, match=r"sequences/00: which camera\? Frames in image_0, image_1, but no image_2"):
        find_sequences(tmp_path)


def test_what_a_mac_or_a_nas_leaves_is_no_frame_and_no_pose(root: Path) -> None:
    before = find_sequences(root)
    inside = root / "sequences" / "01" / "image_2"
    for path in (
        inside / "._000000.png",
        inside / "Thumbs.db",
        root / "poses" / "._01.txt",
        root / "poses" / "01.txt~",
    ):
        path.write_bytes(b"\0\5\x16\7")
    for folder in (inside / "@eaDir", root / "sequences" / ".Trash-0", root / "sequences" / "01" / "@eaDir"):
        folder.mkdir()
        (folder / "000000.png").write_bytes(b"")
    (root / "poses" / "07.txt").write_text("")
    (root / "sequences" / "11").mkdir()
    found = find_sequences(root)
    assert [(d.folder, d.frames) for d in found] == [(d.folder, d.frames) for d in before]
    assert left_out(root, found) == [
        f"{root}/poses: not looked at: 2 hidden or left by a system",
        f"{inside}: not looked at: 3 hidden or left by a system",
        f"{root}: poses without a sequence, left out: 07.txt",
        f"{root}: sequences without poses, left out: 11",
    ]


def test_linked_sequences_are_read(root: Path, tmp_path: Path) -> None:
    (root / "sequences" / "01").rename(tmp_path / "far")
    (root / "sequences" / "01").symlink_to(tmp_path / "far")
    assert len(find_sequences(root)) == 3


def test_poses_with_a_mark_and_few_digits_are_read(root: Path) -> None:
    path = root / "poses" / "01.txt"
    rows = [[f"{float(word):.3f}" for word in line.split()] for line in path.read_text().splitlines()]
    path.write_text("\r\n".join(" ".join(row) for row in rows), encoding="utf-16")
    assert find_sequences(root)[1].poses.shape == (10, 3, 4)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda text: "nan " + text.split(" ", 1)[1], "line 1: NaN, infinite or more than 1e+08 m: replace it"),
        (lambda text: "1e999 " + text.split(" ", 1)[1], "line 1: NaN, infinite or more than"),
        (lambda text: text.replace("\n", "\n\n", 1).replace("\n\n", "\n\none ", 1), "line 3: not 12 numbers, but 13"),
        (lambda text: "one " + text.split(" ", 1)[1], "line 1: could not convert string to float: 'one'"),
        (lambda text: text.split(" ", 1)[1], "line 1: not 12 numbers, but 11"),
        (lambda text: "1 2 3 4 5 6 7 8\n" * 3, "line 1: not 12 numbers, but 8"),  # not two poses
        (lambda text: scaled(text, 1.01), "line 1: not a rigid motion (the first three columns are no rotation"),
        (lambda text: scaled(text, -1), "line 1: not a rigid motion (it mirrors): replace it"),
        (lambda text: text + "0 0 0 0 " * 3, "line 11: not a rigid motion"),
        (lambda text: text.replace(text.split()[3], "3e9", 1), "line 1: NaN, infinite or more than 1e+08 m"),
        (lambda text: text.split("\n", 1)[1], "9 poses for the 10 frames in"),
        (lambda text: "", "0 poses for the 10 frames in"),
    ],
)
def test_poses_that_cannot_be_used_are_named(root: Path, spoil: Callable[[str], str], said: str) -> None:
    path = root / "poses" / "01.txt"
    path.write_text(spoil(path.read_text()))
    with pytest.raises(Failed) as caught:
        source(Folders(videos=(root,)))
    assert caught.value.exit_code == 1
    assert str(caught.value).startswith(f"{path}: {said}")
    assert "\n" not in str(caught.value)


def test_poses_that_are_no_text_are_named(root: Path) -> None:
    (root / "poses" / "01.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Failed, match=r"01\.txt: not UTF-16 text"):
        find_sequences(root)


def test_one_frame_is_refused(tmp_path: Path) -> None:
    folder = drive(tmp_path, "00", wandering(1, 0))
    with pytest.raises(Failed) as caught:
        find_sequences(tmp_path)
    assert str(caught.value) == f"{folder}: 1 frame: egomotion needs two or more: leave this sequence out"


def test_no_poses_are_missed(tmp_path: Path) -> None:
    for there in ("poses", "sequences/00/image_2"):  # no frames; then no pose file
        (tmp_path / there).mkdir(parents=True)
        with pytest.raises(Missing) as caught:
            source(Folders(videos=(tmp_path,)))
        assert str(caught.value).startswith(f"{tmp_path}: no sequences/NN/image_2 with poses/NN.txt: give --videos")


@pytest.mark.parametrize(("axis", "name"), [(0, "x"), (1, "z"), (2, "yaw")])
def test_a_camera_that_does_not_move_along_an_axis_is_refused(axis: int, name: str, tmp_path: Path) -> None:
    """Rounding, which is all that moves it here, is no motion."""
    for sequence in range(2):
        moved = np.random.default_rng(sequence).normal(size=(6, 3))
        moved[:, axis] = 0
        if axis < 2:
            moved[:, 2] *= 1e-5  # it hardly turns, or it would move along both axes of the first camera
            moved[:, 1 - axis] *= 1e-5
            moved[:, axis] = 1e-9 * np.arange(6) - moved[:, 1 - axis] * np.sin(moved[:, 2])
        drive(tmp_path / "drives", f"{sequence:02d}", [pose(*row) for row in moved.tolist()])
    with pytest.raises(Missing, match=f"^drives: the camera never moves along {name}: give sequences with motion$"):
        source(Folders(videos=(tmp_path / "drives",))).open(tmp_path / "stores")


def test_frames_of_which_no_two_can_be_decoded_are_refused(tmp_path: Path) -> None:
    folder = drive(tmp_path / "drives", "00", wandering(3, 0))
    for number in (0, 2):
        (folder / f"{number:06d}.png").write_bytes(b"")
    with pytest.raises(Missing, match=r"^drives: no two frames of a sequence can be decoded: give another folder$"):
        source(Folders(videos=(tmp_path / "drives",))).open(tmp_path / "stores")


def test_the_squares_of_frames_are_their_own(root: Path, tmp_path: Path) -> None:
    """The red of a frame is its number: pairs point at the frames they say."""
    data = source(Folders(videos=(root,))).open(tmp_path / "stores")
    assert isinstance(data, FramePairs)
    assert isinstance(data.store, Store)
    first, second, labels = data.read(data.train)
    apart = second[:, 0, 0, 0].int() - first[:, 0, 0, 0].int()
    assert set(apart.tolist()) == set(range(1, APART + 1))
    assert torch.equal(labels, data.labels[data.train])
    again = pairs(find_sequences(root), data.store)
    assert torch.equal(again.first, data.found.first)
