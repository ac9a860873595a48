"""Still images, and the batches made from them and from any data."""

import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pretrain import Folders
from pretrain.alexnet import MEAN_RGB
from pretrain.files import Failed, Missing
from pretrain.images import (
    SIDE,
    Images,
    batches,
    centre_crop,
    crop_and_mirror,
    find_all,
    held_out_batches,
    last_groups,
    list_images,
    split,
    still_images,
)
from pretrain.randomness import ALONE, Draw, Shard, generator
from pretrain.store import Store

CPU = torch.device("cpu")


def noise(seed: int, *, size: tuple[int, int] = (60, 40)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def write_year(year: Path, trainval: str, ids: list[str]) -> None:
    """A VOC year's folder with these images, masks for all, and ImageSets/Main/trainval.txt."""
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        (year / folder).mkdir(parents=True)
        for k, name in enumerate(ids):
            noise(k).save(year / folder / f"{name}.{suffix}")
    (year / "ImageSets" / "Main").mkdir(parents=True)
    (year / "ImageSets" / "Main" / "trainval.txt").write_text(trainval)


def opened(folders: list[Path], cache: Path) -> Images:
    data = still_images(Folders(images=tuple(folders)), supervision="context").open(cache)
    assert isinstance(data, Images)
    return data


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
    assert [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path).files] == expected


def test_of_a_voc_year_only_trainval_is_seen(tmp_path: Path) -> None:
    year = tmp_path / "VOC2012"
    write_year(year, "2008_000002\n2007_000032\n\n2008_000007  1\n",
               ["2008_000002", "2007_000032", "2008_000007", "2008_000099", "2010_000001"])  # fmt: skip
    assert [path.name for path in list_images(year).files] == ["2008_000002.jpg", "2008_000007.jpg"]
    store = opened([year], tmp_path / "stores").store
    assert (store.images, store.skipped, store.name) == (2, 0, "VOC2012")


def test_a_trainval_of_voc2007_images_alone_is_empty(tmp_path: Path) -> None:
    write_year(tmp_path / "VOC2012", "2007_000032\n", ["2007_000032", "2008_000001"])
    with pytest.raises(Missing) as caught:
        list_images(tmp_path / "VOC2012")
    one_line(caught, tmp_path / "VOC2012")


@pytest.mark.parametrize("part", [".", "VOC2007", "VOC2007/JPEGImages"])
def test_of_a_voc_tree_without_its_lists_nothing_is_seen(part: str, tmp_path: Path) -> None:
    """Its test set could not be told apart, nor could its masks from its photographs."""
    write_year(tmp_path / "VOC2007", "000001\n", ["000001", "000002"])
    if part == "VOC2007":  # as the test archive alone unpacks
        (tmp_path / "VOC2007/ImageSets/Main/trainval.txt").rename(tmp_path / "VOC2007/ImageSets/Main/test.txt")
    with pytest.raises(Missing, match=r"trainval\.txt") as caught:
        list_images(tmp_path / part)
    one_line(caught, tmp_path / part)


@pytest.mark.parametrize("kind", ["no folder", "an empty folder", "other files"])
def test_no_images(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    if kind != "no folder":
        folder.mkdir()
    if kind == "other files":
        (folder / "a.heic").write_bytes(b"x")
    said = {
        "no folder": "no such folder: give --images another folder",
        "an empty folder": "no images here: give --images",
        "other files": r"no images here \(not looked at: 1 of \.heic\): give --images",
    }
    with pytest.raises(Missing, match=said[kind]) as caught:
        find_all([folder])
    one_line(caught, folder)
    assert caught.value.exit_code == 3
    with pytest.raises(Missing, match=r"^no folder of images: give --images DIR$"):
        find_all([])


def test_a_still_is_what_most_methods_take(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    noise(0).save(tmp_path / "images" / "a.png")
    source = still_images(Folders(images=(tmp_path / "images",)), supervision="-")
    assert (source.kind, source.supervision, source.side) == ("", "-", SIDE)
    assert list(source.files) == [(tmp_path / "images", tmp_path / "images" / "a.png")]
    assert source.opened(tmp_path / "stores") is None
    data = source.open(tmp_path / "stores")
    assert data.record == {"name": "images", "images": 1, "skipped": 0, "sha256": data.record["sha256"]}
    assert (data.train.tolist(), data.held_out.tolist()) == ([0], [])
    again = source.opened(tmp_path / "stores")
    assert again is not None
    assert again.record == data.record


def test_an_image_of_trainval_that_is_not_there_is_skipped_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_year(tmp_path / "VOC2007", "000001\n000002\n000003\n", ["000001", "000003", "000004"])
    store = opened([tmp_path / "VOC2007"], tmp_path / "stores").store
    assert (store.images, store.skipped) == (2, 1)
    assert "JPEGImages/000002.jpg: not there, skipped" in capsys.readouterr().err


# ---- batches ----


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """Seven images; the k-th is of the one colour (10 k, 10 k + 1, 10 k + 2), with a bright left half."""
    root = tmp_path_factory.mktemp("store")
    (root / "images").mkdir()
    for k in range(7):
        pixels = np.full((SIDE, SIDE, 3), (10 * k, 10 * k + 1, 10 * k + 2), np.uint8)
        pixels[:, : SIDE // 2] += 128
        Image.fromarray(pixels).save(root / "images" / f"{k}.png")
    return opened([root / "images"], root / "stores")


def read(data: Images, *, start: int, stop: int, seed: int = 0, batch: int = 3, shard: Shard = ALONE) -> list[Tensor]:
    return list(batches(data, batch=batch, seed=seed, start=start, stop=stop, device=CPU, shard=shard))


def test_a_batch_depends_on_seed_and_iteration_alone(data: Images) -> None:
    whole = read(data, start=0, stop=6)
    assert len(whole) == 6
    assert {(b.shape, b.dtype) for b in whole} == {((3, 3, 227, 227), torch.float32)}
    torch.rand(5)
    for start in (1, 4, 5):
        assert all(torch.equal(a, b) for a, b in zip(read(data, start=start, stop=6), whole[start:], strict=True))
    assert not torch.equal(read(data, start=0, stop=1, seed=1)[0], whole[0])
    assert read(data, start=6, stop=6) == []


def test_every_image_once_per_pass(data: Images) -> None:
    images = torch.cat(read(data, start=0, stop=7))  # three passes
    red = (images[:, 0].amin((1, 2)) + MEAN_RGB[0]).div(10).round().int().tolist()
    assert all(sorted(red[k : k + 7]) == list(range(7)) for k in (0, 7, 14))


def test_batches_are_rgb_minus_the_mean_mirrored_half_the_time(data: Images) -> None:
    images = torch.cat(read(data, start=0, stop=14))
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
    out = crop_and_mirror(raw, Draw(torch.Generator().manual_seed(1)), crop=33)
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
    out = crop_and_mirror(raw, Draw(torch.Generator().manual_seed(1)), crop=33)
    whole = raw.permute(0, 3, 1, 2).float() - torch.tensor(MEAN_RGB).view(3, 1, 1)
    for ours, image in zip(out, whole, strict=True):
        assert torch.equal(ours, image) or torch.equal(ours, image.flip(2))


def test_the_pixels_of_the_store_stay_as_they_are(data: Images) -> None:
    store: Store = data.store
    before = store.path.read_bytes()
    pixels = store.pixels()
    pixels[0] = 0  # copy on write
    read(data, start=0, stop=2)
    assert store.path.read_bytes() == before
    assert re.fullmatch(r"[0-9a-f]{64}", store.sha256)
    assert io.BytesIO(before).getbuffer().nbytes == store.images * SIDE * SIDE * 3


# ---- several processes ----


@pytest.mark.parametrize("world", [2, 4])
def test_the_parts_of_a_batch_make_the_batch(world: int, data: Images) -> None:
    whole = read(data, start=1, stop=4, batch=8)
    parts = [read(data, start=1, stop=4, batch=8, shard=Shard(rank, world)) for rank in range(world)]
    for number, batch in enumerate(whole):
        shares = [part[number] for part in parts]
        assert {len(share) for share in shares} == {8 // world}
        assert torch.equal(torch.cat(shares), batch)


# ---- held out ----


class Numbers:
    """Ten items and more, some held out; says what it was asked."""

    def __init__(self, held_out: int) -> None:
        self.record: dict[str, object] = {}
        self.train, self.held_out = torch.arange(10), 100 + torch.arange(held_out)

    def read(self, items: Tensor) -> tuple[Tensor, ...]:
        return (items,)

    def batch(self, raw: tuple[Tensor, ...], draw: Draw, *, held_out: bool = False) -> tuple[Tensor, Tensor, bool]:
        return raw[0], draw.rand(len(raw[0])), held_out


@pytest.mark.parametrize(("items", "batch"), [(1, 8), (8, 8), (9, 8), (17, 8), (33, 8), (7, 1), (100, 32)])
def test_held_out_items_come_once_in_batches_of_about_the_same_size(items: int, batch: int) -> None:
    found = list(held_out_batches(Numbers(items), batch=batch, device=CPU))
    assert torch.cat([numbers for _, (numbers, _, _) in found]).tolist() == list(range(100, 100 + items))
    assert all(held_out for _, (_, _, held_out) in found)
    sizes = [len(numbers) for _, (numbers, _, _) in found]
    assert max(sizes) <= batch
    assert max(sizes) - min(sizes) <= 1  # no last one that is tiny
    assert len(sizes) == math.ceil(items / batch)
    shares = [share for share, _ in found]
    assert sum(shares) == pytest.approx(1)
    assert shares == pytest.approx([size / items for size in sizes])


def test_held_out_batches_are_the_same_each_time() -> None:
    assert list(held_out_batches(Numbers(0), batch=8, device=CPU)) == []
    first, again = (list(held_out_batches(Numbers(20), batch=8, device=CPU)) for _ in range(2))
    assert all(torch.equal(one[1][1], two[1][1]) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[0][1][1][:6], first[1][1][1][:6])  # each draws its own numbers


def test_of_held_out_images_the_centre_is_seen(data: Images) -> None:
    raw = data.read(torch.tensor([2, 5]))
    assert raw[0].shape == (2, SIDE, SIDE, 3)
    draw = Draw(generator(0))
    assert torch.equal(data.batch(raw, draw, held_out=True), centre_crop(raw[0]))
    assert not torch.equal(data.batch(raw, draw), centre_crop(raw[0]))
    pixels = torch.randint(0, 256, (2, 40, 37, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    out = centre_crop(pixels, crop=33)
    assert out.is_contiguous(memory_format=torch.channels_last)
    expected = pixels[:, 3:36, 2:35].permute(0, 3, 1, 2).float() - torch.tensor(MEAN_RGB).view(3, 1, 1)
    assert torch.equal(out, expected)


def test_one_item_in_so_many_is_held_out() -> None:
    train, held_out = split(61)
    assert held_out.tolist() == [19, 39, 59]
    assert sorted(train.tolist() + held_out.tolist()) == list(range(61))
    assert [len(part) for part in split(19)] == [19, 0]  # fewer are all trained on
    assert split(7, every=3)[1].tolist() == [2, 5]
    assert [len(part) for part in split(0)] == [0, 0]


@pytest.mark.parametrize(
    ("groups", "aside"),
    [
        ([], []),
        ([4, 4, 4], []),  # one group: all is trained on
        ([0, 0, 1], [2]),
        ([3, 0, 3, 7, 0, 7], [3, 5]),  # numbers with gaps, in any order
        (list(range(10)), [9]),
        (list(range(11)), [9, 10]),  # a tenth, rounded up
        (list(range(20)) * 2, [18, 19, 38, 39]),
    ],
)
def test_the_last_tenth_of_the_groups_is_held_out(groups: list[int], aside: list[int]) -> None:
    train, held_out = last_groups(torch.tensor(groups, dtype=torch.long))
    assert held_out.tolist() == aside
    assert sorted(train.tolist() + aside) == list(range(len(groups)))
    numbers = torch.tensor(groups, dtype=torch.long)
    assert not set(numbers[train].tolist()) & set(numbers[held_out].tolist())  # no group is in both


@pytest.mark.parametrize(("groups", "aside"), [(0, 0), (1, 0), (3, 0), (4, 2), (19, 2), (20, 2), (21, 3)])
def test_two_groups_at_least_are_held_out_or_none(groups: int, aside: int) -> None:
    train, held_out = last_groups(torch.arange(groups), least=2)
    assert held_out.tolist() == list(range(groups))[groups - aside :]
    assert train.tolist() == list(range(groups - aside))
