"""Files decoded once into a store."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pretrain.files import Failed, Missing
from pretrain.images import SIDE, decode, find_all
from pretrain.pixels import open_image
from pretrain.store import Store, _index, build_store, centre_square, stored


def noise(seed: int, *, size: tuple[int, int] = (60, 40)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def write_images(folder: Path, count: int, *, suffix: str = "jpg") -> list[Path]:
    """`count` small images, each of its own noise."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{k:03d}.{suffix}" for k in range(count)]
    for k, path in enumerate(paths):
        noise(k).save(path)
    return paths


def build(folders: list[Path], cache: Path) -> Store:
    """The store that stills are decoded to."""
    return build_store(find_all(folders), cache, side=SIDE, how="stills", decode=decode)


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Name → (inode, time) of the files; an atomic rewrite changes the inode. Locks hold nothing."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.iterdir() if p.suffix != ".lock"}


def one_line(error: pytest.ExceptionInfo[Failed], path: Path) -> str:
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


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
    pixels = build([tmp_path / "images"], tmp_path / "stores").pixels()
    assert (pixels.shape, pixels.dtype) == ((1, SIDE, SIDE, 3), torch.uint8)
    assert torch.equal(pixels[0], expected_pixels(path))


def test_the_order_is_that_of_the_names(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", 40)  # several chunks, several processes
    pixels = build([tmp_path / "images"], tmp_path / "stores").pixels()
    assert all(torch.equal(row, expected_pixels(path)) for row, path in zip(pixels, paths, strict=True))


def test_decoded_once(tmp_path: Path) -> None:
    images, cache = tmp_path / "images", tmp_path / "stores"
    write_images(images, 3)
    store = build([images], cache)
    before = state(cache)
    assert sorted(Path(name).suffix for name in before) == [".int32", ".json", ".uint8"]
    assert build([images], cache) == store
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
    before = build([images], cache)
    change(paths)
    after = build([images], cache)
    assert after.sha256 != before.sha256
    rows = after.pixels()
    assert all(torch.equal(row, expected_pixels(p)) for row, p in zip(rows, sorted(images.iterdir()), strict=True))


def test_touched_images_are_decoded_again_to_the_same_digest(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", 2)
    before = build([tmp_path / "images"], tmp_path / "stores")
    os.utime(paths[0], ns=(1, 1))
    after = build([tmp_path / "images"], tmp_path / "stores")
    assert after.path != before.path
    assert after.sha256 == before.sha256


def truncate(store: Store) -> None:
    os.truncate(store.path, store.path.stat().st_size - 1)


def lengthen(store: Store) -> None:
    with store.path.open("ab") as file:
        file.write(b"x")


def delete_pixels(store: Store) -> None:
    store.path.unlink()


def truncate_owners(store: Store) -> None:
    owners = store.path.with_suffix(".int32")
    os.truncate(owners, owners.stat().st_size - 1)


def delete_owners(store: Store) -> None:
    store.path.with_suffix(".int32").unlink()


def delete_index(store: Store) -> None:
    store.path.with_suffix(".json").unlink()


def empty_index(store: Store) -> None:
    store.path.with_suffix(".json").write_text("")


def odd_index(store: Store) -> None:
    store.path.with_suffix(".json").write_text('{"images": 3}')


def foreign_owners(store: Store) -> None:
    np.array([0, 1, 7], np.int32).tofile(store.path.with_suffix(".int32"))


def deep_index(store: Store) -> None:
    store.path.with_suffix(".json").write_text("[" * 100_000)


def index_of_other_types(store: Store) -> None:
    index = store.path.with_suffix(".json")
    index.write_text(json.dumps(json.loads(index.read_text()) | {"skipped": "none"}))


DAMAGES = [
    truncate, lengthen, delete_pixels, truncate_owners, delete_owners, delete_index, empty_index, odd_index,
    foreign_owners, deep_index, index_of_other_types,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_store_is_built_again(damage: Callable[[Store], None], tmp_path: Path) -> None:
    images, cache = tmp_path / "images", tmp_path / "stores"
    write_images(images, 3)
    store = build([images], cache)
    content = store.path.read_bytes()
    damage(store)
    assert stored(find_all([images]), cache, side=SIDE, how="stills") is None
    assert build([images], cache) == store
    assert store.path.read_bytes() == content
    assert len(state(cache)) == 3


def test_two_folders_make_one_store(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    write_images(a, 2)
    noise(77).save(write_images(b, 1)[0])
    both = build([a, b], tmp_path / "stores")
    assert (both.images, both.name) == (3, "a+b")
    assert build([a], tmp_path / "stores").sha256 != both.sha256


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
    store = build([images], tmp_path / "stores")
    assert (store.images, store.skipped) == (3, 5)
    kept = [paths[k] for k in (0, 2, 5)]
    assert all(torch.equal(row, expected_pixels(p)) for row, p in zip(store.pixels(), kept, strict=True))
    out, err = capsys.readouterr()
    assert out == ""
    assert [str(p) for p in paths if f"{p}: cannot be decoded" in err] == [str(paths[k]) for k in damaged]
    assert "5 of 8 files skipped: cannot be decoded (5)" in err


def test_nothing_that_can_be_decoded(tmp_path: Path) -> None:
    images = tmp_path / "images"
    for path in write_images(images, 3):
        path.write_bytes(path.read_bytes()[:99])
    with pytest.raises(Missing, match="not one of 3 files can be used") as caught:
        build([images], tmp_path / "stores")
    assert str(images / "000.jpg: cannot be decoded") in one_line(caught, images)
    assert state(tmp_path / "stores") == {}


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    rgb = Image.new("RGB", (64, 64), (200, 100, 50))
    modes = {"1": 255, "L": 120, "LA": 120, "P": None, "RGBA": None, "CMYK": None, "YCbCr": None}
    (tmp_path / "images").mkdir()
    for mode in modes:
        suffix = "jpg" if mode in ("CMYK", "YCbCr") else "png"
        rgb.convert(mode).save(tmp_path / "images" / f"{mode}.{suffix}", **({"quality": 98} if suffix == "jpg" else {}))
    store = build([tmp_path / "images"], tmp_path / "stores")
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
            build([tmp_path / "images"], tmp_path / "stores")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(caught.value)
    assert state(tmp_path / "stores") == {}
    assert build([tmp_path / "images"], tmp_path / "stores").images == 4


def test_the_digest_is_that_of_names_and_pixels(tmp_path: Path) -> None:
    """Results that were committed name it: it must not change."""
    paths = write_images(tmp_path / "images" / "a", 2)
    digest = sha256()
    for path in paths:
        square = sha256(expected_pixels(path).numpy().tobytes()).hexdigest()
        digest.update(f"a/{path.name} {square}\n".encode())
    assert build([tmp_path / "images"], tmp_path / "stores").sha256 == digest.hexdigest()


def test_a_store_is_never_taken_for_another_folders(tmp_path: Path) -> None:
    """Same names, sizes and times; at the same path, or in place; and of another folder's name in the record."""
    cache = tmp_path / "stores"
    for folder, colour in (("dark", 30), ("light", 220)):
        (tmp_path / folder / "train").mkdir(parents=True)
        for k in range(3):
            path = tmp_path / folder / "train" / f"{k}.png"
            Image.new("RGB", (16, 16), (colour if k == 1 else 9,) * 3).save(path, compress_level=0)
            os.utime(path, (1e9, 1e9))
    dark, light = (find_all([tmp_path / name / "train"]) for name in ("dark", "light"))
    store = build_store(dark, cache, side=SIDE, how="stills", decode=decode)
    assert stored(light, cache, side=SIDE, how="stills") is None
    shutil.copytree(tmp_path / "dark" / "train", tmp_path / "copy")  # with its times, as a cluster's job does
    again = stored(find_all([tmp_path / "copy"]), cache, side=SIDE, how="stills")
    assert again is not None
    assert (again.name, again.path, again.sha256) == ("copy", store.path, store.sha256)
    (tmp_path / "dark").rename(tmp_path / "aside")
    (tmp_path / "light").rename(tmp_path / "dark")
    assert stored(dark, cache, side=SIDE, how="stills") is None
    path = tmp_path / "copy" / "1.png"
    path.write_bytes((tmp_path / "dark" / "train" / "1.png").read_bytes())
    os.utime(path, (1e9, 1e9))
    assert stored(find_all([tmp_path / "copy"]), cache, side=SIDE, how="stills") is None


def test_large_files_are_known_by_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.store.WHOLE", 100)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.png").write_bytes(bytes(1 << 19) if folder == "a" else b"x" * (1 << 19))
        os.utime(tmp_path / folder / "0.png", (1e9, 1e9))
    keys = {_index([(tmp_path / f, tmp_path / f / "0.png")], tmp_path, side=2, how="told") for f in ("a", "b", "a")}
    assert len(keys) == 2


def test_names_in_any_bytes_are_decoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/na\xefve"))
    folder.mkdir()
    noise(0).save(folder / "good.png")
    (folder / "good.png").rename(Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")))
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\n.png")).write_bytes(b"no image")
    store = build([folder], tmp_path / "stores")
    assert (store.images, store.skipped, store.name) == (1, 1, "na\\xefve")
    square = sha256(expected_pixels(find_all([folder])[0][1]).numpy().tobytes()).hexdigest()
    assert store.sha256 == sha256(b"caf\xe9.png " + square.encode() + b"\n").hexdigest()
    assert f"{tmp_path}/na\\xefve/\\xff\\n.png: cannot be decoded, skipped\n" in capsys.readouterr().err


# ---- decoded otherwise ----


def as_told(path: Path) -> list[bytes] | str:
    """What a file says: "2 7" two squares of the one colour 7; "none"; anything else is why there is nothing."""
    words = path.read_text().split()
    if words[0].isdigit():
        return [bytes([int(words[1])]) * 12] * int(words[0])
    return [] if words == ["none"] else " ".join(words)


def deadly(path: Path) -> list[bytes] | str:
    os.kill(os.getpid(), signal.SIGKILL)
    return str(path)


def tell(folder: Path, *words: str) -> list[tuple[Path, Path]]:
    folder.mkdir()
    files = [(folder, folder / f"{k:02d}") for k in range(len(words))]
    for (_, path), said in zip(files, words, strict=True):
        path.write_text(said)
    return files


def test_a_square_knows_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = tell(tmp_path / "files", "2 7", "too dark", "1 9", "none", "3 8", "too dark")
    store = build_store(files, tmp_path / "stores", side=2, how="told", decode=as_told)
    assert (store.images, store.side, store.skipped, store.name) == (6, 2, 3, "files")
    assert store.owners().tolist() == [0, 0, 2, 4, 4, 4]
    assert store.owners().dtype == torch.int64
    assert store.pixels().shape == (6, 2, 2, 3)
    assert store.pixels()[:, 1, 1, 2].tolist() == [7, 7, 9, 8, 8, 8]
    assert store.record == {"name": "files", "images": 6, "skipped": 3, "sha256": store.sha256}
    said = capsys.readouterr().err.splitlines()
    assert [f"{files[k][1]}: {why}, skipped" in said for k, why in ((1, "too dark"), (3, "nothing in it"))] == [
        True
    ] * 2
    assert "3 of 6 files skipped: too dark (2), nothing in it (1)" in said


def test_of_many_files_that_are_skipped_ten_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = tell(tmp_path / "files", "1 1", *["too dark"] * 12)
    build_store(files, tmp_path / "stores", side=2, how="told", decode=as_told)
    err = capsys.readouterr().err
    assert err.count(": too dark, skipped\n") == 10
    assert "12 of 13 files skipped: too dark (12)\n" in err


def test_stored_is_what_was_built_in_the_same_way_from_the_same_files(tmp_path: Path) -> None:
    files, cache = tell(tmp_path / "files", "1 1", "2 2"), tmp_path / "stores"
    assert stored(files, cache, side=2, how="told") is None
    assert not cache.exists()
    store = build_store(files, cache, side=2, how="told", decode=as_told)
    assert stored(files, cache, side=2, how="told") == store
    assert stored(files, cache, side=2, how="otherwise") is None
    assert stored(files, cache, side=4, how="told") is None
    assert stored(files[:1], cache, side=2, how="told") is None
    files[1][1].write_text("1 22")
    assert stored(files, cache, side=2, how="told") is None
    files[1][1].unlink()
    assert stored(files, cache, side=2, how="told") is None


def test_a_killed_decoder_is_told(tmp_path: Path) -> None:
    files = tell(tmp_path / "files", "1 1", "1 2")
    with pytest.raises(Failed, match=r"a decoding process was killed \(out of memory\?\): free some memory") as caught:
        build_store(files, tmp_path / "stores", side=2, how="told", decode=deadly)
    one_line(caught, tmp_path / "files")
    assert state(tmp_path / "stores") == {}


PROCESS = """
import sys, time
from pathlib import Path
from pretrain.store import build_store
folder = Path(sys.argv[1])
def slowly(path):
    time.sleep(0.3)
    with (folder.parent / "decoded").open("a") as file:
        file.write(path.name + "\\n")
    return [b"x" * 12]
files = [(folder, path) for path in sorted(folder.iterdir())]
print(build_store(files, folder.parent / "stores", side=2, how="slowly", decode=slowly).sha256)
"""


def test_two_processes_decode_once(tmp_path: Path) -> None:
    tell(tmp_path / "files", "a", "b", "c")
    command = [sys.executable, "-c", PROCESS, str(tmp_path / "files")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=120)[0] for process in both]
    assert told[0] == told[1]
    assert len(told[0].strip()) == 64
    assert sorted((tmp_path / "decoded").read_text().split()) == ["00", "01", "02"]
    (index,) = (tmp_path / "stores").glob("*.json")
    assert json.loads(index.read_text())["images"] == 3


def test_images_are_opened_as_rgb_or_told(tmp_path: Path) -> None:
    noise(0).convert("L").save(tmp_path / "grey.png")
    (tmp_path / "text.png").write_text("no image")
    image = open_image(tmp_path / "grey.png")
    assert isinstance(image, Image.Image)
    assert (image.mode, image.size) == ("RGB", (60, 40))
    assert open_image(tmp_path / "text.png") == "cannot be decoded"
    assert open_image(tmp_path / "nowhere.png") == "not there"
    assert centre_square(noise(0), 40) == np.array(noise(0))[:, 10:50].tobytes()
