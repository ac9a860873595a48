"""Files that survive a crash; errors of one line that name the file; numbers that depend on a seed and a place."""

import hashlib
import os
import pickle
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pretrain import provenance
from pretrain.files import (
    Failed,
    Missing,
    Usage,
    atomic,
    digest,
    load_checkpoint,
    save_checkpoint,
    sha256,
    write_text,
)
from pretrain.progress import checkpoint_due
from pretrain.randomness import derived, generator, reseed, shuffled


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """The system refuses to let a file grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_exit_codes() -> None:
    assert [kind.exit_code for kind in (Failed, Usage, Missing)] == [1, 2, 3]
    assert issubclass(Usage, Failed)
    assert issubclass(Missing, Failed)


def test_atomic_makes_folders_and_leaves_nothing_beside(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "note", "für 𝄞\n")
    assert (tmp_path / "a" / "b" / "note").read_bytes() == "für 𝄞\n".encode()
    assert names(tmp_path / "a" / "b") == ["note"]


def test_until_the_end_the_old_content_stays(tmp_path: Path) -> None:
    path = tmp_path / "note"
    write_text(path, "old")
    with atomic(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path  # the same file system, so that the renaming is atomic
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_the_new_content_is_renamed_into_place_not_written_over_the_old(tmp_path: Path) -> None:
    path = tmp_path / "note"
    write_text(path, "old")
    with path.open() as reader:
        write_text(path, "new")
        assert reader.read() == "old"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError(), RuntimeError("of another kind")])
def test_an_error_inside_goes_through_and_leaves_the_old_content(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "note"
    write_text(path, "old")
    with pytest.raises(type(error)), atomic(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["note"]


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Failed, match=r"file/note: cannot be written \(") as caught:
        write_text(tmp_path / "file" / "note", "text")
    assert "\n" not in str(caught.value)
    assert type(caught.value) is Failed


def test_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "note").mkdir()
    with pytest.raises(Failed, match=r"note: cannot be written"):
        write_text(tmp_path / "note", "text")
    assert names(tmp_path) == ["note"]


def test_a_full_disk_while_text_is_written(tmp_path: Path) -> None:
    path = tmp_path / "note"
    write_text(path, "old")
    with pytest.raises(Failed) as caught, full_disk(1000):
        write_text(path, "x" * 5000)
    assert str(caught.value).startswith(f"{path}: disk full: free some space")
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["note"]


@pytest.mark.parametrize("size", [10, 3_000, 100_000, 395_000, 400_500])  # in the header, in the tensor, in the index
def test_a_full_disk_while_a_checkpoint_is_written(tmp_path: Path, size: int) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"iteration": 3})
    with pytest.raises(Failed) as caught, full_disk(size):
        save_checkpoint(path, {"w": torch.zeros(100_000)})
    assert str(caught.value).startswith(f"{path}: ")
    assert "disk full" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert load_checkpoint(path) == {"iteration": 3}
    assert names(tmp_path) == ["checkpoint.pt"]


def test_a_checkpoint_comes_back_bit_equal(tmp_path: Path) -> None:
    state = {"w": torch.randn(3, 4, 5, 5).to(memory_format=torch.channels_last), "iteration": 7, "seconds": 0.1}
    save_checkpoint(tmp_path / "c", state)
    back = load_checkpoint(tmp_path / "c")
    assert back is not None
    assert torch.equal(back["w"], state["w"])
    assert back["w"].stride() == state["w"].stride()
    assert (back["iteration"], back["seconds"]) == (7, 0.1)
    assert load_checkpoint(tmp_path / "absent") is None


class Payload:
    """A pickle that makes a file when it is executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["empty", "garbage", "truncated", "pickle", "torch file with a payload"])
def test_damaged_checkpoints_are_named_and_never_executed(tmp_path: Path, kind: str) -> None:
    path, trace = tmp_path / "checkpoint.pt", tmp_path / "executed"
    save_checkpoint(path, {"w": torch.zeros(1000)})
    whole = path.read_bytes()
    if kind == "torch file with a payload":
        torch.save({"w": Payload(trace)}, path)
    else:
        contents = {"empty": b"", "garbage": b"\x93" * 999, "truncated": whole[: len(whole) // 2]}
        path.write_bytes(contents.get(kind) or (b"" if kind == "empty" else pickle.dumps(Payload(trace), protocol=2)))
    with pytest.raises(Failed, match=r"checkpoint.pt: damaged checkpoint: delete it") as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert not trace.exists()
    if kind == "pickle":  # the payload does work, were it executed
        pickle.loads(path.read_bytes())
        assert trace.exists()


def test_digests(tmp_path: Path) -> None:
    for name, content in (("b", "2"), ("a", "1")):
        (tmp_path / name).write_text(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"1").hexdigest()
    whole = digest(tmp_path, [tmp_path / "a", tmp_path / "b"])
    assert digest(tmp_path, [tmp_path / "b", tmp_path / "a"]) == whole
    (tmp_path / "b").rename(tmp_path / "c")
    assert digest(tmp_path, [tmp_path / "a", tmp_path / "c"]) != whole
    with pytest.raises(Missing, match=f"{tmp_path}/b: not there"):
        digest(tmp_path, [tmp_path / "a", tmp_path / "b"])


def test_random_numbers_depend_on_seed_and_place_alone() -> None:
    first = torch.rand(4, generator=generator(0, "crops", 3))
    torch.rand(100)
    assert torch.equal(torch.rand(4, generator=generator(0, "crops", 3)), first)
    others = {derived(0, "crops", 4), derived(1, "crops", 3), derived(0, "holes", 3), derived(0, "crops", 3)}
    assert len(others) == 4
    assert all(0 <= seed < 2**63 for seed in others)
    reseed(5, "dropout", 1)
    drawn = torch.rand(3)
    torch.rand(1)
    reseed(5, "dropout", 1)
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.parametrize(("items", "batch"), [(7, 3), (5, 5), (3, 8), (1, 2)])
def test_shuffled_is_one_endless_row_of_whole_passes(items: int, batch: int) -> None:
    row = torch.cat([shuffled(items, batch=batch, seed=0, iteration=i) for i in range(items * 2)]).tolist()
    passes = [row[k : k + items] for k in range(0, items * batch * 2, items)]
    assert all(sorted(one) == list(range(items)) for one in passes)
    if items == 7:
        assert len({tuple(one) for one in passes}) > 1  # another order each time
        other = torch.cat([shuffled(7, batch=3, seed=1, iteration=i) for i in range(14)]).tolist()
        assert other != row


def test_a_checkpoint_is_due_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checkpoint_due(seconds=0)()
    assert not checkpoint_due(seconds=1000)()
    monkeypatch.setenv("BENCH_CHECKPOINT_SECONDS", "0")
    assert checkpoint_due()()
    monkeypatch.delenv("BENCH_CHECKPOINT_SECONDS")
    assert not checkpoint_due()()


def test_provenance_of_this_machine() -> None:
    head, dirty = provenance.commit()
    assert head == "unknown" or (len(head) == 40 and set(head) <= set("0123456789abcdef"))
    assert isinstance(dirty, bool)
    found = provenance.versions()
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] == torch.__version__
    assert {"python", "numpy"} <= set(found)
    line = provenance.hardware(torch.device("cpu"))
    assert f"{torch.get_num_threads()} threads of {os.cpu_count()} cores" in line
    assert "\n" not in line
