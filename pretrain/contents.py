"""What a file is by its first bytes, where it is no weights: a page, a pointer, an archive, a picture, text."""

import re
from pathlib import Path

HEAD = 1024  # bytes that are looked at
ZIPS = (".zip", ".npz", ".pth", ".pt", ".tar")  # torch's own files are zips, .pth.tar too
GZIPS = (".gz", ".tgz")
PLAIN = (".pkl", ".txt", ".prototxt")  # a pickle of protocol 0 is text
ARCHIVES = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"7z\xbc\xaf": "7z", b"Rar!": "rar", b"\x28\xb5\x2f\xfd": "zstd"}
OTHERS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file (Keras's, Caffe's .h5, MATLAB 7.3): load it in its program and save it "
    "otherwise (.npz, .caffemodel, -v7)",
    b"%PDF": "a PDF file",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
}
BEGINS = {  # how files of a format begin, where all do
    ".zip": (b"PK",), ".npz": (b"PK",), ".npy": (b"\x93NUMPY",), ".gz": (b"\x1f\x8b",), ".tgz": (b"\x1f\x8b",),
    ".pth": (b"PK", b"\x80"), ".pt": (b"PK", b"\x80"),
}  # fmt: skip


def head_of(path: Path) -> bytes:
    """The first bytes of a file. Raises OSError."""
    with path.open("rb") as file:
        return file.read(HEAD)


def mistaken(head: bytes, suffix: str) -> str | None:
    """What the file that begins with `head` is instead of a `suffix` (".pth", …), with the remedy; else None.

    None says only that it is none of the known mistakes, not that the file is whole.
    """
    suffix = suffix.lower()
    if not head:
        return "an empty file (0 bytes): get it again"
    return _page_or_pointer(head) or _archive(head, suffix) or _other(head, suffix)


def _page_or_pointer(head: bytes) -> str | None:
    text = head.decode("utf-8-sig", "replace").strip()
    if text.startswith("version https://git-lfs.github.com/spec/"):
        size = re.search(r"^size (\d{1,18})$", text, re.MULTILINE)
        of = f" to {int(size[1]):,} bytes" if size else ""
        return f"a Git LFS pointer{of}, not the file itself: run `git lfs pull` in its clone, or download it by itself"
    if "/annex/objects/" in text[:200] and text.isprintable():
        return "a git-annex pointer, not the file itself: run `git annex get` in its clone"
    if re.match(r"<(?:!|\?xml|html|head|body|title|script|meta)", text, re.IGNORECASE):
        return f"a web page or XML ({begins(text)}), not the file itself: its host is gone, moved or asks for something"
    return None


def _archive(head: bytes, suffix: str) -> str | None:
    kinds = [kind for magic, kind in ARCHIVES.items() if head.startswith(magic)]
    kinds += ["zip"] if head.startswith(b"PK\x03\x04") and suffix not in ZIPS else []
    kinds += ["gzip"] if head.startswith(b"\x1f\x8b") and suffix not in GZIPS else []
    kinds += ["tar"] if head[257:262] == b"ustar" else []
    return f"an archive ({kinds[0]}): unpack it, and give the file in it" if kinds else None


def _other(head: bytes, suffix: str) -> str | None:
    for magic, kind in OTHERS.items():
        if head.startswith(magic):
            return kind
    text = head.decode("utf-8-sig", "ignore")
    if suffix not in PLAIN and all(one.isprintable() or one in "\t\r\n" for one in text) and len(text) > len(head) // 2:
        return f"a text ({begins(text)}), not the file itself: get it elsewhere"
    if suffix in BEGINS and not head.startswith(BEGINS[suffix]):
        return f"no {suffix} file by its first bytes: get it again"
    return None


def begins(text: str) -> str:
    """ "it begins '<!DOCTYPE html> <html>'": the first words in one line."""
    return f"it begins {printable(' '.join(text.split()))[:60]!r}"


def printable(text: str) -> str:
    """A name from a file, fit for one line of any terminal: "?" for line ends, control characters and surrogates."""
    return text if text.isprintable() else "".join(one if one.isprintable() else "?" for one in text)
