"""Images out of zips and tars of unknown origin: whole or not at all, and nowhere else."""

import gzip
import lzma
import shutil
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PureWindowsPath
from tempfile import TemporaryDirectory, mkdtemp
from typing import IO, Any

from utils import images

BOMB = 20  # times an archive's size: more than images unpack to


class DataError(ValueError):
    """Data that could not be had; the message says what to do."""


class ArchiveError(DataError):
    """An archive that is broken, or not the one expected."""


@dataclass(frozen=True)
class Entry:
    """A file in an archive; `is_plain` if it is no link or device."""

    name: str
    size: int
    is_plain: bool
    open: Callable[[], IO[bytes]]


def require_space(folder: Path, size: float) -> None:
    """Raise DataError if there is no room for `size` bytes."""
    if (free := shutil.disk_usage(folder).free) < size:
        raise DataError(
            f"expected {size / 1e9:.2f} GB free for {folder}, got {free / 1e9:.2f}: "
            "make room, or give --data_dir on another disk"
        )


@contextmanager
def scratch_in(data_dir: Path) -> Iterator[Path]:
    """A folder for what is not whole yet; nothing remains of it."""
    for leftover in data_dir.glob(".prepare.*"):
        if leftover.stat().st_mtime < time.time() - 3600:  # of a run that was killed
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
    folder = Path(mkdtemp(dir=scratch), archive.name.split(".")[0])
    folder.mkdir()
    try:
        is_zip = zipfile.is_zipfile(archive)
        with zipfile.ZipFile(archive) if is_zip else tarfile.open(archive) as opened:
            entries = _entries(opened)
            _require_harmless(archive, entries, folder)
            for entry in entries:
                target = folder / entry.name
                if target.suffix.lower() in images.EXTENSIONS:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with entry.open() as packed, target.open("wb") as unpacked:
                        shutil.copyfileobj(packed, unpacked)
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        gzip.BadGzipFile,
        lzma.LZMAError,
        zlib.error,
        EOFError,
        RuntimeError,
    ) as error:  # RuntimeError: it is encrypted
        reason = str(error).partition("\n")[0]
        raise ArchiveError(f"expected a whole zip or tar, got {archive}: {reason}") from error
    return folder


def _entries(opened: Any) -> list[Entry]:
    """The files of an open zip or tar, in its own order."""
    if isinstance(opened, zipfile.ZipFile):
        return [
            Entry(
                info.filename,
                info.file_size,
                not stat.S_ISLNK(info.external_attr >> 16),
                partial(opened.open, info),
            )
            for info in opened.infolist()
            if not info.is_dir()
        ]
    return [
        Entry(info.name, info.size, info.isreg(), partial(opened.extractfile, info))
        for info in opened
        if not info.isdir()
    ]


def _require_harmless(archive: Path, entries: Sequence[Entry], folder: Path) -> None:
    """Raise ArchiveError if unpacking to `folder` would do harm, DataError without room."""
    for entry in entries:
        path = PureWindowsPath(entry.name)  # knows drives and backslashes beside POSIX's slashes
        inside = (folder / entry.name).resolve().is_relative_to(folder.resolve())
        if path.anchor or ".." in path.parts or not inside or not entry.is_plain:
            raise ArchiveError(
                f"expected plain files below one folder in {archive}, got {entry.name}"
            )
    total, packed = sum(entry.size for entry in entries), archive.stat().st_size
    if total > BOMB * packed:
        raise ArchiveError(
            f"expected at most {BOMB} times the {packed} bytes of {archive} in it, got {total}"
        )
    require_space(folder, total)


def put(pictures: Mapping[str, Path], target: Path, scratch: Path) -> None:
    """Make the folder `target` of images, each under its name there: whole or not at all."""
    whole = Path(mkdtemp(dir=scratch), target.name)
    for name, picture in pictures.items():
        link(picture, whole / name)
    target.parent.mkdir(parents=True, exist_ok=True)
    whole.replace(target)


def link(picture: Path, target: Path) -> None:
    """Give an image a second name, or copy it where that cannot be; a target in another format is
    written anew. ImageError if it is no whole image."""
    data = picture.read_bytes() if picture.is_file() else b""
    is_png = data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR"
    if not (is_png and any(data[16:20]) and any(data[20:24]) and b"IEND" in data[-4096:]):
        images.read_rgb(picture)  # decodes or fails; a PNG's header and end are enough
    target.parent.mkdir(parents=True, exist_ok=True)
    if picture.suffix.lower() != target.suffix.lower():
        images.write_png(target, images.read_rgb(picture))
        return
    try:
        target.hardlink_to(picture.resolve())
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(picture, target)
