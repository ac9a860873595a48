"""What the command line says of values that are odd, terminals that are, and errors that nobody foresaw: one line."""

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cli, table2
from benchmarks.failures import one_line
from benchmarks.values import bench_data
from pretrain.files import Missing, Usage

ROOT = Path(__file__).parents[1]
TABLE = "| a | 22.9 ± 0.3 – “b” |\n"


def bench(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    try:
        code = cli.main(arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    return code, *capsys.readouterr()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BENCH_DATA", raising=False)
    return tmp_path


@pytest.fixture
def answers(here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    """Let `bench table2` answer with a text, or raise an error."""

    def set_to(answer: object) -> None:
        def report(*_arguments: Any, **_options: Any) -> str:
            path = here / "some file"
            if isinstance(answer, BaseException):
                raise answer
            return f"{answer}" if path else ""

        monkeypatch.setattr(table2, "report", report)

    return set_to


# ---- values ----

LONG = "x" * 300
VALUES = [
    *(["pretrain", "--batch", value] for value in ("0", "-1", "1e3", "1.5", "nan", "", " ", "9" * 30, "9" * 5000, "٣")),
    *(["pretrain", "--batch", value] for value in ("100000", "1_000", "0x10", "\0", "\ud800", "a\nb")),
    *(["pretrain", "--iterations", value] for value in ("-1", "inf", "9" * 12, "1,000", "")),
    *(["pretrain", "--lr", value] for value in ("0", "-1", "nan", "inf", "1e999", "", "1_0", "0,1", "1e-999", "１")),
    *(["pretrain", "--seed", value] for value in ("-1", "4294967296", "x", "1.0")),
    *(["pretrain", "--save-at", "0", value] for value in ("-3", "x", "9" * 12)),
    *(["pretrain", "--label", value] for value in ("a/b", "a b", "\0", "a\n", "x" * 101, "é", "..\\x")),
    *(["pretrain", "--images", value] for value in ("", LONG, "a/" * 3000, "a\0b", "\ud800")),
    *(["transfer", "--task", "svm", "--recipe", value] for value in ("", "../x", "**", "/a", "a\0", LONG)),
    *(["transfer", "--task", "svm", "--data", value] for value in ("", LONG, "a\0b", "\udfff\ud800")),
    *(["table2", "--results", value] for value in ("", LONG, "\0", "\ud800")),
    *(["table2", "--recipe", value] for value in ("", "*", "/etc", "..", "a/b", "\0")),
    *(["compare", "a", "b", "--recipe", value] for value in ("", "../x")),
    *(["curve", value] for value in ("", LONG, "\0", "\ud800")),
    *(["run", value] for value in ("", LONG, "a\0", "\ud800")),
    ["run", "tiny", "--workers", "0"],
    ["run", "tiny", "--workers", "9" * 9],
    ["data", "subset", "a", "b", "--images", "0"],
    ["data", "holdout", "a", "b", "--every", "0"],
    ["data", "check", ""],
    ["data", "tiny", "\0"],
    ["import", LONG],
    ["import", "x", "--mean", "1", "nan", "2"],
    ["import", "x", "--method", ".hidden"],
    ["doctor", "--data", "\0"],
    ["pretrain", "--no-such-option"],
    ["no-such-command"],
]


@pytest.mark.parametrize(
    "arguments", VALUES, ids=lambda a: " ".join(a)[:60].encode("ascii", "backslashreplace").decode()
)
def test_an_odd_value_is_one_line_and_2(arguments: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = bench(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("bench: ")
    assert err.rstrip("\n").isprintable()
    assert len(err) < 600
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    "name", ["abacus", "", "meta", "mps", "cuda:x", "cuda:-1", "cuda:9999", "cpu:1", "CPU", "cuda\0"]
)
def test_an_odd_device_is_one_line_and_2(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = bench(capsys, "pretrain", "--device", name)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--device" in err
    assert not list(here.iterdir())


def test_a_gpu_that_is_not_there_is_missing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    code, _, err = bench(capsys, "pretrain", "--device", f"cuda:{torch.cuda.device_count()}")
    assert (code, err.count("\n")) == (3, 1)


def test_values_that_are_right_are_taken(here: Path) -> None:
    from benchmarks.options import parser

    given = ["pretrain", "--batch", "65536", "--lr", "1e-4", "--seed", "4294967295", "--images", "caf\udce9", "a"]
    options = parser().parse_args([*given[:-1], "--label", "v1.0+x", "--save-at", "0", "10"])
    assert (options.batch, options.lr, options.seed, options.save_at) == (65536, 1e-4, 2**32 - 1, [0, 10])
    assert os.fsencode(options.images[0]) == b"caf\xe9"
    assert parser().parse_args(["import", "x", "--mean", "1", "-.5", "2e1"]).mean == [1, -0.5, 20]


def test_bench_data_is_validated(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("nowhere", "x" * 5000, f"{here}/\udce9"):
        monkeypatch.setenv("BENCH_DATA", value)
        with pytest.raises(Missing, match=r"^\$BENCH_DATA: "):
            bench_data()
    monkeypatch.setenv("BENCH_DATA", "")
    assert bench_data() is None
    monkeypatch.setenv("BENCH_DATA", str(here))
    assert bench_data() == here


# ---- stdout ----


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-16", "utf-8"])
def test_a_table_is_utf_8_on_any_terminal(
    encoding: str, answers: Callable[[object], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(TABLE)
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    assert cli.main(["table2"]) == 0
    assert raw.getvalue() == TABLE.encode()


def test_a_name_comes_out_as_the_bytes_it_is(
    answers: Callable[[object], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    answers("runs/caf\udce9")
    assert cli.main(["table2"]) == 0
    answers("a\ud800b")  # no bytes at all
    assert cli.main(["table2"]) == 0
    assert raw.getvalue() == b"runs/caf\xe9\na\\ud800b\n"


class Broken(io.RawIOBase):
    """A file that cannot be written."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        if self.number:
            raise OSError(self.number, os.strerror(self.number))
        return len(content)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "disk full"),
        (errno.EDQUOT, "disk full"),
        (errno.EIO, "error"),
        (errno.EPIPE, "closed by its reader"),
    ],
)
def test_an_answer_that_cannot_be_written_is_one_line(
    number: int, said: str, answers: Callable[[object], None], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    answers(TABLE)
    for arguments in (["table2"], ["--help"], ["pretrain", "--help"]):
        broken = Broken(number)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(broken), encoding="utf-8"))
            try:
                code: object = cli.main(arguments)
            except SystemExit as stop:
                code = stop.code
            broken.number = 0
            sys.stdout.flush()
        err = capsys.readouterr().err
        assert (code, err.count("\n")) == (1, 1)
        assert err.startswith("bench: stdout: ")
        assert said in err


def test_no_stdout_at_all(
    answers: Callable[[object], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(TABLE)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        assert cli.main(["table2"]) == 1
    assert capsys.readouterr().err.startswith("bench: stdout: closed")


def test_a_stream_without_bytes_is_written_too(
    answers: Callable[[object], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(TABLE)
    text = io.StringIO()
    monkeypatch.setattr(sys, "stdout", text)
    assert cli.main(["table2"]) == 0
    assert text.getvalue() == TABLE


def test_stderr_that_cannot_be_written_ends_nothing(
    answers: Callable[[object], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pretrain.progress import Progress, log

    answers(TABLE)
    broken = Broken(errno.ENOSPC)
    with monkeypatch.context() as patch:
        stream = io.TextIOWrapper(io.BufferedWriter(broken), encoding="utf-8", line_buffering=True)
        patch.setattr(sys, "stderr", stream)
        log("a line")
        with Progress("train", total=1) as shown:
            shown.step()
        assert cli.main(["table2"]) == 0
        broken.number = 0
        stream.flush()
    assert capsys.readouterr().out == TABLE


@pytest.mark.parametrize(
    ("shell", "code"), [(">&-", 1), (">/dev/full", 1), ("2>&-", 0), ("2>/dev/full", 0), ("| true", 1)]
)
def test_the_whole_process_ends_so(shell: str, code: int, tmp_path: Path) -> None:
    """Its own end, too, when Python writes what is left. `fetch` without a known name is quick; so is its list."""
    program = (
        "import sys, types; sys.modules['benchmarks.table2'] = types.ModuleType('t'); "
        "sys.modules['benchmarks.table2'].report = lambda *a, **k: 'x' * 100000; "
        "from benchmarks.cli import main; sys.exit(main(['table2']))"
    )
    command = f'{{ "$P" -c "$PROGRAM"; echo $? > code; }} {shell}'
    environment = os.environ | {"P": sys.executable, "PROGRAM": program, "PYTHONPATH": str(ROOT)}
    subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, check=False, capture_output=True, timeout=60)
    assert (tmp_path / "code").read_text() == f"{code}\n"


# ---- errors that nobody foresaw ----


class Odd(Exception):
    pass


FAULTS: dict[str, tuple[Exception, int, str]] = {
    "a bug": (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero"),
    "of several lines": (Odd("one\ntwo\x1b[31m\n\nthree"), 1, "Odd: one two\\x1b[31m three"),
    "without a word": (Odd(), 1, "Odd"),
    "endless": (Odd("x" * 10**6), 1, "xxx"),
    "a surrogate": (Odd("caf\udce9"), 1, "caf\\udce9"),
    "no rights": (PermissionError(errno.EACCES, "Permission denied", "/a/b"), 1, "/a/b: Permission denied"),
    "a read-only disk": (OSError(errno.EROFS, "Read-only file system", "/a"), 1, "/a: Read-only file system"),
    "too long a name": (OSError(errno.ENAMETOOLONG, "File name too long", "/aaa"), 2, "/aaa: File name too long"),
    "a full disk": (OSError(errno.ENOSPC, "No space left on device", "/a"), 1, "/a: disk full"),
    "no memory": (MemoryError(), 1, "out of memory"),
    "no memory of a GPU": (RuntimeError("CUDA out of memory. Tried to allocate"), 1, "give a smaller --batch"),
    "deep": (RecursionError("maximum recursion depth exceeded"), 1, "RecursionError"),
    "not text": (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 1, "can't decode byte 0xff"),
    "ours": (Usage("--x: no"), 2, "--x: no"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_an_error_is_one_line_with_a_log(
    kind: str, answers: Callable[[object], None], capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "logs"))
    error, code, said = FAULTS[kind]
    answers(error)
    found, out, err = bench(capsys, "table2")
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert err.startswith("bench: ")
    assert said in err
    assert err.rstrip("\n").isprintable()
    assert len(err) < 1000
    logs = list((tmp_path / "logs").glob("*"))
    if "traceback: " in err:
        (log,) = logs
        assert f"traceback: {log}" in err
        assert "Traceback (most recent call last)" in log.read_text()
    else:
        assert not logs
        assert kind in ("a full disk", "ours", "too long a name")


def test_the_log_lies_with_the_runs_and_a_file_is_named(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pretrain import alexnet

    def fails(path: Path) -> None:
        raise ValueError(f"odd bytes in {len(str(path))}")

    monkeypatch.setattr(alexnet, "read_encoder", lambda path: fails(path))
    code, _, err = bench(capsys, "rescale", "some.safetensors", "--runs", "kept")
    assert (code, err.count("\n")) == (1, 1)
    (log,) = (here / "kept" / "errors").iterdir()
    assert f"traceback: {log.relative_to(here)}" in err
    assert "bench rescale" in err


def test_no_place_for_a_log_is_no_second_error(
    answers: Callable[[object], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/proc/nowhere")
    answers(Odd("x"))
    assert "no place for a log" in bench(capsys, "table2")[2]


def test_one_line_is_one_line() -> None:
    assert one_line("a\nb\tc\x00\ud800é–") == "a b\\tc\\x00\\ud800é–"
    assert len(one_line("x" * 10**5)) < 2100
