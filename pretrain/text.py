"""Text files that people wrote: UTF-8 or UTF-16, as their editors and shells save them."""

import codecs
from pathlib import Path

from pretrain.files import Failed, Missing

MOST = 64 * 2**20  # bytes; ImageNet's list of files has 60 MB
MARKS = {  # the longer first: UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
REMEDY = "save the file as UTF-8"


def read_text(path: Path) -> str:
    """The text of `path`, UTF-8 or UTF-16, without its byte order mark.

    Raises Missing when there is no such file, Failed, naming file, encoding and remedy, when it is too long, binary or
    in another encoding.
    """
    return decode(read_bytes(path, most=MOST), path)


def read_bytes(path: Path, *, most: int) -> bytes:
    """The bytes of a regular file. Raises Missing when there is none, Failed when it has more than `most`."""
    if not path.is_file():  # a FIFO would block
        raise Missing(f"{path}: no such file: complete the data, then run the same command again")
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise Failed(f"{path}: cannot be read ({error.strerror or error}): check its rights") from error
    if len(content) > most:
        raise Failed(f"{path}: more than {most:,} bytes, too long for such a file: replace it")
    return content


def decode(content: bytes, path: Path) -> str:
    """The text in `content`, which was read from `path`. Raises Failed as read_text does."""
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), None) or _guessed(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        found = f"byte 0x{content[error.start]:02x} at {error.start}"
        what = "another encoding, such as Latin-1" if encoding == "utf-8" else "damaged"
        raise Failed(f"{path}: not {encoding.removesuffix('-sig').upper()} ({found}; {what}): {REMEDY}") from error
    if encoding == "utf-32":
        raise Failed(f"{path}: in UTF-32; UTF-8 and UTF-16 are read: {REMEDY}")
    if "\0" in text:
        raise Failed(f"{path}: holds NUL characters, so it is no text: replace the file")
    return text


def _guessed(content: bytes) -> str:
    """Of text without a mark: in UTF-16 every other byte of an ASCII character is zero."""
    low, high = content[1::2], content[::2]
    if len(content) % 2 == 0 and content:
        if low.count(0) > len(low) / 2 and not high.count(0):
            return "utf-16-le"
        if high.count(0) > len(high) / 2 and not low.count(0):
            return "utf-16-be"
    return "utf-8"
