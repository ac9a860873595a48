"""Files that survive a crash; errors of one line that name the file; numbers that depend on a seed and a place."""

import hashlib
import os
import pickle
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pretrain import provenance
from pretrain.checkpoints import checkpoint_due, load_checkpoint, save_checkpoint
from pretrain.files import (
    Failed,
    Missing,
    Usage,
    atomic,
    digest,
    sha256,
    write_text,
)
from pretrain.locks import locked
from pretrain.progress import Progress, log, progress
from pretrain.randomness import ALONE, Draw, Shard, derived, generator, reseed, shuffled


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


HOLDER = """
import os, sys, time
from pathlib import Path
from pretrain.locks import locked
print("here", flush=True)
with locked(Path(sys.argv[1])):
    worker = os.fork() if sys.argv[2] == "worker" else 1
    if worker:
        print("holds", worker, flush=True)
        sys.stdin.read()
    else:
        time.sleep(120)
print("let go", flush=True)
"""


def holder(path: Path, kind: str = "alone") -> subprocess.Popen[bytes]:
    """A process that holds `path` until its input ends or it is killed; with a forked worker, or alone."""
    command = [sys.executable, "-c", HOLDER, str(path), kind]
    started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert first_line(started) == ["here"]
    return started


def first_line(process: subprocess.Popen[bytes]) -> list[str]:
    assert process.stdout
    return process.stdout.readline().decode().split()


def test_a_lock_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lock"
    first = holder(path)
    assert first_line(first)[0] == "holds"
    second = holder(path)
    assert second.stdout
    assert select.select([second.stdout], [], [], 0.5)[0] == []  # it waits
    assert first.communicate(timeout=20)[0] == b"let go\n"
    assert first_line(second)[0] == "holds"
    assert second.communicate(timeout=20)[0] == b"let go\n"
    with locked(path):
        pass


@pytest.mark.parametrize("kind", ["alone", "worker"])
def test_a_lock_is_freed_by_kill_9(kind: str, tmp_path: Path) -> None:
    """Also where a process that was forked under it lives on, as decoding workers do."""
    killed = holder(tmp_path / "lock", kind)
    worker = int(first_line(killed)[1])
    try:
        killed.kill()
        killed.wait()
        after = holder(tmp_path / "lock")
        assert after.communicate(timeout=20)[0].startswith(b"holds")
    finally:
        after.kill()
        if kind == "worker":
            os.kill(worker, signal.SIGKILL)


def test_a_lock_is_let_go_when_what_is_done_under_it_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError), locked(tmp_path / "lock"):
        raise ValueError
    assert holder(tmp_path / "lock").communicate(timeout=20)[0].startswith(b"holds")


def test_a_lock_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Failed, match=r"file/lock: cannot be written"), locked(tmp_path / "file" / "lock"):
        pass


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


# ---- what several processes draw ----


def test_a_shard_owns_an_equal_contiguous_part() -> None:
    whole = torch.arange(24).view(12, 2)
    assert torch.equal(ALONE.own(whole), whole)
    parts = [Shard(rank, 4).own(whole) for rank in range(4)]
    assert {part.shape for part in parts} == {(3, 2)}
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(Shard(1, 3).own(whole), whole[4:8])


def draws(world: int) -> list[Draw]:
    return [Draw(generator(0, "holes", 1), Shard(rank, world)) for rank in range(world)]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_each_shard_draws_its_rows_of_the_whole_batch(world: int) -> None:
    def drawn(draw: Draw, x: torch.Tensor) -> list[torch.Tensor]:
        rows = len(x)
        found = [draw.part(rows, lambda count, random: torch.randint(0, 99, (count, 3), generator=random))]
        found += [draw.rand(rows), draw.rand(rows, 2, 5), draw.dropout(x, 0.3, training=True), draw.rand(rows)]
        return found  # the last: what follows is drawn from the same place, too

    x = torch.randn(8, 6)
    (alone,) = draws(1)
    whole = drawn(alone, x)
    assert [tuple(part.shape) for part in whole] == [(8, 3), (8,), (8, 2, 5), (8, 6), (8,)]
    parts = [drawn(draw, draw.shard.own(x)) for draw in draws(world)]
    for together, *apart in zip(whole, *parts, strict=True):
        assert {len(part) for part in apart} == {8 // world}
        assert torch.equal(torch.cat(apart), together)
    assert not torch.equal(whole[1], whole[4])


def test_dropout_zeroes_a_share_and_keeps_the_mean() -> None:
    x = torch.ones(100, 100)
    for share in (0.2, 0.5):
        dropped = Draw(generator(0)).dropout(x, share, training=True)
        assert abs((dropped == 0).float().mean().item() - share) < 0.02
        torch.testing.assert_close(dropped[dropped != 0], torch.full_like(dropped[dropped != 0], 1 / (1 - share)))
    draw = Draw(generator(0))
    assert draw.dropout(x, 0.5, training=False) is x
    assert torch.equal(draw.rand(4), Draw(generator(0)).rand(4))  # outside training nothing is drawn
    y = x.clone().requires_grad_()
    (dropped := Draw(generator(0)).dropout(y, 0.5, training=True)).sum().backward()
    assert torch.equal(y.grad, dropped.detach())  # no gradient reaches what was dropped


def test_draws_are_uniform_and_know_their_place() -> None:
    found = Draw(generator(0)).rand(10_000)
    assert 0 <= found.min() < 0.01
    assert 0.99 < found.max() < 1
    assert abs(found.mean().item() - 0.5) < 0.02
    outside = Draw(generator(0))
    assert (outside.shard, outside.iteration, outside.iterations) == (ALONE, 0, 0)


# ---- what is shown ----


@pytest.mark.parametrize(("rank", "shown"), [(None, True), ("0", True), ("1", False)])
def test_one_process_speaks_for_all(
    rank: str | None, shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank:
        monkeypatch.setenv("RANK", rank)
    log("a line")
    assert list(progress("abc", "letters", total=3)) == ["a", "b", "c"]
    with Progress("steps", total=1) as bar:
        bar.step("loss 1")
    assert bar.done == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == ("a line\nletters: 3/3\nsteps: 1/1 loss 1\n" if shown else "")


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
