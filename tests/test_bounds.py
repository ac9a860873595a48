"""Files of a few bytes that ask for gigabytes or for ever: one line, at once. Files that are something else: what."""

import io
import pickle
import resource
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.alexnet import read_encoder
from pretrain.files import Failed
from pretrain.foreign import import_weights
from pretrain.npy import HEADER, read_npz
from pretrain.pickle_size import check_pickle
from pretrain.pickles import load_pickle


@pytest.fixture(autouse=True)
def at_once() -> Iterator[None]:
    """Little memory, and an end: the machine may be busy, but these would never come to one."""
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB
    assert time.monotonic() - begun < 20


def ladder(rungs: int, first: bytes = b"K\x01K\x02\x86") -> bytes:
    """A tuple of a tuple twice, `rungs` times: BINPUT, BINGET, TUPLE2."""
    return first + b"".join(b"q" + bytes([k % 256]) + b"h" + bytes([k % 256]) + b"\x86" for k in range(rungs))


def array(content: bytes) -> bytes:
    """An array of bytes, whose content is what `content` pushes."""
    kind = b"cnumpy\ndtype\n(S'u1'\ntR"
    return b"cnumpy\nndarray\n(tR(I1\n(I1000000\nt" + kind + b"I00\n" + content + b"tb"


BOMBS = {
    "the key of a dict": b"\x80\x02}" + ladder(60) + b"Ns.",
    "an element of a frozenset": b"\x80\x04(" + ladder(60) + b"\x91.",
    "an element of a set": b"\x80\x02c__builtin__\nset\n]" + ladder(60) + b"a\x85R.",
    "a dtype's code": b"\x80\x02cnumpy\ndtype\n" + ladder(60) + b"\x85R.",
    "an array's shape": b"\x80\x02cnumpy\nndarray\n(tR(I1\n(I-1\n" + ladder(60) + b"tcnumpy\ndtype\n(S'u1'\ntRI00\nS'a'\ntb.",  # noqa: E501
    "an encoding": b"\x80\x02c_codecs\nencode\nS'a'\n" + ladder(60) + b"\x86R.",
    "an array's class": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n" + ladder(60) + b"\x85R.",
    "a message": b"\x80\x02" + ladder(60) + b"R.",
    "so deep that hashing overflows": b"\x80\x02}" + b"K\x01" + b"\x85" * 20_000 + b"Ns.",
    "one string in a thousand arrays": b"\x80\x02(T" + struct.pack("<i", 10**6) + b"a" * 10**6 + b"q\x00"
    + array(b"h\x00") * 1000 + b"t.",
    "a number of many digits": b"I" + b"9" * 5000 + b"\n.",
    "a number of many bytes": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"a.",
}  # fmt: skip


@pytest.mark.parametrize("case", BOMBS)
def test_a_pickle_that_unfolds_is_refused(case: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(BOMBS[case])
    with pytest.raises(Failed) as caught:
        load_pickle(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert len(said) < 500
    assert "\n" not in said


def test_what_shares_without_end_is_no_weights(tmp_path: Path) -> None:
    """Lists are built when they are already shared, so that what they unfold to is only seen when they are read."""
    for width, said in ((1, "nested deeper"), (200, "nested deeper")):
        lists = b"".join(b"]q" + bytes([k]) + b"0" for k in range(17))
        steps = b"".join(b"h" + bytes([k]) + (b"h" + bytes([k + 1]) + b"a") * width + b"0" for k in range(16))
        (tmp_path / "a.pkl").write_bytes(b"\x80\x02" + lists + steps + b"h\x00.")
        with pytest.raises(Failed, match=said if width > 1 else "no tensors"):
            import_weights(tmp_path / "a.pkl", out=tmp_path / "e", method="x")


@pytest.mark.parametrize("case", ["the key of a dict", "so deep that hashing overflows"])
@pytest.mark.parametrize("legacy", [False, True])
def test_torch_s_own_pickles_are_bounded_too(case: str, legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    if legacy:
        system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
        path.write_bytes(b"".join(pickle.dumps(o, 2) for o in (0x1950A86A20F9469CFC6C, 1001, system)) + BOMBS[case])
    else:
        buffer = io.BytesIO()
        torch.save({"a": torch.ones(2)}, buffer)
        with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
            for entry in old.infolist():
                new.writestr(entry, BOMBS[case] if entry.filename.endswith("data.pkl") else old.read(entry))
    with pytest.raises(Failed, match=r"not a whole \.pth file of tensors \((unfolds to|nested)"):
        import_weights(path, out=tmp_path / "e", method="x")


def test_a_bytearray_by_number_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(tmp_path / "a.pth", "w") as new:
        for entry in old.infolist():
            asks = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + (2**35).to_bytes(5, "little") + b"\x85R."
            new.writestr(entry, asks if entry.filename.endswith("data.pkl") else old.read(entry))
    with pytest.raises(Failed, match="asks for builtins bytearray"):
        import_weights(tmp_path / "a.pth", out=tmp_path / "e", method="x")


def test_a_pth_that_unpacks_to_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.npy.LARGEST", 10_000)
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data/0", bytes(20_000))
    with pytest.raises(Failed, match="when unpacked"):
        import_weights(tmp_path / "a.pth", out=tmp_path / "e", method="x")


@pytest.mark.parametrize("name", ["conv1.bias", "bn1.running_mean", "fc.weight"])
def test_a_view_that_asks_for_gigabytes(name: str, tmp_path: Path) -> None:
    torch.save({name: torch.zeros(1).expand(2**40)}, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").stat().st_size < 3000
    with pytest.raises(Failed, match=f"{name} shows 1,099,511,627,776 numbers and holds 1"):
        import_weights(tmp_path / "a.pth", out=tmp_path / "e", method="x")


def npy(header: str, content: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode("latin1") + content


HEADERS: dict[str, str] = {
    "nested brackets": "{'descr': " + "[" * 90 + "{" * 90,
    "nested dicts": "{'descr': " + "{1:" * 90,
    "nested dtypes": "{'descr': " + "[('a', " * 60 + "'<f4'" + ")]" * 60 + ", 'fortran_order': False, 'shape': (1,), }",
    "a subarray of gigabytes": "{'descr': [('a', '<f4', (9999999999,))], 'fortran_order': False, 'shape': (1,), }",
    "a shape of gigabytes": "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999, 99999), }",
    "a width of gigabytes": "{'descr': '<U999999999', 'fortran_order': False, 'shape': (1,), }",
    "digits without end": "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1" * 6000 + ", }",
    "a code": "{'descr': __import__('os'), 'fortran_order': False, 'shape': (1,), }",
    "nothing": "",
}


@pytest.mark.parametrize("case", HEADERS)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_header_is_matched_before_it_is_evaluated(case: str, suffix: str, tmp_path: Path) -> None:
    path, content = tmp_path / f"a.{suffix}", npy(HEADERS[case], bytes(40))
    if suffix == "npy":
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("conv1.npy", content)
    with pytest.raises(Failed) as caught:
        import_weights(path, out=tmp_path / "e", method="x")
    assert str(caught.value).startswith(f"{path}: not a whole .{suffix} file of tensors (")
    assert "\n" not in str(caught.value)


ARRAYS = [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.ones((2, 3), ">i2")), np.array(3.5), np.zeros((0, 4)),
          np.array(["für", ""]), np.array([True]), np.zeros((1,) * 20, "u1"), np.array([1 + 2j])]  # fmt: skip


def test_every_plain_array_passes(tmp_path: Path) -> None:
    names = {f"a{k}": array for k, array in enumerate(ARRAYS)}
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "a.npz", **names)
        found = read_npz(tmp_path / "a.npz")
        assert list(found) == list(names)
        for name, array in names.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
            np.testing.assert_array_equal(found[name], array)
    assert HEADER.fullmatch("{'descr': '<f4', 'fortran_order': False, 'shape': (3L, 4L), }  \n")  # Python 2's


def test_what_is_shared_a_little_passes() -> None:
    shared = [1.0] * 100
    content = pickle.dumps([{"a": shared, "b": (shared, shared)} for _ in range(50)], 2)
    assert check_pickle(io.BytesIO(content), size=len(content)) == set()


PAGE = b"<!DOCTYPE html><html><head><title>Moved</title></head></html>\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 244418560\n"
MISTAKEN: dict[str, tuple[bytes, str]] = {
    "page": (PAGE, "a web page or XML (it begins '<!DOCTYPE html>"),
    "pointer": (POINTER, "a Git LFS pointer to 244,418,560 bytes"),
    "text": (b"quota exceeded\n", "a text (it begins 'quota exceeded')"),
    "empty": (b"", "an empty file (0 bytes)"),
    "rar": (b"Rar!\x1a\x07\x00" + bytes(30), "an archive (rar): unpack it"),
    "gzip": (b"\x1f\x8b\x08" + bytes(30), "an archive (gzip): unpack it"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(30), "an HDF5 file"),
}
READERS: list[tuple[str, Callable[[Path], object]]] = [
    *((suffix, lambda path: import_weights(path, out=path.with_name("e"), method="x")) for suffix in
      ("caffemodel", "pth", "pth.tar", "npy", "npz", "safetensors", "h5", "zip")),
    ("encoder.safetensors", read_encoder),
]  # fmt: skip


@pytest.mark.parametrize("case", MISTAKEN)
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader[0])
def test_what_a_file_is_instead_is_said(
    case: str, reader: tuple[str, Callable[[Path], object]], tmp_path: Path
) -> None:
    content, said = MISTAKEN[case]
    path = tmp_path / f"a.{reader[0]}"
    path.write_bytes(content)
    with pytest.raises(Failed) as caught:
        reader[1](path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["conv1.a\nb", "conv1.\x1b[2J", "conv1." + "n" * 10_000, "conv1.\u2028"])
def test_a_name_from_a_file_stays_in_its_line(key: str, tmp_path: Path) -> None:
    sides, found = (11, 5, 3, 3, 3), {}
    for k, side in enumerate(sides, start=1):
        found |= {f"conv{k}.weight": torch.ones(2, 3 if k == 1 else 2, side, side), f"conv{k}.bias": torch.ones(2)}
    torch.save(found | {key: torch.ones(2)}, tmp_path / "a.pth")
    with pytest.raises(Failed, match=r"conv1\.[a?n].*in the trunk by name") as caught:
        import_weights(tmp_path / "a.pth", out=tmp_path / "e", method="x")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000
