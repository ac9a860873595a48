"""What counts as data in a folder."""

import os
import socket
from collections import Counter
from pathlib import Path

import pytest

from pretrain.files import Failed, Missing
from pretrain.listing import data_in, junk, printable, read_text, walk

LEFT = [
    "._000000.png", ".DS_Store", ".ipynb_checkpoints", ".git", ".Trash-1000", ".nfs0001", ".", "Thumbs.db", "thumbs.DB",
    "desktop.ini", "Desktop.ini", "__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information",
    "lost+found", "a.jpg~", "a.jpg.~1~", "#a.jpg#", "~$table.png", "Icon\r", "a.jpg:Zone.Identifier",
    "a.jpg@SynoEAStream", "@Recycle", "__pycache__",
]  # fmt: skip
DATA = [
    "a.jpg",
    "0",
    "cat",
    "a~b.jpg",
    "#1.jpg",
    "n01440764",
    "@home",
    "x.ini",
    "dog.ds_store",
    "lost",
    "caf\udce9.jpg",
]


@pytest.mark.parametrize("name", LEFT)
def test_leftovers_are_junk(name: str) -> None:
    assert junk(name)


@pytest.mark.parametrize("name", DATA)
def test_other_names_are_data(name: str) -> None:
    assert not junk(name)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def names(folder: Path, *suffixes: str) -> tuple[list[str], Counter[str]]:
    found = walk(folder, suffixes or (".jpg",))
    return [path.relative_to(folder).as_posix() for path in found.files], found.unread


def test_what_is_not_looked_at_is_counted_by_reason(tmp_path: Path) -> None:
    touch(
        tmp_path, "b/2.jpg", "a/1.JPG", "a/deep/er/3.jpg", "a/._1.jpg", "@eaDir/1.jpg", "x.webp", "a/y.WEBP", "README"
    )
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "round.jpg").symlink_to(tmp_path / "round.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(tmp_path / "s.jpg"))
    found, unread = names(tmp_path)
    assert found == ["a/1.JPG", "a/deep/er/3.jpg", "b/2.jpg"]
    assert unread == {
        "hidden or left by a system": 2, "of .webp": 2, "without a suffix": 1, "broken links": 2,
        "neither a file nor a folder": 2,
    }  # fmt: skip
    assert walk(tmp_path, {".jpg"}).report().startswith("2 ")
    flat = walk(tmp_path / "a", {".jpg"}, deep=False)
    assert (len(flat.files), flat.unread["folders"]) == (1, 1)


def test_links_are_followed_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    touch(root, "cat/1.jpg")
    touch(tmp_path / "far", "owl/2.jpg", "owl/more/3.jpg")
    (root / "owl").symlink_to(tmp_path / "far" / "owl")
    (root / "linked.jpg").symlink_to(tmp_path / "far" / "owl" / "2.jpg")
    found, unread = names(root)
    assert found == ["cat/1.jpg", "linked.jpg", "owl/2.jpg", "owl/more/3.jpg"]
    assert not unread
    (root / "cat" / "again").symlink_to(root)
    (root / "cat" / "above").symlink_to(tmp_path)
    (root / "aaa").symlink_to(root / "cat")  # the real folder is the one that is read
    (root / "zzz").symlink_to(tmp_path / "far" / "owl")
    found, unread = names(root)
    assert found == ["cat/1.jpg", "linked.jpg", "owl/2.jpg", "owl/more/3.jpg"]
    assert unread == {"folders that are read elsewhere already": 4}
    (tmp_path / "entry").symlink_to(root)
    assert len(walk(tmp_path / "entry", {".jpg"}).files) == 4


def test_many_folders_that_link_to_each_other(tmp_path: Path) -> None:
    for a in range(12):
        touch(tmp_path, f"{a}/x.jpg")
    for a in range(12):
        for b in range(12):
            (tmp_path / f"{a}" / f"to{b}").symlink_to(tmp_path / f"{b}")
    assert len(names(tmp_path)[0]) == 12


def test_names_in_any_bytes_are_found(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9\n.jpg"
    Path(os.fsdecode(raw)).write_bytes(b"x")
    (path,) = walk(tmp_path, {".jpg"}).files
    assert os.fsencode(path) == raw
    assert printable(path) == f"{tmp_path}/caf\\xe9\\n.jpg"


@pytest.mark.parametrize("name", ["nowhere", "a\0b", "x" * 300, "file", "pipe", "round"])
def test_what_is_no_folder(name: str, tmp_path: Path) -> None:
    touch(tmp_path, "file")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    with pytest.raises(Missing, match="correct the path") as caught:
        walk(tmp_path / name, {".jpg"})
    assert "\n" not in str(caught.value)
    assert "\0" not in str(caught.value)


def test_the_data_among_paths(tmp_path: Path) -> None:
    touch(tmp_path, "b.txt", "a.txt", "._a.txt")
    assert data_in(tmp_path.glob("*.txt")) == [tmp_path / "a.txt", tmp_path / "b.txt"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_in_utf8_and_utf16(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("1 café\n2\n".encode(encoding))
    assert read_text(path) == "1 café\n2\n"


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le", "utf-32", "cp932"])
def test_lists_in_other_encodings_are_refused(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("日本\n".encode(encoding) if encoding == "cp932" else "café\n".encode(encoding))
    with pytest.raises(Failed, match="save it as UTF-8") as caught:
        read_text(path)
    assert str(caught.value).startswith(f"{path}: not UTF-")
    with pytest.raises(Missing):
        read_text(tmp_path / "nowhere.txt")
