"""Files that appear whole or not at all, JSON, digests, and where the repository lies."""

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from utils.text import encoded

ROOT = Path(__file__).resolve().parent.parent

MOST_JSON = 256 << 20  # bytes that are read; a record of 10,000 images takes 4 MB


def is_writable_as_file(path: str | Path) -> bool:
    """Whether a file may appear there: nothing is there yet, or a file. In the place of a folder
    there can be none, and root would have a device replaced."""
    return os.path.isfile(path) or not os.path.exists(path)


def behind_link(path: Path) -> Path:
    """The file that a link points to, there or not; anything else as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def lost_link(path: Path) -> str:
    """Where a link's file cannot be, for want of a folder, in words; of anything else nothing."""
    there = not path.is_symlink() or behind_link(path).parent.is_dir()
    return "" if there else f"it is a link into {behind_link(path).parent}, which is not there"


def find_existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there; of a link to nothing, the link."""
    return next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))


def refusal_of(folder: Path) -> str:
    """Why this user can write no file to a folder, or an empty text. The folder need not be there
    yet."""
    place = find_existing(folder)
    if not os.path.exists(place):
        return f"{place} is a link to nothing that is there"
    if not os.path.isdir(place):
        return f"{place} is a file"
    return "" if os.access(place, os.W_OK | os.X_OK) else f"{place} is not this user's to write"


def longest_name(folder: Path) -> int:
    """Bytes that a file's name may have in a folder, which need not be there yet."""
    try:
        return os.pathconf(find_existing(folder), "PC_NAME_MAX") or 255
    except (AttributeError, OSError, ValueError):  # a system that does not tell
        return 255


def free_space(folder: Path) -> int | None:
    """Bytes that are free on a folder's disk, or None where the system does not tell: file systems
    of programs may say that they have none at all."""
    usage = shutil.disk_usage(folder)
    return usage.free if usage.total else None


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file that appears whole or not at all."""
    with whole_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file under a temporary name beside `path`, renamed into place at the end; after an
    exception nothing remains of it, `path` is what it was, and an OSError names it. After the end
    the file outlives a power cut: its content is on the disk before its name is, and its name
    before this returns. A link stays one: what it points to is written, in a folder that is there.
    """
    path = Path(path)
    if not is_writable_as_file(path):
        number = errno.EISDIR if path.is_dir() else errno.EEXIST
        raise OSError(number, "a folder or device is there", str(path))
    target = behind_link(path)
    if target == path:  # behind a link: perhaps of a drive that is not there
        target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{_leftover_stem(target)}{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)) and error.errno:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    _sync_folder(target.parent)


def write_all(files: Mapping[Path, bytes]) -> None:
    """Write files, none of them renamed before all are on the disk: a full disk changes none."""
    with contextlib.ExitStack() as stack:
        for path, data in files.items():
            file = stack.enter_context(whole_file(path))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def remove_leftovers(path: str | Path, age_s: float = 0) -> None:
    """Remove what `whole_file(path)` left behind where its process was killed, at least `age_s`
    seconds ago: a younger file may be one that another process is writing."""
    path = behind_link(Path(path))
    for leftover in path.parent.glob(f"{_leftover_stem(path)}*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another process has just renamed it
            if leftover.stat().st_mtime <= time.time() - age_s:
                leftover.unlink()


def _leftover_stem(path: Path) -> str:
    """How temporary names of a file begin, hidden and short: its own may be as long as the file
    system allows."""
    return f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]}."


def _sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where system and folder allow it; the files in it
    are whole either way."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256(path: str | Path) -> str:
    """Hexadecimal digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finite(value: Any) -> Any:
    """The same value with None for every NaN and infinity in it, which JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def as_json(content: Any) -> bytes:
    """JSON for a file; NaN and infinity become null, see `encoded` for names."""
    text = json.dumps(finite(content), indent=1, allow_nan=False, ensure_ascii=False)
    return encoded(text + "\n")


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON whole or not at all, as `as_json` has it."""
    write_bytes(path, as_json(content))


def read_json(path: str | Path) -> Any:
    """The content of a JSON file. Raises OSError or ValueError where there is none."""
    path = Path(path)
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ValueError(f"expected a file, got something else: {path}")
    if path.stat().st_size > MOST_JSON:
        raise ValueError(f"expected at most {MOST_JSON >> 20} MiB of JSON: {path}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"expected JSON of a few levels, got too many: {path}") from error
