"""One image file → RGB of 8 bits: which formats are opened, what becomes of other depths, how large one may be."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")  # as Pillow names them, whatever the suffix
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".gif"}
)
LARGEST = 100_000_000  # pixels: 300 MB a decoding process
CLEAR = (123, 117, 104)  # what transparent pixels become: the mean, which is nothing to a network
DARKEST = 4096  # levels of 65,536: an image below this is of 12 bits or fewer, and would come out black
# How files begin that are no image, whatever their names say.
IMPOSTORS = {b"version https://git-lfs": "a Git LFS pointer", b"<!doctype": "a web page", b"<html": "a web page"}


def open_image(path: Path) -> Image.Image | str:
    """The image as RGB, 8 bits a channel; or in a few words why it cannot be had, whatever is in the file.

    16-bit grey is scaled. Transparent pixels become CLEAR. Floating-point and 32-bit pixels, whose white is
    not known, and files of several pictures (animations, pages) are not read.
    """
    try:
        if not path.is_file():
            return "not a file" if path.exists() else "not there"
        with warnings.catch_warnings():  # of Pillow, about metadata and sizes
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                return _rgb(image)
    except Image.DecompressionBombError:
        return f"more than {LARGEST:,} pixels"
    except MemoryError:
        return "too large for this machine's memory"
    except Exception:  # decoders raise anything on damaged files: struct.error, IndexError, zlib.error, …
        return _impostor(path) or "cannot be decoded"


def _rgb(image: Image.Image) -> Image.Image | str:
    if image.width * image.height > LARGEST:
        return f"more than {LARGEST:,} pixels"
    if getattr(image, "is_animated", False) and image.format != "MPO":  # a camera's JPEG with its preview
        return "several pictures in one file (animated, or pages)"
    image.load()
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return _scaled(np.asarray(image))
    if image.mode in ("I", "F"):
        return "32-bit pixels, whose black and white are not known: convert it to 8 or 16 bits"
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        above = image.convert("RGBA")
        if above.getchannel("A").getextrema() == (0, 0):
            return "wholly transparent"
        return Image.alpha_composite(Image.new("RGBA", image.size, CLEAR), above).convert("RGB")
    return image.convert("RGB")


def _scaled(levels: np.ndarray[tuple[int, ...], np.dtype[np.integer]]) -> Image.Image | str:
    """H×W of 0–65535 → RGB. Pillow's own conversion clips at 255."""
    if levels.max() < DARKEST:
        return f"16-bit grey, all below {DARKEST} of 65536, so black in 8 bits: scale it to the whole range"
    grey = ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _impostor(path: Path) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(64).lstrip().lower()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return next((f"{what}, no image" for sign, what in IMPOSTORS.items() if start.startswith(sign)), "")
