"""What a run over files and folders is: which images, under which names, which share of them."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.photos import suffixes
from utils.command import UserError
from utils.datasets import SCALE
from utils.files import is_writable_as_file, longest_name, lost_link, refusal_of


@dataclass(frozen=True)
class Job:
    """One image to make. `problem`: why it cannot be made, known before it is read."""

    source: Path
    target: Path
    problem: str = ""


@dataclass(frozen=True)
class Plan:
    """The images in order; what of the folders could not be read, a line each; the images that are
    left out because they look like results of an earlier run; and what else a user should know."""

    jobs: list[Job] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def plan(
    inputs: Sequence[Path],
    output: Path | None = None,
    suffix: str = "x4",
    ext: str | None = None,
    recursive: bool = False,
) -> Plan:
    """Find the images and name what becomes of them, in the order of their paths.

    Hidden files and folders are left out, links to folders not followed; so are results of other
    inputs, by name and size, as a shell's *.png has them after an earlier run. Where results go
    beside their inputs, all images of a folder that are named like results are left out.

    Args:
        inputs: image files, whatever their names, and folders.
        output: a folder, in which the sub-folders of the inputs are repeated; or, for one image
            file, a file with the suffix of an image; by default beside each input.
        suffix: what is added to each name, behind an underscore; may be empty.
        ext: the format of the results, as a suffix without its dot; auto is the input's. Without
            it png, or what the file `output` has.
        recursive: go into sub-folders.

    Raises:
        UserError: an input that is not there, no images, no folder that can be written to, or an
            output of another format than `ext`.
    """
    if not inputs:
        raise UserError("expected an image or a folder of images, got none: name one")
    content = Content()
    for given in inputs:
        if os.path.isdir(given):
            _scan(content, given, output, suffix, recursive)
        elif os.path.lexists(given):
            content.targets[given] = output or given.parent
        else:
            raise UserError(f"expected an image or a folder, found nothing: {given}")
    # What is named a second time in another way is one image.
    once = {place_of(source): source for source in sorted(content.targets)}
    found = {source: content.targets[source] for source in once.values()}
    notes = _describe(content.others)
    if results := _results_among(found, suffix):
        for result in results:
            del found[result]
        notes.append(f"results of other inputs are left out: {len(results)}, such as {results[0]}")
    if not found and not content.unreadable:
        but = [f"{len(content.left_out)} named like results"] if content.left_out else []
        but += notes
        raise UserError(
            f"expected images ({', '.join(sorted(suffixes.readable()))}), found none"
            f"{' but ' * bool(but)}{', '.join(but)}: {', '.join(map(str, inputs))}"
        )
    kind = output.suffix.lower() if output and not os.path.isdir(output) else ""
    if kind in suffixes.readable() | suffixes.OTHERS and kind not in suffixes.LONGEST:
        raise UserError(
            f"expected an -o that ends in {', '.join(suffixes.LONGEST)}, or a folder, got {output}"
        )
    if output and kind in suffixes.LONGEST:
        if len(inputs) > 1 or os.path.isdir(inputs[0]):
            raise UserError(
                f"expected a folder for the results of several images, got a file name: {output}"
            )
        if not is_writable_as_file(output):
            raise UserError(f"expected a file or a folder for -o, got something else: {output}")
        if reason := lost_link(output):
            raise UserError(f"expected a file to write, got {output}: {reason}: give another -o")
        if ext not in (None, "auto") and kind not in suffixes.alike(f".{ext}"):
            raise UserError(
                f"expected an -o that ends in .{ext}, as --ext says, got {output}: leave one out"
            )
        targets = [output]
    else:
        endings = {source: f".{ext or 'png'}" for source in found}
        if ext == "auto":
            endings, converted = _own_formats(found)
            notes += converted
        targets = _targets(found, suffix, endings)
    refusals = _find_refusals(target.parent for target in targets)
    there = {identity for source in found if (identity := _identity(source))}
    jobs = [
        Job(source, target, refusals[target.parent] or _find_problem(target, there))
        for source, target in zip(found, targets, strict=True)
    ]
    return Plan(jobs, content.unreadable, content.left_out, notes)


def place_of(path: Path) -> str:
    """A file's name from the root on, the same through whatever links to its folder. A link to the
    file itself is a name of its own."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def is_of(result: suffixes.Header, source: Path) -> bool:
    """Whether a picture may be the source's result by its size. Results may be named like those of
    other inputs, which came before or are gone."""
    header = suffixes.peek(source)
    if not header or not header.width or not result.width:
        return True  # the size is not known
    sides = sorted((SCALE * header.width, SCALE * header.height))  # it may be turned
    return sorted((result.width, result.height)) == sides


def _results_among(sources: Iterable[Path], suffix: str) -> list[Path]:
    """Those of the images that are results of others of them in the same folder, see `_targets`."""
    if not suffix:
        return []
    by_name: dict[Path, list[Path]] = {}
    for source in sources:
        for name in (source.stem, f"{source.stem}_{source.suffix[1:]}"):
            by_name.setdefault(_key(source.parent / name), []).append(source)
    results = []
    for source in sources:
        name = source.stem.removesuffix(f"_{suffix}")
        if name == source.stem:
            continue
        keys = [_key(source.parent / base) for base in (name, re.sub(r"_\d+$", "", name))]
        origins = [origin for key in keys for origin in by_name.get(key, ())]
        if origins and (header := suffixes.peek(source)):
            results += [source] * any(is_of(header, origin) for origin in origins)
    return results


def _find_problem(target: Path, inputs: set[tuple[int, int]]) -> str:
    """Why a result cannot be written under its name, or an empty text."""
    if _identity(target) in inputs:
        return "the result would overwrite an input: give another --suffix or -o"
    length, longest = len(os.fsencode(target.name)), longest_name(target.parent)
    if length > longest:
        return (
            f"expected at most {longest} bytes for the result's name, got {length}: give a shorter "
            "--suffix, or the result's name by -o"
        )
    return ""


def _describe(others: Counter[str]) -> list[str]:
    """A line on the images that are left out for their formats, if there are any."""
    kinds = ", ".join(f"{others[suffix]} {suffix}" for suffix in sorted(others))
    count = others.total()
    return [f"{count} file{'s' * (count > 1)} left out: {kinds}"] if count else []


def _own_formats(sources: Iterable[Path]) -> tuple[dict[Path, str], list[str]]:
    """The suffix of each result that is to have its input's format, or .png where that cannot be
    written or cannot hold the result; and lines on these."""
    endings, notes = {}, []
    unwritten: Counter[str] = Counter()
    for source in sources:
        endings[source] = source.suffix
        suffix = source.suffix.lower()
        if suffix not in suffixes.LONGEST:
            unwritten[suffix or "no suffix"] += 1
            endings[source] = ".png"
        elif suffix != ".png" and (header := suffixes.peek(source)):
            size = (SCALE * header.width, SCALE * header.height)
            if limit := suffixes.find_limit(suffix, *size, header.clear):
                notes.append(f"{source}: the result becomes a PNG: {limit}")
                endings[source] = ".png"
    if unwritten:
        kinds = ", ".join(f"{unwritten[suffix]} {suffix}" for suffix in sorted(unwritten))
        notes.append(f"results become PNG where their inputs' formats are not written: {kinds}")
    return endings, notes


@dataclass(frozen=True)
class Content:
    """What is in the inputs: images with the folders of their results, as in Plan, and how many
    images of each suffix are not read."""

    targets: dict[Path, Path] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


def _scan(
    content: Content, folder: Path, output: Path | None, suffix: str, recursive: bool
) -> None:
    """Find what is in a folder, and below it if `recursive`."""

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
            if recursive
            and name[0] != "."
            and not (output and _identity(here / name) == _identity(output))
        ]
        for name in files:
            path = here / name
            kind = path.suffix.lower()
            if name[0] == "." or kind not in suffixes.readable():
                content.others.update([kind] if name[0] != "." and kind in suffixes.OTHERS else [])
                continue
            if beside and suffix and path.stem.endswith(f"_{suffix}"):
                content.left_out.append(path)
            else:
                content.targets[path] = target


def _targets(found: dict[Path, Path], suffix: str, endings: dict[Path, str]) -> list[Path]:
    """A name for each result; those that would have one name get their inputs' formats into it,
    and a number if that does not suffice, before the suffix by which results are known."""
    added = f"_{suffix}" if suffix else ""

    def name(source: Path, more: str = "") -> Path:
        return found[source] / f"{source.stem}{more}{added}{endings[source]}"

    shared = Counter(_key(name(source)) for source in found)
    taken: set[Path] = set()
    targets = []
    for source in found:
        more = f"_{source.suffix[1:]}" if shared[_key(name(source))] > 1 else ""
        target, number = name(source, more), 2
        while _key(target) in taken:
            target = name(source, f"{more}_{number}")
            number += 1
        taken.add(_key(target))
        targets.append(target)
    return targets


def _key(path: Path) -> Path:
    """The same for names that are one on some disk: many know no upper case, or accents as macOS
    has them."""
    return Path(unicodedata.normalize("NFC", place_of(path)).casefold())


def _identity(path: Path) -> tuple[int, int] | None:
    """The file itself, whatever it is called; None where there is none to be reached."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _find_refusals(folders: Iterable[Path]) -> dict[Path, str]:
    """Why nothing can be written to each of the folders, or an empty text. Raises UserError where
    nothing can be written to any."""
    refusals = {}
    for folder in dict.fromkeys(folders):
        reason = refusal_of(folder)
        what = f"expected a folder to write to, got {folder}: {reason}: give another -o"
        refusals[folder] = what if reason else ""
    if refusals and all(refusals.values()):
        raise UserError(next(iter(refusals.values())))
    return refusals
