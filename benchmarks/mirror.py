"""One answer of a server, bounded: its head comes in time, and what it says of its length can be."""

import contextlib
import http.client
import socket
import threading
import urllib.error
import urllib.request
from typing import Any

from pretrain.contents import printable

TIMEOUT = 30.0  # seconds without a byte
ANSWER = 60.0  # seconds for the head of an answer
LARGEST = 2**32  # bytes: no known file has a sixth of that


class Broken(Exception):
    """This mirror did not give the file, and why."""


class _Hurried:
    """A connection whose head of an answer has to come within ANSWER seconds, however slowly."""

    def getresponse(self) -> Any:
        timer = threading.Timer(ANSWER, self._hang_up)
        timer.daemon = True
        timer.start()
        try:
            return super().getresponse()  # type: ignore[misc]
        finally:
            timer.cancel()

    def _hang_up(self) -> None:
        if (sock := getattr(self, "sock", None)) is not None:
            with contextlib.suppress(OSError):  # it was just closed
                sock.shutdown(socket.SHUT_RDWR)


class _Plain(_Hurried, http.client.HTTPConnection):
    pass


class _Secure(_Hurried, http.client.HTTPSConnection):
    pass


class _HTTP(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_Plain, req)


class _HTTPS(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_Secure, req, context=self._context)  # type: ignore[attr-defined]


def opened(url: str, have: int, tag: str) -> Any:
    """The response for what is behind byte `have`; None when the server says that there is nothing."""
    headers = {"User-Agent": "context-encoder-bench"} | ({"Range": f"bytes={have}-"} if have else {})
    headers |= {"If-Range": tag} if have and tag else {}
    try:
        opener = urllib.request.build_opener(_HTTP, _HTTPS)
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:
            return None
        raise Broken(short(f"HTTP {error.code} {error.reason}")) from error
    except urllib.error.URLError as error:
        raise Broken(short(f"{error.reason}")) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Broken(short(f"{error}" or type(error).__name__)) from error
    kind = response.headers.get_content_type()
    if not isinstance(response, http.client.HTTPResponse) or kind in ("text/html", "application/xhtml+xml"):
        response.close()
        raise Broken(f"sends {kind}, a web page, not the file: gone, moved or behind a login")
    return response


def short(text: str) -> str:
    """What a server says, on one line that is not long."""
    return printable(" ".join(text.split()))[:200]


def start(response: Any) -> int:
    """The first byte that a partial response holds; -1 when it does not say."""
    said = response.headers.get("Content-Range", "").removeprefix("bytes ").split("-")[0]
    return int(said) if said.isascii() and said.isdecimal() and len(said) <= 15 else -1


def length_of(response: Any) -> int | None:
    """The bytes that are to come, None if the server does not say. Raises Broken for what no weights file holds."""
    said = response.headers.get("Content-Length") or ""
    if not (said.isascii() and said.isdecimal()):
        return None
    if len(said) > 15 or int(said) > LARGEST:
        size = f"{int(said):,} bytes" if len(said) <= 15 else f"a number of {len(said):,} digits"
        raise Broken(f"says that it sends {size}, more than any weights file has")
    return int(said)
