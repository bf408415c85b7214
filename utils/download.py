"""Download a large file: resumed where it broke, tried again, of the size that was published."""

import http.client
import json
import re
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from utils.archives import DataError, require_space
from utils.files import write_bytes

TIMEOUT_S = 60
WAITS_S: Sequence[float] = (1, 4, 15, 60)  # before each further attempt
CHUNK = 1 << 20
# Worth another attempt.
BROKEN = (URLError, ConnectionError, TimeoutError, http.client.HTTPException, ssl.SSLError)
SPACE = 2.1  # times an archive's size: the archive and its images, which hardly shrink in it


def download(url: str, file: Path, size: int, bar: tqdm) -> None:
    """Download `size` bytes to FILE.part, from where an earlier attempt or run left it, then
    rename that.

    Raises:
        DataError: no room, no such file, another size, or a connection that breaks each time.
    """
    part, start = file.with_name(f"{file.name}.part"), bar.n
    require_space(part.parent, SPACE * size - _size(part))
    for wait in (*WAITS_S, None):
        try:
            if _size(part) != size:
                transfer(url, part, size, bar, start)
            part.replace(file)
            _note(part).unlink(missing_ok=True)
            return
        except BROKEN as error:
            if isinstance(error, HTTPError):
                error.close()
                if error.code == 416:  # the part is longer than what the server has now
                    part.unlink(missing_ok=True)
                elif error.code < 500 and error.code != 429:
                    raise DataError(
                        f"expected a file, got {error.code} {error.reason}: {url}; "
                        "give a mirror by --url"
                    ) from error
            if wait is None:
                raise DataError(
                    f"expected {size} bytes, got {_size(part)} in {len(WAITS_S) + 1}"
                    f" attempts, {error}: {url}; run this again to continue"
                ) from error
            time.sleep(wait)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _note(part: Path) -> Path:
    """Where that is kept which tells the server's file from another."""
    return part.with_name(f"{part.name}.json")


def transfer(url: str, part: Path, size: int, bar: tqdm, start: int) -> None:
    """One request: append what `part` lacks, or write it anew if the server sends all of it.

    The bar stands at `start` without this file.

    Raises:
        Those of BROKEN, also if the file is another than that of the part, which is removed then.
    """
    have = _size(part)
    request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urlopen(request, timeout=TIMEOUT_S) as response:
        span = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        at = int(span[1]) if span else 0
        total = None if response.length is None else at + response.length
        stamp = json.dumps([response.headers["ETag"], response.headers["Last-Modified"], total])
        if total not in (None, size):
            raise DataError(
                f"expected {size} bytes, as published, got a file of {total}: {url};"
                " give a mirror by --url"
            )
        if response.status == 206:
            note = _note(part)
            if at != have or not note.exists() or note.read_text() != stamp:
                part.unlink(missing_ok=True)
                raise ConnectionError("the file has changed since its first part")
        write_bytes(_note(part), stamp.encode())
        bar.n = bar.last_print_n = start + at
        with part.open("ab" if at else "wb") as file:
            while chunk := response.read1(min(CHUNK, size - at)):
                file.write(chunk)
                at += len(chunk)
                bar.update(len(chunk))
    if at < size:
        raise ConnectionError(f"the connection ended at byte {at}")
