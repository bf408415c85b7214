"""Files and archives from elsewhere: downloads that go on where they broke, and images out of zips
and tars of unknown origin, whole or not at all, and nowhere else."""

import errno
import http.client
import json
import lzma
import os
import re
import shutil
import ssl
import stat
import struct
import sys
import tarfile
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PureWindowsPath
from tempfile import TemporaryDirectory, mkdtemp
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from utils.files import free_space, write_bytes
from utils.imaging import images
from utils.text import printable

TIMEOUT_S = 60
WAITS_S: Sequence[float] = (1, 4, 15, 60)  # before each further attempt
CHUNK = 1 << 20
# Worth another attempt.
BROKEN = (URLError, ConnectionError, TimeoutError, http.client.HTTPException, ssl.SSLError)
SPACE = 2.1  # times an archive's size: the archive and its images, which hardly shrink in it
BOMB = 20  # times an archive's size: more than images unpack to
MOST_ENTRIES = 1_000_000  # of an archive; LSDIR has 85,000
MOST_HEADER = 1 << 20  # bytes of what describes a file in a tar: a long name, for example
# What zipfile and tarfile raise of archives that are broken, or encrypted (RuntimeError), besides
# OSError, which has no number or is of names of which one is a file and a folder, or too long.
BROKEN_ARCHIVE = (
    *(zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, struct.error),
    *(RuntimeError, ValueError, LookupError, OverflowError, MemoryError),
)
NAMES_AT_ODDS = (
    *(None, errno.EINVAL, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG),
)


class DataError(ValueError):
    """Data that could not be had; the message says what to do."""


class ArchiveError(DataError):
    """An archive that is broken, or not the one expected."""


def download(url: str, file: Path, size: int, bar: tqdm) -> None:
    """Download `size` bytes to FILE.part, from where an earlier attempt or run left it, then
    rename that.

    Raises:
        DataError: no room, no such file, another size, or a connection that breaks each time.
    """
    part, start = file.with_name(f"{file.name}.part"), bar.n
    require_space(part.parent, SPACE * size - _size(part))
    tqdm.write(f"connecting to {url}", file=sys.stderr)
    waits = iter(WAITS_S)
    while True:
        before = _size(part)
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
            if _size(part) > before:  # a slow way is one, too
                waits = iter(WAITS_S)
            wait = next(waits, None)
            if wait is None:
                raise DataError(
                    f"expected {size} bytes, got {_size(part)}, and no more in {len(WAITS_S)}"
                    f" attempts, {error}: {url}; run this again to continue"
                ) from error
            tqdm.write(f"{url}: {error}; trying again in {wait:g} s", file=sys.stderr)
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
        bar.n = start + at
        bar.last_print_n = bar.n
        with part.open("ab" if at else "wb") as file:
            while chunk := response.read1(min(CHUNK, size - at)):
                file.write(chunk)
                at += len(chunk)
                bar.update(len(chunk))
    if at < size:
        raise ConnectionError(f"the connection ended at byte {at}")


@dataclass(frozen=True)
class Entry:
    """A file in an archive; `is_plain` if it is no link or device."""

    name: str
    size: int
    is_plain: bool
    open: Callable[[], IO[bytes]]


def require_space(folder: Path, size: float) -> None:
    """Raise DataError if there is no room for `size` bytes."""
    free = free_space(folder)
    if free is not None and free < size:
        raise DataError(
            f"expected {size / 1e9:.2f} GB free for {folder}, got {free / 1e9:.2f}: "
            "make room, or give --data_dir on another disk"
        )


@contextmanager
def scratch_in(data_dir: Path) -> Iterator[Path]:
    """A folder for what is not whole yet; nothing remains of it, nor of those of killed runs."""
    for leftover in data_dir.glob(".prepare.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with TemporaryDirectory(prefix=".prepare.", dir=data_dir) as folder:
        yield Path(folder)


def unpack(archive: Path, scratch: Path) -> Path:
    """A new folder in `scratch` with the images of a zip or tar.

    Raises:
        ArchiveError: it is broken, would fill the disk, or holds links or names that lead out of
            the folder.
    """
    # Called like the archive: Set5.zip may hold HR/ and LR/ themselves.
    folder = Path(mkdtemp(dir=scratch), archive.name.strip(".").split(".")[0])
    folder.mkdir()
    try:
        is_zip = zipfile.is_zipfile(archive)
        tar = partial(tarfile.open, tarinfo=_Member)
        with zipfile.ZipFile(archive) if is_zip else tar(archive) as opened:
            for entry in _harmless(archive, _entries(opened), folder):
                target = folder / entry.name
                if target.suffix.lower() in images.EXTENSIONS:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with entry.open() as packed, target.open("wb") as unpacked:
                        shutil.copyfileobj(packed, unpacked)
    except DataError:
        raise
    except (*BROKEN_ARCHIVE, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NAMES_AT_ODDS:
            raise  # the disk's, not the archive's
        reason = getattr(error, "strerror", None) or printable(str(error).partition("\n")[0])
        raise ArchiveError(f"expected a whole zip or tar, got {archive}: {reason}") from error
    return folder


class _Member(tarfile.TarInfo):
    """A header of a tar that is refused before its size is believed: tarfile would read as much
    into memory, or go back for ever."""

    def _proc_member(self, opened: tarfile.TarFile) -> Any:
        is_short = self.isdir() or self.islnk() or self.issym() or self.isreg() or self.isdev()
        if self.size < 0 or (not is_short and self.size > MOST_HEADER):
            raise ArchiveError(
                f"expected sizes of files in {opened.name!s}, got {self.size} for "
                f"{printable(self.name)}"
            )
        return super()._proc_member(opened)  # type: ignore[misc]


def _entries(opened: Any) -> Iterator[Entry]:
    """The files of an open zip or tar, in its own order."""
    if isinstance(opened, zipfile.ZipFile):
        for info in opened.infolist():
            name = info.filename.replace("\\", "/")  # as some programs of Windows write folders
            if not name.endswith("/"):
                is_plain = not stat.S_ISLNK(info.external_attr >> 16)
                yield Entry(name, info.file_size, is_plain, partial(opened.open, info))
        return
    for info in opened:
        if not info.isdir():
            yield Entry(info.name, info.size, info.isreg(), partial(opened.extractfile, info))


def _harmless(archive: Path, entries: Iterable[Entry], folder: Path) -> list[Entry]:
    """The entries, if unpacking them to `folder` does no harm; looked at one by one, for what
    follows a bomb in a tar is only found behind its content.

    Raises:
        ArchiveError: it would do harm.
        DataError: there is no room.
    """
    kept: list[Entry] = []
    total, packed = 0, archive.stat().st_size
    for entry in entries:
        path = PureWindowsPath(entry.name)  # knows drives and backslashes beside POSIX's slashes
        is_name = not any(unicodedata.category(c) in ("Cc", "Cs") for c in entry.name)
        inside = is_name and (folder / entry.name).resolve().is_relative_to(folder.resolve())
        if path.anchor or ".." in path.parts or not inside or not entry.is_plain or entry.size < 0:
            raise ArchiveError(
                f"expected plain files below one folder in {archive}, got {printable(entry.name)}"
            )
        total += entry.size
        if total > BOMB * packed or len(kept) == MOST_ENTRIES:
            raise ArchiveError(
                f"expected at most {BOMB} times the {packed} bytes of {archive} in it, and "
                f"{MOST_ENTRIES:,} files, got more with {printable(entry.name)}"
            )
        kept.append(entry)
    require_space(folder, total)
    return kept


def put(pictures: Mapping[str, Path], target: Path, scratch: Path) -> None:
    """Make the folder `target` of images, each under its name there: whole or not at all.

    Raises:
        ImageError: one is no whole image.
    """
    whole = Path(mkdtemp(dir=scratch), target.name)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(lambda name: link(pictures[name], whole / name), pictures))
    target.parent.mkdir(parents=True, exist_ok=True)
    whole.replace(target)


def link(picture: Path, target: Path) -> None:
    """Give an image a second name, or copy it where that cannot be; a target in another format is
    written anew. ImageError if it is no whole image."""
    rgb = images.read_rgb(picture)
    target.parent.mkdir(parents=True, exist_ok=True)
    if picture.suffix.lower() != target.suffix.lower():
        images.write_png(target, rgb)
        return
    try:
        target.hardlink_to(picture.resolve())
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(picture, target)
