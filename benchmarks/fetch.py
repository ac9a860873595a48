"""`bench fetch`: one known weights file over HTTP, resumed, checked, put in place in one step."""

import hashlib
import http.client
import math
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.weights import Known
from pretrain.files import Failed, Missing, write_error
from pretrain.progress import Progress, log

CHUNK = 2**20
TIMEOUT = 30.0  # seconds without a byte


class Broken(Exception):
    """This mirror did not give the file, and why."""


def fetch(known: Known, folder: Path) -> Path:
    """Download `known` into `folder`, from the first mirror that has it; return the file.

    A download that broke off goes on where it was. Raises Missing when no mirror answers, and Failed
    when what came, or what lies there already, has another checksum (what came is removed).
    """
    if not known.importable:
        log(f"{known.name}: cannot be imported: {known.remarks}")
    if not known.urls:
        raise Missing(f"{known.name}: no address to fetch it from: {known.remarks} See {known.source}")
    path = folder / known.file
    if path.is_file():
        if known.matches(path) is False:
            raise Failed(f"{path}: its checksum is not that of {known.name!r}: delete it and fetch again")
        log(f"{path}: already there")
        return path
    reasons, wrong = [], False
    for url in known.urls:
        part = folder / f".{known.file}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part"
        host = urllib.parse.urlsplit(url).netloc
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _download(url, part)
        except Broken as error:
            reasons.append(f"{host}: {error}")
            if url != known.urls[-1]:
                log(f"{host}: {error}: trying the next")
            continue
        except OSError as error:
            raise write_error(path, error) from error
        if known.matches(part) is False:
            part.unlink()
            wrong = True
            reasons.append(f"{host}: another file than the known one (checksum), removed")
            continue
        part.replace(path)
        log(f"{path}: fetched from {host}" + ("" if known.matches(path) else "; no checksum of it is known"))
        return path
    kind, then = (
        Failed if wrong else Missing,
        f" and `bench import FILE --known {known.name}`" if known.importable else "",
    )
    raise kind(f"{known.name}: cannot be fetched ({'; '.join(reasons)}): no network, or gone: run the same command "
               f"again, or obtain {known.file} elsewhere{then}")  # fmt: skip


def _download(url: str, part: Path) -> None:
    """`url` → `part`, going on behind what it holds. Raises Broken; an OSError is of the disk."""
    have = part.stat().st_size if part.is_file() else 0
    response = _opened(url, have)
    if response is None:  # nothing behind what is there: a whole file, or one of another version
        part.unlink()
        have, response = 0, _opened(url, 0)
    with response:
        going_on = response.status == 206 and _start(response) == have
        if have and not going_on:
            log(f"{url}: the server does not go on where the file stopped: from the start")
        offset = have if going_on else 0
        length = response.headers.get("Content-Length")
        total = offset + int(length) if length and length.isdecimal() else None
        with part.open("ab" if going_on else "wb") as file:
            _copy(response, file, name=part.name, offset=offset, total=total)
    if total is not None and part.stat().st_size != total:
        raise Broken(f"broke off after {part.stat().st_size:,} of {total:,} bytes; the same command goes on there")


def _opened(url: str, have: int) -> Any:
    """The response for what is behind byte `have`; None when the server says that there is nothing."""
    headers = {"User-Agent": "context-encoder-bench"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:
            return None
        raise Broken(f"HTTP {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise Broken(f"{error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Broken(f"{error or type(error).__name__}") from error


def _start(response: Any) -> int:
    """The first byte that a partial response holds; -1 when it does not say."""
    said = response.headers.get("Content-Range", "").removeprefix("bytes ").split("-")[0]
    return int(said) if said.isdecimal() else -1


def _copy(response: Any, file: Any, *, name: str, offset: int, total: int | None) -> None:
    count = math.ceil((total or 0) / CHUNK)
    with Progress(name, total=count, start=offset // CHUNK) as shown:
        while True:
            try:
                chunk = response.read(CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise Broken(f"broke off ({error or type(error).__name__}); the same command goes on there") from error
            if not chunk:
                return
            file.write(chunk)
            shown.step("MiB")
