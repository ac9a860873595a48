"""What counts as data in a folder: one definition for images, videos, frames, masks and lists.

What hides behind a dot, and what editors and systems leave behind, is none. Links are followed, each
folder once. What is not looked at is counted, by reason, so that it can be reported.
"""

import codecs
import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pretrain.files import Failed, Missing

# Compared without case. Left by macOS, Windows, Synology, QNAP, NetApp, Python, disk checks and file managers.
LEFTOVERS = frozenset({
    "__macosx", "icon\r", "network trash folder", "temporary items", "thevolumesettingsfolder",
    "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "folder.htt", "system volume information",
    "$recycle.bin", "recycler", "recycled", "found.000", "wpsettings.dat", "lost+found", "lost.dir",
    "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@__thumb", "@tmp", "~snapshot",
    "__pycache__", "picasa.ini", "zbthumbnail.info", "_vti_cnf",
})  # fmt: skip
# Backups (x~, x.jpg.~1~), autosaves (#x#), Office's locks (~$x), streams (x:Zone.Identifier, x@SynoEAStream).
LEFT = re.compile(r"\..*|.*~|#.+#|~\$.*|.*:(zone\.identifier|encryptable|afp_[a-z]+)|.*@syno[a-z]+", re.DOTALL)

HIDDEN, BROKEN, CLOSED = "hidden or left by a system", "broken links", "cannot be opened"
SEEN, SPECIAL = "folders that are read elsewhere already", "neither a file nor a folder"


def junk(name: str) -> bool:
    """Whether a file or folder of this name (not path) is hidden or left by an editor or a system: no data."""
    low = name.lower()
    return low in LEFTOVERS or LEFT.fullmatch(low) is not None


@dataclass(frozen=True)
class Listing:
    """The files of a folder, sorted; and how many entries were not looked at, by reason."""

    files: tuple[Path, ...]
    unread: Counter[str] = field(default_factory=Counter)

    def report(self) -> str:
        """What was not looked at: "12 of .txt, 3 hidden or left by a system"; "" where that is nothing."""
        counts = sorted(self.unread.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{count} {reason}" for reason, count in counts)

    def notes(self, folder: Path) -> list[str]:
        """The line to log about what in `folder` was not looked at, if anything was not."""
        return [f"{printable(folder)}: not looked at: {self.report()}"] if self.unread else []


def walk(folder: Path, suffixes: Collection[str], *, deep: bool = True) -> Listing:
    """The files below `folder` with one of `suffixes` (".jpg", compared without case), sorted.

    `deep`: also those in its folders. Real folders are read before links to folders, and each folder
    once, so that links neither loop nor double anything. A file is regular, or a link to such: never a FIFO.
    Raises Missing when `folder` is no folder or cannot be read; what lies in it and cannot be is counted.
    """
    real = real_folder(folder)
    found: list[Path] = []
    unread: Counter[str] = Counter()
    seen = {_identity(above) for above in (real, *real.parents)}
    queue, links = [folder], list[Path]()
    while queue or links:
        inside = queue.pop() if queue else links.pop()
        if inside != folder and not _first(inside, seen):
            unread[SEEN] += 1
            continue
        try:
            entries = sorted(entries_of(inside), key=lambda path: path.name, reverse=True)
        except OSError:
            unread[CLOSED] += 1
            continue
        for path in entries:
            kind = _kind(path, suffixes)
            if kind == "file":
                found.append(path)
            elif kind == "folder" and deep:
                (links if path.is_symlink() else queue).append(path)
            else:
                unread["folders" if kind == "folder" else kind] += 1
        links.sort(reverse=True)
    return Listing(tuple(sorted(found)), unread)


def entries_of(folder: Path) -> Iterable[Path]:
    """What lies in `folder`, in no order. Raises OSError."""
    with os.scandir(folder) as entries:
        return [folder / entry.name for entry in entries]


def real_folder(folder: Path, *, remedy: str = "correct the path") -> Path:
    """Where `folder` really is. Raises Missing when it is no folder that can be read."""
    try:
        if not folder.is_dir():
            raise Missing(f"{printable(folder)}: no such folder: {remedy}")
        os.scandir(folder).close()
        return folder.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # too long, NUL, rights, links in a circle
        reason = getattr(error, "strerror", None) or error
        raise Missing(f"{printable(folder)}: cannot be read ({reason}): {remedy}") from error


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _first(folder: Path, seen: set[tuple[int, int]]) -> bool:
    """Whether this folder, by whatever name, was not seen before; it is now."""
    try:
        identity = _identity(folder)
    except OSError:
        return True  # reading it says what is wrong
    new = identity not in seen
    seen.add(identity)
    return new


def _kind(path: Path, suffixes: Collection[str]) -> str:
    """ "file" or "folder", or the reason why it is not looked at."""
    if junk(path.name):
        return HIDDEN
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return BROKEN
    except OSError:  # links in a circle, too long a path
        return BROKEN if path.is_symlink() else CLOSED
    if stat.S_ISDIR(mode):
        return "folder"
    if path.suffix.lower() not in suffixes:
        return f"of {printable(path.suffix.lower())[:20]}" if path.suffix else "without a suffix"
    return "file" if stat.S_ISREG(mode) else SPECIAL


def data_in(paths: Iterable[Path]) -> list[Path]:
    """Those of `paths` (a glob's, say) whose own names are data, sorted."""
    return sorted(path for path in paths if not junk(path.name))


def printable(path: Path | str) -> str:
    """A path or name as text that every terminal and log can print on one line: other bytes as \\xe9, \\n."""
    text = os.fsencode(str(path)).decode("utf-8", "backslashreplace")
    return escaped(text)


def escaped(text: str) -> str:
    """The text with what no terminal shows as \\x1b, \\n, \\udce9."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def read_text(path: Path) -> str:
    """A text file: UTF-8, with or without a byte order mark, or UTF-16 with one.

    Raises Missing when it is not there, Failed when it cannot be read or is in another encoding, which it names.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise Missing(f"{printable(path)}: not there: complete the data") from None
    except (OSError, ValueError) as error:
        raise Failed(f"{printable(path)}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "utf-16" if wide else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        name = "UTF-16" if wide else "UTF-8"
        raise Failed(f"{printable(path)}: not {name} text (byte {error.start}): save it as UTF-8") from error
    if "\0" in text:
        raise Failed(f"{printable(path)}: not UTF-8 text (holds NUL; UTF-16 or 32 without a mark?): save it as UTF-8")
    return text
