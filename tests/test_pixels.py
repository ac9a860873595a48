"""One image file → RGB of 8 bits: other depths and formats, and what is no image."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from pretrain.pixels import CLEAR, FORMATS, SUFFIXES, open_image

RAMP = np.tile(np.linspace(0, 65535, 256).round(), (8, 1))


def mean(path: Path) -> tuple[float, ...]:
    image = open_image(path)
    assert isinstance(image, Image.Image), image
    assert image.mode == "RGB"
    return tuple(np.asarray(image, np.float64).mean((0, 1)).tolist())


def why(path: Path) -> str:
    said = open_image(path)
    assert isinstance(said, str)
    assert "\n" not in said
    return said


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"ramp.{suffix}"
    Image.fromarray(RAMP.astype(np.uint16)).save(path)
    image = open_image(path)
    assert isinstance(image, Image.Image)
    assert np.asarray(image)[0, :, 0].tolist() == list(range(256))
    assert mean(path) == (127.5, 127.5, 127.5)


def test_sixteen_bits_of_either_byte_order_are_scaled(tmp_path: Path) -> None:
    for order in "<>":
        mode = {"<": "I;16", ">": "I;16B"}[order]
        path = tmp_path / f"{mode}.tif"
        Image.frombytes(mode, (256, 8), RAMP.astype(f"{order}u2").tobytes()).save(path)
        assert mean(path)[0] == pytest.approx(127.5)


def test_twelve_bits_in_sixteen_would_be_black(tmp_path: Path) -> None:
    Image.fromarray((RAMP / 16).astype(np.uint16)).save(tmp_path / "dark.png")
    assert why(tmp_path / "dark.png").startswith("16-bit grey, all below 4096 of 65536, so black in 8 bits")


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_of_32_bits_have_no_white(kind: type, tmp_path: Path) -> None:
    Image.fromarray((RAMP / 65535).astype(kind)).save(tmp_path / "a.tif")
    assert why(tmp_path / "a.tif").startswith("32-bit pixels, whose black and white are not known")


def test_one_bit_cmyk_and_plain_palettes_keep_their_colours(tmp_path: Path) -> None:
    Image.new("1", (9, 9), 1).save(tmp_path / "one.png")
    Image.new("CMYK", (9, 9), (0, 100, 200, 30)).save(tmp_path / "cmyk.jpg", quality=98)
    Image.new("CMYK", (9, 9), (0, 100, 200, 30)).save(tmp_path / "cmyk.tif")
    palette = Image.new("P", (9, 9), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "palette.gif")
    assert mean(tmp_path / "one.png") == (255, 255, 255)
    for suffix in ("jpg", "tif"):
        assert mean(tmp_path / f"cmyk.{suffix}") == pytest.approx((225, 137, 48.5), abs=1.5)
    assert mean(tmp_path / "palette.gif") == (10, 20, 30)


@pytest.mark.parametrize("kind", ["LA", "RGBA", "palette", "palette of many", "one colour", "one grey"])
def test_transparent_pixels_show_nothing(kind: str, tmp_path: Path) -> None:
    """The left half can be seen, and the right half hides a colour of its own."""
    path, right = tmp_path / "a.png", (4, 0, 8, 8)
    if kind in ("LA", "RGBA"):
        image = Image.new(kind, (8, 8), (60, 255) if kind == "LA" else (60, 60, 60, 255))
        image.paste((200, 0) if kind == "LA" else (200, 9, 9, 0), right)
        image.save(path)
    elif kind.startswith("palette"):
        image = Image.new("P", (8, 8), 1)
        image.putpalette([200, 9, 9, 60, 60, 60])
        image.paste(0, right)
        image.save(path, transparency=0 if kind == "palette" else b"\0\xff")
    else:
        image = Image.new("RGB" if kind == "one colour" else "L", (8, 8), (60, 60, 60) if kind == "one colour" else 60)
        hidden = (200, 9, 9) if kind == "one colour" else 200
        image.paste(hidden, right)
        image.save(path, transparency=hidden)
    found = open_image(path)
    assert isinstance(found, Image.Image)
    assert (found.getpixel((1, 4)), found.getpixel((6, 4))) == ((60, 60, 60), CLEAR)


def test_wholly_transparent_images_are_skipped(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (1, 2, 3, 0)).save(tmp_path / "a.png")
    assert why(tmp_path / "a.png") == "wholly transparent"


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_pictures_in_a_file_are_skipped_and_one_is_read(form: str, tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (8, 8), (100 * k, 2, 3)) for k in range(2)]
    pictures[0].save(tmp_path / "a.jpg", format=form, save_all=True, append_images=pictures[1:])
    assert why(tmp_path / "a.jpg") == "several pictures in one file (animated, or pages)"
    pictures[0].save(tmp_path / "b.jpg", format=form, lossless=True)
    assert mean(tmp_path / "b.jpg") == (0, 2, 3)


def test_a_cameras_jpeg_with_a_preview_is_read(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (8, 8), (100, 100, 100)) for _ in range(2)]
    pictures[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=pictures[1:])
    assert mean(tmp_path / "a.jpg") == pytest.approx((100, 100, 100), abs=1)


def bomb(path: Path, width: int, height: int) -> Path:
    """A PNG of a few bytes that says it is as large as this."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = zlib.compress(bytes(100_000))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("size", [(10_001, 10_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_decompression_bombs_are_bounded(size: tuple[int, int], tmp_path: Path) -> None:
    assert why(bomb(tmp_path / "a.png", *size)) == "more than 100,000,000 pixels"


def test_only_formats_that_are_meant_are_opened(tmp_path: Path) -> None:
    """Of what Pillow reads beside: AVIF, DDS, BLP and others, also under a JPEG's name."""
    others = [form for form in ("AVIF", "DDS", "ICO", "TGA", "PCX", "SGI", "ICNS", "JPEG2000") if form not in FORMATS]
    tried = 0
    for form in others:
        if form != "AVIF" or features.check("avif"):
            Image.new("RGB", (16, 16), (1, 2, 3)).save(tmp_path / "a.jpg", format=form)
            assert why(tmp_path / "a.jpg") == "cannot be decoded", form
            tried += 1
    assert tried >= 7
    assert {".heic", ".avif", ".dds", ".txt"}.isdisjoint(SUFFIXES)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF", "AVIF", "DDS"])
def test_damaged_files_are_a_reason_and_never_an_exception(form: str, tmp_path: Path) -> None:
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    path, rng = tmp_path / "a.jpg", np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(path, format=form)
    whole = path.read_bytes()
    for _ in range(60):
        raw = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for place in rng.integers(0, min(len(raw), 200), 4):
            raw[place] = rng.integers(0, 256)
        path.write_bytes(raw)
        found = open_image(path)
        assert isinstance(found, Image.Image) or found


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    for start, said in {
        "version https://git-lfs.github.com/spec/v1\noid sha256:0": "a Git LFS pointer, no image",
        "\n<!DOCTYPE html><html>": "a web page, no image",
        "<HTML>": "a web page, no image",
        "nothing": "cannot be decoded",
    }.items():
        (tmp_path / "a.jpg").write_text(start)
        assert why(tmp_path / "a.jpg") == said
    os.mkfifo(tmp_path / "pipe.jpg")
    assert why(tmp_path / "pipe.jpg") == "not a file"
    assert why(tmp_path) == "not a file"
    assert why(tmp_path / "nowhere.jpg") == "not there"
    assert why(Path("a\0b.jpg")) == "not there"
    assert why(tmp_path / ("x" * 300 + ".jpg")) == "cannot be read (File name too long)"
