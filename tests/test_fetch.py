"""`bench fetch` against a real HTTP server on this machine: resume, mirrors, checksums, dead hosts."""

import hashlib
import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import weights
from benchmarks.cli import main
from benchmarks.weights import Known

CONTENT = bytes(range(256)) * 12_000  # 3 MB


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT at any path but /missing; what it does is set by a test."""

    ranges = True  # whether Range is honoured
    most: int | None = None  # bytes after which the connection is cut
    shift = 0  # how far a partial answer starts behind what was asked
    content = CONTENT
    asked: list[str | None]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        said, content = self.headers.get("Range"), self.server.content
        self.server.asked.append(said)
        if self.path.endswith("/missing"):
            return self.send_error(404)
        start = int(said.removeprefix("bytes=").rstrip("-")) + self.server.shift if said and self.server.ranges else 0
        if start >= len(content):
            return self.send_error(416)
        self.send_response(206 if said and self.server.ranges else 200)
        if said and self.server.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.server.most])
        return None

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.asked = []
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
