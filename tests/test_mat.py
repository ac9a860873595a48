"""MATLAB files: what SciPy reads comes out whole; what crashes its reader is one line, and the next is read as ever."""

import random
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from pretrain.files import Failed, Missing
from transfer.mat import _READER, read_mat
from transfer.published_proposals import published_boxes


def cells(items: list[Any]) -> Any:
    row = np.empty(len(items), dtype=object)
    for index, item in enumerate(items):
        row[index] = item
    return row


MASK = np.arange(12, dtype=np.uint8).reshape(3, 4)


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_cells_and_fields(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "a b é.mat"
    boxes = [np.ones((2, 4)), np.ones((1, 4), np.uint8)]
    content: dict[str, Any] = {"boxes": cells(boxes)[None], "images": cells(["000005", "7"])[:, None], "mask": MASK}
    content["GTcls"] = {"Segmentation": MASK, "Boundaries": cells([MASK])}
    savemat(path, content, do_compression=compressed)
    found = read_mat(path, ["boxes{}", "images{}", "GTcls.Segmentation", "mask", "absent"])
    assert list(found) == ["boxes{}", "images{}", "GTcls.Segmentation", "mask"]
    for array, box in zip(found["boxes{}"], boxes, strict=True):
        np.testing.assert_array_equal(array, box)
        assert array.dtype == box.dtype
    assert [str(name.item()) for name in found["images{}"]] == ["000005", "7"]
    for name in ("GTcls.Segmentation", "mask"):
        np.testing.assert_array_equal(found[name], [MASK])
    for name, said in (("boxes", "holds cells"), ("mask{}", "mask is no cell array"), ("GTcls", "GTcls holds")):
        with pytest.raises(Failed, match=said):
            read_mat(path, [name])
    with pytest.raises(Missing):
        read_mat(tmp_path / "b.mat", ["boxes"])


CRASHES = """
import os, signal, sys
import numpy as np, scipy.io
def loadmat(*_, **__):
    os.kill(os.getpid(), signal.SIGSEGV)
scipy.io.loadmat = loadmat
from transfer.mat import serve
serve(sys.stdin.buffer, sys.stdout.buffer)
"""


def test_a_crash_of_the_reader_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mat"
    savemat(path, {"boxes": cells([np.ones((1, 4))])[None]})
    assert "boxes{}" in read_mat(path, ["boxes{}"])
    child = _READER.child
    assert child
    command = [sys.executable, "-c", CRASHES]
    with monkeypatch.context() as patched:
        _READER.end()
        plain = subprocess.Popen
        patched.setattr(subprocess, "Popen", lambda _, **options: plain(command, **options))
        for _ in range(2):
            with pytest.raises(Failed, match=r"a\.mat: not a readable proposal file \(.*crashed.*signal 11"):
                published_boxes(path, listed=["a"], sizes={"a": (9, 9)})
    assert "boxes{}" in read_mat(path, ["boxes{}"])


def test_a_reader_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mat"
    savemat(path, {"mask": MASK})
    read_mat(path, ["mask"])
    monkeypatch.setattr("transfer.mat.PATIENCE", 0.2)
    assert _READER.child
    _READER.child.send_signal(19)  # SIGSTOP
    with pytest.raises(Failed, match="took too long"):
        read_mat(path, ["mask"])
    monkeypatch.setattr("transfer.mat.PATIENCE", 60)
    np.testing.assert_array_equal(read_mat(path, ["mask"])["mask"], [MASK])


def outcome(path: Path) -> str:
    """The one line that a reading ends in, "" if it is read. Anything but Failed goes through."""
    try:
        read_mat(path, ["boxes{}", "images{}"])
    except Failed as error:
        return str(error)
    return ""


def test_damaged_files_end_in_one_line_each(tmp_path: Path) -> None:
    path, chance = tmp_path / "a.mat", random.Random(0)
    savemat(path, {"boxes": cells([np.ones((3, 4))] * 3)[None], "images": cells(["1", "2", "3"])[:, None]})
    whole = path.read_bytes()
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(chance.choice([1, 3, 30])):
            damaged[chance.randrange(120, len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged[: chance.choice([len(damaged), chance.randrange(1, len(damaged))])])
        said = outcome(path)
        assert said.startswith(f"{path}: " if said else "")
        assert "\n" not in said


def test_what_unpacks_to_terabytes_is_one_line(tmp_path: Path) -> None:
    """The numbers of a matrix, whose tag says 2 GiB, and its dimensions more."""
    path = tmp_path / "a.mat"
    savemat(path, {"mask": MASK.astype(float)}, do_compression=True)
    raw = path.read_bytes()
    element = bytearray(zlib.decompress(raw[136:]))
    at = element.index((3).to_bytes(4, "little") + (4).to_bytes(4, "little"))
    element[at : at + 8] = (2**31 - 1).to_bytes(4, "little") + (2**20).to_bytes(4, "little")
    packed = zlib.compress(bytes(element))
    path.write_bytes(raw[:132] + len(packed).to_bytes(4, "little") + packed)
    with pytest.raises(Failed, match="not a readable MATLAB file"):
        read_mat(path, ["mask"])


@pytest.mark.parametrize(("content", "said"), [
    (b"<!DOCTYPE html>", "a web page"), (b"version https://git-lfs.github.com/spec/v1\nsize 7\n", "a Git LFS pointer"),
    (b"PK\x03\x04" + bytes(99), "an archive"), (b"", "an empty file"),
])  # fmt: skip
def test_what_it_is_instead_is_said(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(Failed, match=said):
        read_mat(tmp_path / "a.mat", ["boxes"])
