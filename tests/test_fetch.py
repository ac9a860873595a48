"""`bench fetch` against a real HTTP server on this machine: resume, mirrors, checksums, dead hosts."""

import contextlib
import hashlib
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import fetch as fetching
from benchmarks import mirror, weights
from benchmarks.cli import main
from benchmarks.weights import Known

CONTENT = bytes(range(256)) * 12_000  # 3 MB


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT at any path but /missing; what it does is set by a test."""

    ranges = True  # whether Range is honoured
    most: int | None = None  # bytes after which the connection is cut
    shift = 0  # how far a partial answer starts behind what was asked
    content = CONTENT
    pages: dict[str, tuple[str, bytes]]  # path → content type and content, instead
    tag = ""  # the ETag of its file
    length = ""  # what it says of the length, instead of the truth
    pause = 0.0  # seconds between single bytes, of which it sends no end
    asked: list[str | None]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        said, content = self.headers.get("Range"), self.server.content
        self.server.asked.append(said)
        if self.path.endswith("/missing"):
            return self.send_error(404)
        kind, content = self.server.pages.get(self.path, ("", content))
        if self.server.pause:
            return self._trickle()
        start = int(said.removeprefix("bytes=").rstrip("-")) + self.server.shift if said and self.server.ranges else 0
        if start and start >= len(content):
            return self.send_error(416)
        self.send_response(206 if said and self.server.ranges else 200)
        if said and self.server.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", self.server.length or str(len(content) - start))
        for name, value in (("ETag", self.server.tag), ("Content-Type", kind)):
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[start:][: self.server.most])
        return None

    def _trickle(self) -> None:
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(200):
                self.wfile.write(b"\0" * 64)
                time.sleep(self.server.pause)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.asked, running.pages = [], {}
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def dead() -> str:
    """The address of a port where nobody listens."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{closed.getsockname()[1]}/a.bin"


def fetch(monkeypatch: pytest.MonkeyPatch, folder: Path, *urls: str, **changed: Any) -> int:
    entry = {"name": "mine", "method": "x", "title": "Mine", "source": "here", "remarks": "Nothing.", "file": "a.bin"}
    monkeypatch.setattr(weights, "known_files", lambda: {"mine": Known(**entry | {"urls": urls} | changed)})
    return main(["fetch", "mine", "--to", str(folder)])


def at(server: Server, name: str = "a.bin") -> str:
    return f"http://127.0.0.1:{server.server_port}/{name}"


SHA256 = hashlib.sha256(CONTENT).hexdigest()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "sums", [{}, {"sha256": SHA256}, {"md5": hashlib.md5(CONTENT).hexdigest()}, {"sha256": SHA256[:8]}]
)
def test_a_file_is_fetched_once(server, tmp_path, monkeypatch, capsys, sums):
    for _ in range(2):
        assert fetch(monkeypatch, tmp_path / "w", at(server), **sums) == 0
        assert capsys.readouterr().out == f"{tmp_path}/w/a.bin\n"
    assert (tmp_path / "w" / "a.bin").read_bytes() == CONTENT
    assert names(tmp_path / "w") == ["a.bin"]
    assert server.asked == [None]


def test_a_download_that_broke_off_goes_on(server, tmp_path, monkeypatch, capsys):
    server.most = 1_100_000
    assert fetch(monkeypatch, tmp_path, at(server), sha256=SHA256) == 3
    assert "broke off" in capsys.readouterr().err
    (part,) = tmp_path.iterdir()
    have = part.stat().st_size
    assert 0 < have <= 1_100_000
    server.most = None
    assert fetch(monkeypatch, tmp_path, at(server), sha256=SHA256) == 0
    assert server.asked == [None, f"bytes={have}-"]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("how", ["no ranges", "another place", "all there", "more than all"])
def test_a_server_that_does_not_go_on_is_asked_for_the_whole(server, tmp_path, monkeypatch, how):
    server.most = 1_100_000
    fetch(monkeypatch, tmp_path, at(server))
    (part,) = tmp_path.iterdir()
    server.most, server.ranges = None, how != "no ranges"
    if how == "all there":
        part.write_bytes(CONTENT)
    if how == "more than all":
        part.write_bytes(CONTENT + b"more")
    if how == "another place":
        server.shift = 7
        assert fetch(monkeypatch, tmp_path, at(server), sha256=SHA256) == 1  # a lying server: noticed by the checksum
        server.shift = 0
    assert fetch(monkeypatch, tmp_path, at(server), sha256=SHA256) == 0
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_mirrors_in_order(server, dead, tmp_path, monkeypatch, capsys):
    assert fetch(monkeypatch, tmp_path, dead, at(server, "missing"), at(server), sha256=SHA256) == 0
    said = capsys.readouterr().err
    assert "Connection refused" in said
    assert "HTTP 404" in said
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_dead_hosts_are_named_in_one_line(server, dead, tmp_path, monkeypatch, capsys):
    assert fetch(monkeypatch, tmp_path, dead, at(server, "missing")) == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert all(host.split("/")[2] in last for host in (dead, at(server)))
    assert "elsewhere" in last
    assert names(tmp_path) == []


def test_another_file_is_removed(server, tmp_path, monkeypatch, capsys):
    server.content = b"<html>moved</html>"
    assert fetch(monkeypatch, tmp_path, at(server), sha256=SHA256) == 1
    assert "another file than the known one (checksum), removed" in capsys.readouterr().err
    assert names(tmp_path) == []


def test_another_file_that_lies_there_is_left(server, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.bin").write_bytes(b"mine")
    assert fetch(monkeypatch, tmp_path, at(server), sha256=SHA256) == 1
    assert "delete it and fetch again" in capsys.readouterr().err
    assert (tmp_path / "a.bin").read_bytes() == b"mine"


def test_something_else_than_http_answers(tmp_path, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"220 mail\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert fetch(monkeypatch, tmp_path, f"http://127.0.0.1:{listener.getsockname()[1]}/a.bin") == 3
        thread.join()
    assert "bench: mine: cannot be fetched" in capsys.readouterr().err


def test_no_address(tmp_path, monkeypatch, capsys):
    assert fetch(monkeypatch, tmp_path, remarks="Ask the authors.") == 3
    assert "Ask the authors." in capsys.readouterr().err


def test_an_unknown_name_lists_the_names(capsys):
    assert main(["fetch", "nothing"]) == 2
    said = capsys.readouterr().err
    assert all(name in said for name in ("context-encoder", "caffenet", "torchvision-alexnet"))


def test_a_folder_that_cannot_be_made(server, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    assert fetch(monkeypatch, tmp_path / "file", at(server)) == 1
    assert "cannot be written" in capsys.readouterr().err


PAGE = b"\xef\xbb\xbf\n<!DOCTYPE html><html><head><title>Moved</title></head></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 244418560\n"
# what came: its declared type, its first bytes, and what is said of it
INSTEAD = {
    "a page by its type": ("text/html; charset=utf-8", b"\0\1\2", "sends text/html, a web page"),
    "a page by its content": ("application/octet-stream", PAGE, "a web page or XML"),
    "a page without a doctype": ("", b"<head><script>top.location='x'</script>", "a web page or XML"),
    "an error of a store": ("application/xml", b"<?xml version='1.0'?><Error>NoSuchKey</Error>", "a web page or XML"),
    "a Git LFS pointer": ("", POINTER, "a Git LFS pointer to 244,418,560 bytes"),
    "a text": ("", b"404: Not Found", "a text (it begins '404: Not Found')"),
    "an answer in JSON": ("application/json", b'{"error": "quota exceeded"}', "a text (it begins"),
    "a zip": ("", b"PK\x03\x04" + bytes(99), "an archive (zip): unpack it"),
    "a gzip": ("", b"\x1f\x8b\x08" + bytes(99), "an archive (gzip): unpack it"),
    "an HDF5 file": ("", b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
    "nothing": ("", b"", "an empty file"),
}


@pytest.mark.parametrize("case", INSTEAD)
def test_what_is_no_weights_is_not_taken_and_the_next_mirror_is_asked(server, tmp_path, monkeypatch, capsys, case):
    kind, content, said = INSTEAD[case]
    server.pages = {"/dead": (kind, content)}
    file = "a.caffemodel"
    assert fetch(monkeypatch, tmp_path, at(server, "dead"), file=file) == 3
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert names(tmp_path) == []  # so that the next call asks again
    assert fetch(monkeypatch, tmp_path, at(server, "dead"), at(server), file=file) == 0
    assert said in capsys.readouterr().err
    assert (tmp_path / file).read_bytes() == CONTENT
    (tmp_path / file).write_bytes(content)  # as older versions kept it
    if not kind.startswith("text/html"):
        assert fetch(monkeypatch, tmp_path, at(server), file=file) == 1
        assert f"already there, but {said[:6]}" in capsys.readouterr().err
        assert (tmp_path / file).read_bytes() == content


@pytest.mark.parametrize(("file", "begins"), [
    ("a.zip", b"PK\x03\x04"), ("a.npz", b"PK\x03\x04"), ("a.pth", b"PK\x03\x04"), ("a.pth", b"\x80\x02"),
    ("a.tar.gz", b"\x1f\x8b\x08"), ("a.npy", b"\x93NUMPY"),
])  # fmt: skip
def test_a_file_is_taken_for_what_its_name_says(server, tmp_path, monkeypatch, capsys, file, begins):
    server.content = begins + CONTENT
    assert fetch(monkeypatch, tmp_path, at(server), file=file) == 0
    server.content = b"\7" + CONTENT
    (tmp_path / file).unlink()
    assert fetch(monkeypatch, tmp_path, at(server), file=file) == 3
    assert f"no {Path(file).suffix} file by its first bytes" in capsys.readouterr().err


def test_what_broke_off_goes_on_only_where_it_is_the_same_file(server, tmp_path, monkeypatch):
    """Without a checksum only the server's tag can tell."""
    for tag, asked in (("", None), ('W/"weak"', None), ('"a"', "bytes=")):
        server.most, server.tag, server.asked = 1_100_000, tag, []
        assert fetch(monkeypatch, tmp_path, at(server)) == 3
        server.most = None
        assert fetch(monkeypatch, tmp_path, at(server)) == 0
        assert server.asked[0] is None
        assert (server.asked[1] or "").startswith(asked) if asked else server.asked[1] is None
        assert (tmp_path / "a.bin").read_bytes() == CONTENT
        assert names(tmp_path) == ["a.bin"]
        (tmp_path / "a.bin").unlink()


@pytest.mark.parametrize("length", ["9" * 5000, str(2**50), "-1", "many", "\u0663"])
def test_an_odd_length_is_one_line(server, tmp_path, monkeypatch, capsys, length):
    server.length = length.encode("utf-8").decode("latin1")
    code = fetch(monkeypatch, tmp_path, at(server), sha256=SHA256)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    if len(length) > 10:
        assert code == 3
        assert "more than any weights file has" in said
    else:
        assert code in (0, 3)


def test_a_download_that_trickles_is_given_up(server, tmp_path, monkeypatch, capsys):
    server.pause = 0.02
    monkeypatch.setattr(fetching, "PATIENCE", 0.2)
    monkeypatch.setattr(fetching, "SLOWEST", 10**6)
    assert fetch(monkeypatch, tmp_path, at(server)) == 3
    assert "too slow: " in capsys.readouterr().err


def test_a_download_without_an_end_is_given_up(server, tmp_path, monkeypatch, capsys):
    server.pause = 0.001
    monkeypatch.setattr(mirror, "LARGEST", 1000)
    assert fetch(monkeypatch, tmp_path, at(server)) == 3
    assert "does not end after 1,0" in capsys.readouterr().err
    assert all(path.stat().st_size == 0 for path in tmp_path.iterdir())


def test_an_answer_whose_head_trickles_is_given_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mirror, "ANSWER", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                for _ in range(500):
                    connection.sendall(b"x")
                    time.sleep(0.01)

        thread = threading.Thread(target=answer)
        thread.start()
        begun = time.monotonic()
        assert fetch(monkeypatch, tmp_path, f"http://127.0.0.1:{listener.getsockname()[1]}/a.bin") == 3
        assert time.monotonic() - begun < 4
        thread.join()
    assert "bench: mine: cannot be fetched" in capsys.readouterr().err


def test_two_at_once_fetch_once(server, tmp_path, monkeypatch):
    entry = Known("mine", "x", "Mine", (at(server),), "here", "Nothing.", file="a.bin")
    threads = [threading.Thread(target=fetching.fetch, args=(entry, tmp_path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.asked == [None]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
