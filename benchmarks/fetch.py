"""`bench fetch`: one known weights file over HTTP, resumed, judged by what it is, put in place in one step."""

import fcntl
import hashlib
import http.client
import math
import os
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import mirror
from benchmarks.mirror import Broken, length_of, opened, short, start
from benchmarks.weights import Known
from pretrain.contents import head_of, mistaken
from pretrain.files import Failed, Missing, write_error, write_text
from pretrain.progress import Progress, log

CHUNK = 2**20
PATIENCE, SLOWEST = 60.0, 1024  # a download that brings fewer bytes a second for so many seconds is given up


def fetch(known: Known, folder: Path) -> Path:
    """Download `known` into `folder`, from the first mirror that has it; return the file.

    A download that broke off goes on where it was. Raises Missing when no mirror has the file, and Failed
    when what came, or what lies there already, has another checksum or is no weights (what came is removed).
    """
    if not known.importable:
        log(f"{known.name}: cannot be imported: {known.remarks}")
    if not known.urls:
        raise Missing(f"{known.name}: no address to fetch it from: {known.remarks} See {known.source}")
    path = folder / known.file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            return _there(known, path) if path.is_file() else _fetched(known, path)
    except OSError as error:
        raise write_error(path, error) from error


def _there(known: Known, path: Path) -> Path:
    """The file that lies there, if it may be the one."""
    same = known.matches(path)
    if same is False:
        raise Failed(f"{path}: its checksum is not that of {known.name!r}: delete it and fetch again")
    if same is None and (why := mistaken(head_of(path), path.suffix)):
        raise Failed(f"{path}: already there, but {why}: delete it and fetch again")
    log(f"{path}: already there")
    return path


def _fetched(known: Known, path: Path) -> Path:
    """The file from the first mirror that has it."""
    reasons, wrong = [], False
    for url in known.urls:
        host = urllib.parse.urlsplit(url).netloc
        part = path.with_name(f".{known.file}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part")
        try:
            _download(url, part, known)
            break
        except Broken as error:
            reasons.append(f"{host}: {error}")
        except Wrong as error:
            wrong = True
            reasons.append(f"{host}: {error}")
        if url != known.urls[-1]:
            log(f"{reasons[-1]}: trying the next")
    else:
        kind = Failed if wrong else Missing
        then = f" and `bench import FILE --known {known.name}`" if known.importable else ""
        raise kind(f"{known.name}: cannot be fetched ({'; '.join(reasons)}): no network, or gone: run the same command "
                   f"again, or obtain {known.file} elsewhere{then}")  # fmt: skip
    part.replace(path)
    for left in path.parent.glob(f".{known.file}.*.part*"):  # of other mirrors
        left.unlink()
    log(f"{path}: fetched from {host}" + ("" if known.matches(path) else "; no checksum of it is known"))
    return path


class Wrong(Exception):
    """A whole file came, and it is another one than the known."""


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for another `bench fetch` into the same folder, which would write the same files."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"{folder}: waiting for another `bench fetch`")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


def _download(url: str, part: Path, known: Known) -> None:
    """`url` → `part`, checked. Raises Broken and Wrong; an OSError is of the disk."""
    tag = part.with_name(f"{part.name}.tag")  # by which the server knows its version of the file
    _receive(url, part, tag, checked=bool(known.checksum))
    suffix = Path(known.file).suffix
    why = mistaken(head_of(part), suffix)
    if known.matches(part) is False:
        _remove(part, tag)
        raise Wrong("another file than the known one (checksum), removed" + (f": {why}" if why else ""))
    if not known.checksum and why:
        _remove(part, tag)
        raise Broken(f"sends {why}")


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _receive(url: str, part: Path, tag: Path, *, checked: bool) -> None:
    """`url` → `part`, going on behind what it holds where that is certain to be of the same file."""
    known_tag = tag.read_text("utf-8") if tag.is_file() else ""
    have = part.stat().st_size if part.is_file() and (checked or known_tag) else 0
    response = opened(url, have, known_tag)
    if response is None:  # nothing behind what is there: a whole file, or one of another version
        _remove(part, tag)
        have, response = 0, opened(url, 0, "")
    with response:
        going_on = response.status == 206 and start(response) == have
        if have and not going_on:
            log(f"{url}: the server does not go on where the file stopped: from the start")
        offset = have if going_on else 0
        length = length_of(response)
        total = None if length is None else offset + length
        said = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        if said and not said.startswith("W/") and said.isascii() and len(said) < 200:
            write_text(tag, said)
        elif not going_on:
            _remove(tag)
        with part.open("ab" if going_on else "wb") as file:
            _copy(response, file, name=part.name, offset=offset, total=total)
    if total is not None and part.stat().st_size != total:
        raise Broken(f"broke off after {part.stat().st_size:,} of {total:,} bytes; the same command goes on there")


def _copy(response: Any, file: Any, *, name: str, offset: int, total: int | None) -> None:
    """What comes → `file`. Raises Broken when it breaks off, comes too slowly, or does not end."""
    count = math.ceil((total or 0) / CHUNK)
    begun, lately, done, shown_to = time.monotonic(), 0, offset, offset // CHUNK
    with Progress(name, total=count, start=offset // CHUNK) as shown:
        while True:
            try:
                chunk = response.read1(CHUNK)
            except (OSError, http.client.HTTPException, ValueError) as error:
                why = short(f"{error}" or type(error).__name__)
                raise Broken(f"broke off ({why}); the same command goes on there") from error
            if not chunk:
                if done % CHUNK:
                    shown.step("MiB")
                return
            file.write(chunk)
            done, lately = done + len(chunk), lately + len(chunk)
            if done > mirror.LARGEST:
                file.truncate(0)
                raise Broken(f"does not end after {done:,} bytes, more than any weights file has")
            if (now := time.monotonic()) - begun > PATIENCE:
                if lately < PATIENCE * SLOWEST:
                    raise Broken(f"too slow: {lately:,} bytes in {now - begun:.0f} seconds; the same command goes on")
                begun, lately = now, 0
            while shown_to < done // CHUNK:
                shown.step("MiB")
                shown_to += 1
