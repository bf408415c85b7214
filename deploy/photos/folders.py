"""What a run over files and folders is: which images, under which names, which share of them."""

import os
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.command import UserError
from utils.images import EXTENSIONS


@dataclass(frozen=True)
class Job:
    """One image to make. `problem`: why it cannot be made, known before it is read."""

    source: Path
    target: Path
    problem: str = ""


@dataclass(frozen=True)
class Plan:
    """The images in order; what of the folders could not be read, a line each; and the images
    that are left out because they look like results of an earlier run."""

    jobs: list[Job] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)


def plan(
    inputs: Sequence[Path],
    output: Path | None = None,
    suffix: str = "x4",
    ext: str = "png",
    recursive: bool = False,
) -> Plan:
    """Find the images and name what becomes of them, in the order of their paths.

    Hidden files and folders are left out, links to folders not followed. Where results go beside
    their inputs, images of a folder that are named like results are left out too.

    Args:
        inputs: image files, whatever their names, and folders.
        output: a folder, in which the sub-folders of the inputs are repeated; or, for one image
            file, a file with the suffix of an image; by default beside each input.
        suffix: what is added to each name, behind an underscore; may be empty.
        ext: the format of the results, as a suffix without its dot; auto is the input's.
        recursive: go into sub-folders.

    Raises:
        UserError: an input that is not there, no images, or an output that cannot be written.
    """
    if not inputs:
        raise UserError("expected an image or a folder of images, got none: name one")
    found: dict[Path, Path] = {}  # image: folder of its result
    unreadable: list[str] = []
    left_out: list[Path] = []
    for given in inputs:
        if os.path.isdir(given):
            content = _scan(given, output, suffix, recursive)
            found |= content.targets
            unreadable += content.unreadable
            left_out += content.left_out
        elif os.path.lexists(given):
            found[given] = output or given.parent
        else:
            raise UserError(f"expected an image or a folder, found nothing: {given}")
    found = {source: found[source] for source in _once(sorted(found))}
    if not found and not unreadable:
        but = f" but {len(left_out)} named like results" if left_out else ""
        raise UserError(
            f"expected images ({', '.join(sorted(EXTENSIONS))}), found none{but}: "
            f"{', '.join(map(str, inputs))}"
        )
    if output and output.suffix.lower() in EXTENSIONS and not os.path.isdir(output):
        if len(inputs) > 1 or os.path.isdir(inputs[0]):
            raise UserError(
                f"expected a folder for the results of several images, got a file name: {output}"
            )
        targets = [output]
    else:
        targets = _targets(found, suffix, ext)
    for folder in dict.fromkeys(target.parent for target in targets):
        _check_writable(folder)
    there = {identity for source in found if (identity := _identity(source))}
    jobs = [
        Job(
            source,
            target,
            "the result would overwrite an input: give another --suffix or -o"
            if _identity(target) in there
            else "",
        )
        for source, target in zip(found, targets, strict=True)
    ]
    return Plan(jobs, unreadable, left_out)


def shard(jobs: Sequence[Job], index: int, count: int) -> list[Job]:
    """Every count-th job, from the index-th on, which counts from 1."""
    return list(jobs[index - 1 :: count])


@dataclass(frozen=True)
class Content:
    """What is in a folder: its images with the folders of their results, and as in Plan."""

    targets: dict[Path, Path] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)


def _scan(folder: Path, output: Path | None, suffix: str, recursive: bool) -> Content:
    """Find what is in a folder, and below it if `recursive`."""
    content = Content()

    def note(error: OSError) -> None:
        content.unreadable.append(f"{error.filename}: {error.strerror}")

    for root, folders, files in os.walk(folder, onerror=note):
        here = Path(root)
        target = here if output is None else output / here.relative_to(folder)
        beside = _identity(target) == _identity(here)
        # A link to a folder is not entered; one that is named like an image is a failed image.
        files += [name for name in folders if (here / name).is_symlink()]
        folders[:] = [
            name
            for name in folders
            if recursive and name[0] != "." and not _is_output(here / name, output)
        ]
        for name in files:
            path = here / name
            if name[0] == "." or path.suffix.lower() not in EXTENSIONS:
                continue
            if beside and suffix and path.stem.endswith(f"_{suffix}"):
                content.left_out.append(path)
            elif _may_be_read(path):
                content.targets[path] = target
    return content


def _is_output(folder: Path, output: Path | None) -> bool:
    return output is not None and _identity(folder) == _identity(output)


def _may_be_read(path: Path) -> bool:
    """False for pipes and the like, which nobody may ever fill."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return True  # reading it will say why not
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode)


def _once(paths: Iterable[Path]) -> list[Path]:
    """Without what is named a second time in another way."""
    return list({os.path.abspath(path): path for path in paths}.values())


def _targets(found: dict[Path, Path], suffix: str, ext: str) -> list[Path]:
    """A name for each result; those that would have one name get their inputs' formats into it,
    and a number if that does not suffice."""
    ending = f"_{suffix}" if suffix else ""
    named = {}
    for source, folder in found.items():
        dot = source.suffix if ext == "auto" else f".{ext}"
        named[source] = [
            folder / f"{source.stem}{ending}{dot}",
            folder / f"{source.stem}_{source.suffix[1:]}{ending}{dot}",
        ]
    shared = Counter(_key(plain) for plain, _ in named.values())
    taken: set[Path] = set()
    targets = []
    for plain, longer in named.values():
        first = longer if shared[_key(plain)] > 1 else plain
        target, number = first, 2
        while _key(target) in taken:
            target = first.with_name(f"{first.stem}_{number}{first.suffix}")
            number += 1
        taken.add(_key(target))
        targets.append(target)
    return targets


def _key(path: Path) -> Path:
    return Path(os.path.realpath(path.parent), path.name)


def _identity(path: Path) -> tuple[int, int] | None:
    """The file itself, whatever it is called; None where there is none to be reached."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def find_existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(place for place in (folder, *folder.absolute().parents) if os.path.exists(place))


def _check_writable(folder: Path) -> None:
    place = find_existing(folder)
    if not os.path.isdir(place):
        raise UserError(f"expected a folder to write to, got {folder}, but {place} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"expected a folder that can be written, got {folder}: give another -o")
