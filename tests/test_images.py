"""The image store and the batches made from it."""

import io
import os
import re
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pretrain.alexnet import MEAN_RGB
from pretrain.files import Failed, Missing
from pretrain.images import SIDE, Store, batches, build_store, crop_and_mirror, find_images

CPU = torch.device("cpu")


def noise(seed: int, *, size: tuple[int, int] = (60, 40)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def write_images(folder: Path, count: int, *, suffix: str = "jpg") -> list[Path]:
    """`count` small images, each of its own noise."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{k:03d}.{suffix}" for k in range(count)]
    for k, path in enumerate(paths):
        noise(k).save(path)
    return paths


def write_year(year: Path, trainval: str, ids: list[str]) -> None:
    """A VOC year's folder with these images, masks for all, and ImageSets/Main/trainval.txt."""
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        (year / folder).mkdir(parents=True)
        for k, name in enumerate(ids):
            noise(k).save(year / folder / f"{name}.{suffix}")
    (year / "ImageSets" / "Main").mkdir(parents=True)
    (year / "ImageSets" / "Main" / "trainval.txt").write_text(trainval)


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Name → (inode, time) of the files; an atomic rewrite changes the inode."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.iterdir()}


def one_line(error: pytest.ExceptionInfo[Failed], path: Path) -> str:
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


# ---- which images ----


def test_images_are_found_below_and_sorted(tmp_path: Path) -> None:
    expected = ["a/b/2.JPEG", "a/b/3.png", "c/1.JPG", "z.jpeg"]
    for name in (*expected[::-1], "readme.txt", "a/thumbs.db"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    assert [p.relative_to(tmp_path).as_posix() for p in find_images(tmp_path)] == expected


def test_of_a_voc_year_only_trainval_is_seen(tmp_path: Path) -> None:
    year = tmp_path / "VOC2012"
    write_year(year, "2008_000002\n2007_000032\n\n2008_000007  1\n",
               ["2008_000002", "2007_000032", "2008_000007", "2008_000099", "2010_000001"])  # fmt: skip
    assert [path.name for path in find_images(year)] == ["2008_000002.jpg", "2008_000007.jpg"]
    store = build_store([year], tmp_path / "stores")
    assert (store.images, store.skipped, store.name) == (2, 0, "VOC2012")


def test_a_trainval_of_voc2007_images_alone_is_empty(tmp_path: Path) -> None:
    write_year(tmp_path / "VOC2012", "2007_000032\n", ["2007_000032", "2008_000001"])
    with pytest.raises(Missing) as caught:
        find_images(tmp_path / "VOC2012")
    one_line(caught, tmp_path / "VOC2012")


@pytest.mark.parametrize("part", [".", "VOC2007", "VOC2007/JPEGImages"])
def test_of_a_voc_tree_without_its_lists_nothing_is_seen(part: str, tmp_path: Path) -> None:
    """Its test set could not be told apart, nor could its masks from its photographs."""
    write_year(tmp_path / "VOC2007", "000001\n", ["000001", "000002"])
    if part == "VOC2007":  # as the test archive alone unpacks
        (tmp_path / "VOC2007/ImageSets/Main/trainval.txt").rename(tmp_path / "VOC2007/ImageSets/Main/test.txt")
    with pytest.raises(Missing, match=r"trainval\.txt") as caught:
        find_images(tmp_path / part)
    one_line(caught, tmp_path / part)


@pytest.mark.parametrize("kind", ["no folder", "an empty folder", "other files"])
def test_no_images(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    if kind != "no folder":
        folder.mkdir()
    if kind == "other files":
        (folder / "a.gif").write_bytes(b"x")
    with pytest.raises(Missing, match="no images here: give --images") as caught:
        build_store([folder], tmp_path / "stores")
    one_line(caught, folder)
    assert caught.value.exit_code == 3


# ---- the store ----


def expected_pixels(path: Path) -> Tensor:
    """The other way round: resized whole, then cut; exact for these SIZES."""
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    scale = SIDE / min(rgb.size)
    width, height = (round(side * scale) for side in rgb.size)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    whole = rgb.resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(whole.crop((left, top, left + SIDE, top + SIDE))))


SIZES = [(256, 256), (300, 256), (60, 40), (40, 60), (500, 250), (1024, 512), (256, 300), (1, 9), (256, 64)]


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_the_centre_square(size: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / "a.png"
    noise(0, size=size).save(path)
    pixels = build_store([tmp_path / "images"], tmp_path / "stores").pixels()
    assert (pixels.shape, pixels.dtype) == ((1, SIDE, SIDE, 3), torch.uint8)
    assert torch.equal(pixels[0], expected_pixels(path))


def test_the_order_is_that_of_the_names(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", 40)  # several chunks, several processes
    pixels = build_store([tmp_path / "images"], tmp_path / "stores").pixels()
    assert all(torch.equal(row, expected_pixels(path)) for row, path in zip(pixels, paths, strict=True))


def test_decoded_once(tmp_path: Path) -> None:
    images, cache = tmp_path / "images", tmp_path / "stores"
    write_images(images, 3)
    store = build_store([images], cache)
    before = state(cache)
    assert len(before) == 2
    assert build_store([images], cache) == store
    assert state(cache) == before
    assert (store.images, store.skipped, store.name) == (3, 0, "images")


def change_a_file(paths: list[Path]) -> None:
    noise(99).save(paths[1])


def add_a_file(paths: list[Path]) -> None:
    noise(99).save(paths[1].with_name("new.jpg"))


def delete_a_file(paths: list[Path]) -> None:
    paths[1].unlink()


def rename_a_file(paths: list[Path]) -> None:
    paths[0].rename(paths[0].with_name("zzz.jpg"))


@pytest.mark.parametrize("change", [change_a_file, add_a_file, delete_a_file, rename_a_file])
def test_changed_images_are_decoded_again(change: Callable[[list[Path]], None], tmp_path: Path) -> None:
    images, cache = tmp_path / "images", tmp_path / "stores"
    paths = write_images(images, 3)
    before = build_store([images], cache)
    change(paths)
    after = build_store([images], cache)
    assert after.sha256 != before.sha256
    rows = after.pixels()
    assert all(torch.equal(row, expected_pixels(p)) for row, p in zip(rows, sorted(images.iterdir()), strict=True))


def test_touched_images_are_decoded_again_to_the_same_digest(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", 2)
    before = build_store([tmp_path / "images"], tmp_path / "stores")
    os.utime(paths[0], ns=(1, 1))
    after = build_store([tmp_path / "images"], tmp_path / "stores")
    assert after.path != before.path
    assert after.sha256 == before.sha256


def truncate(store: Store) -> None:
    os.truncate(store.path, store.path.stat().st_size - 1)


def lengthen(store: Store) -> None:
    with store.path.open("ab") as file:
        file.write(b"x")


def delete_pixels(store: Store) -> None:
    store.path.unlink()


def delete_index(store: Store) -> None:
    store.path.with_suffix(".json").unlink()


def empty_index(store: Store) -> None:
    store.path.with_suffix(".json").write_text("")


def odd_index(store: Store) -> None:
    store.path.with_suffix(".json").write_text('{"images": 3}')


@pytest.mark.parametrize("damage", [truncate, lengthen, delete_pixels, delete_index, empty_index, odd_index])
def test_a_damaged_store_is_built_again(damage: Callable[[Store], None], tmp_path: Path) -> None:
    images, cache = tmp_path / "images", tmp_path / "stores"
    write_images(images, 3)
    store = build_store([images], cache)
    content = store.path.read_bytes()
    damage(store)
    assert build_store([images], cache) == store
    assert store.path.read_bytes() == content
    assert len(state(cache)) == 2


def test_two_folders_make_one_store(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    write_images(a, 2)
    noise(77).save(write_images(b, 1)[0])
    both = build_store([a, b], tmp_path / "stores")
    assert (both.images, both.name) == (3, "a+b")
    assert build_store([a], tmp_path / "stores").sha256 != both.sha256


def test_images_that_cannot_be_decoded_whole_are_skipped_counted_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    paths = write_images(images, 9)
    whole = paths[0].read_bytes()
    damaged = {1: whole[: len(whole) // 2], 3: b"", 4: b"no image", 6: whole[:20], 7: b"\x89PNG\r\n\x1a\n" + b"\0" * 50}
    for k, content in damaged.items():
        paths[k].write_bytes(content)
    paths[8].unlink()
    paths[8].symlink_to(tmp_path / "nowhere")  # not a file: not found
    store = build_store([images], tmp_path / "stores")
    assert (store.images, store.skipped) == (3, 5)
    kept = [paths[k] for k in (0, 2, 5)]
    assert all(torch.equal(row, expected_pixels(p)) for row, p in zip(store.pixels(), kept, strict=True))
    out, err = capsys.readouterr()
    assert out == ""
    assert [str(p) for p in paths if f"{p}: cannot be decoded" in err] == [str(paths[k]) for k in damaged]
    assert "5 of 8 images skipped" in err


def test_an_image_of_trainval_that_is_not_there_is_skipped_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_year(tmp_path / "VOC2007", "000001\n000002\n000003\n", ["000001", "000003", "000004"])
    store = build_store([tmp_path / "VOC2007"], tmp_path / "stores")
    assert (store.images, store.skipped) == (2, 1)
    assert "JPEGImages/000002.jpg: cannot be decoded, skipped" in capsys.readouterr().err


def test_nothing_that_can_be_decoded(tmp_path: Path) -> None:
    images = tmp_path / "images"
    for path in write_images(images, 3):
        path.write_bytes(path.read_bytes()[:99])
    with pytest.raises(Missing, match="none of its 3 images can be decoded") as caught:
        build_store([images], tmp_path / "stores")
    one_line(caught, images)
    assert list((tmp_path / "stores").iterdir()) == []


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    rgb = Image.new("RGB", (64, 64), (200, 100, 50))
    modes = {"1": 255, "L": 120, "LA": 120, "P": None, "RGBA": None, "CMYK": None, "YCbCr": None}
    (tmp_path / "images").mkdir()
    for mode in modes:
        suffix = "jpg" if mode in ("CMYK", "YCbCr") else "png"
        rgb.convert(mode).save(tmp_path / "images" / f"{mode}.{suffix}", **({"quality": 98} if suffix == "jpg" else {}))
    store = build_store([tmp_path / "images"], tmp_path / "stores")
    assert (store.images, store.skipped) == (len(modes), 0)
    means = dict(zip(sorted(f"{m}" for m in modes), store.pixels().double().mean((1, 2)), strict=True))
    luma = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    for mode, mean in means.items():
        if mode != "1":  # dithered
            wanted = (luma,) * 3 if mode in ("L", "LA") else (200, 100, 50)
            assert (mean - torch.tensor(wanted)).abs().max() < (40 if mode == "P" else 3), mode
    assert means["1"].std() == 0


def test_a_full_disk(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 4)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(Failed, match=r"\.uint8: disk full: free some space") as caught:
            build_store([tmp_path / "images"], tmp_path / "stores")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "stores").iterdir()) == []
    assert build_store([tmp_path / "images"], tmp_path / "stores").images == 4


# ---- batches ----


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Seven images; the k-th is of the one colour (10 k, 10 k + 1, 10 k + 2), with a bright left half."""
    root = tmp_path_factory.mktemp("store")
    (root / "images").mkdir()
    for k in range(7):
        pixels = np.full((SIDE, SIDE, 3), (10 * k, 10 * k + 1, 10 * k + 2), np.uint8)
        pixels[:, : SIDE // 2] += 128
        Image.fromarray(pixels).save(root / "images" / f"{k}.png")
    return build_store([root / "images"], root / "stores")


def read(store: Store, *, start: int, stop: int, seed: int = 0, batch: int = 3) -> list[Tensor]:
    return list(batches(store, batch=batch, seed=seed, start=start, stop=stop, device=CPU))


def test_a_batch_depends_on_seed_and_iteration_alone(store: Store) -> None:
    whole = read(store, start=0, stop=6)
    assert len(whole) == 6
    assert {(b.shape, b.dtype) for b in whole} == {((3, 3, 227, 227), torch.float32)}
    torch.rand(5)
    for start in (1, 4, 5):
        assert all(torch.equal(a, b) for a, b in zip(read(store, start=start, stop=6), whole[start:], strict=True))
    assert not torch.equal(read(store, start=0, stop=1, seed=1)[0], whole[0])
    assert read(store, start=6, stop=6) == []


def test_every_image_once_per_pass(store: Store) -> None:
    images = torch.cat(read(store, start=0, stop=7))  # three passes
    red = (images[:, 0].amin((1, 2)) + MEAN_RGB[0]).div(10).round().int().tolist()
    assert all(sorted(red[k : k + 7]) == list(range(7)) for k in (0, 7, 14))


def test_batches_are_rgb_minus_the_mean_mirrored_half_the_time(store: Store) -> None:
    images = torch.cat(read(store, start=0, stop=14))
    assert images.is_contiguous(memory_format=torch.channels_last) or images.shape[0] > 3
    dark = images.amin((2, 3)) + torch.tensor(MEAN_RGB)
    assert torch.equal(dark - dark[:, :1], torch.tensor([[0.0, 1.0, 2.0]]).expand(42, 3))
    mirrored = images[:, 0, 0, 0] < images[:, 0, 0, -1]  # the bright half is to the right
    assert 10 < mirrored.sum() < 32
    edges = (images[:, 0, 0] > images[:, 0, 0].mean(1, keepdim=True)).sum(
        1
    )  # width of the bright half: where it was cut
    assert len(set(edges.tolist())) > 10


def test_crop_and_mirror_against_a_plain_loop() -> None:
    raw = torch.randint(0, 256, (64, 40, 36, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    out = crop_and_mirror(raw, torch.Generator().manual_seed(1), crop=33)
    assert out.shape == (64, 3, 33, 33)
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    seen = set()
    for image, cropped in zip(raw, out, strict=True):
        pixels = (cropped.permute(1, 2, 0) + torch.tensor(MEAN_RGB)).round().to(torch.uint8)
        places = [
            (top, left, mirrored)
            for top in range(40 - 33 + 1)
            for left in range(36 - 33 + 1)
            for mirrored in (False, True)
            if torch.equal(pixels.flip(1) if mirrored else pixels, image[top : top + 33, left : left + 33])
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert {top for top, _, _ in seen} == set(range(8))  # both ends are reached
    assert {left for _, left, _ in seen} == set(range(4))
    assert {(left, mirrored) for _, left, mirrored in seen} == {(k, m) for k in range(4) for m in (False, True)}


def test_a_whole_image_may_be_the_crop() -> None:
    raw = torch.randint(0, 256, (6, 33, 33, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    out = crop_and_mirror(raw, torch.Generator().manual_seed(1), crop=33)
    whole = raw.permute(0, 3, 1, 2).float() - torch.tensor(MEAN_RGB).view(3, 1, 1)
    for ours, image in zip(out, whole, strict=True):
        assert torch.equal(ours, image) or torch.equal(ours, image.flip(2))


def test_the_pixels_of_the_store_stay_as_they_are(store: Store) -> None:
    before = store.path.read_bytes()
    pixels = store.pixels()
    pixels[0] = 0  # copy on write
    read(store, start=0, stop=2)
    assert store.path.read_bytes() == before
    assert re.fullmatch(r"[0-9a-f]{64}", store.sha256)
    assert io.BytesIO(before).getbuffer().nbytes == store.images * SIDE * SIDE * 3
