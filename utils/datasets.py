"""Where the LR and HR images of a test set lie, in the layouts in which people have them."""

import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import skimage

from utils.command import UserError
from utils.imaging.images import find_images
from utils.layouts import LR_REST, SCALE, File, read, words_of
from utils.pairing import pair
from utils.template import MODES

BENCHMARKS = ("Set5", "Set14", "B100", "Urban100", "Manga109")
CHALLENGE = tuple(MODES)
# How many images the sets have that published figures are of.
IMAGES = dict(zip(BENCHMARKS, (5, 14, 100, 100, 109), strict=True)) | {"DIV2K_valid": 100}
# What folders of the benchmark sets are called in lower case, but for words of HR and LR.
SPELLINGS = {name.lower(): name for name in BENCHMARKS} | {"bsd100": "B100", "bsds100": "B100"}
# What the name of a validation or test set ends with, without words for HR, LR and scales; LSDIR's
# validation is val1. And such a name within a longer one.
HELD_OUT_END = re.compile(r"(?:.*[_\-. ])?(?:valid|validation|val1?|test)", re.I)
HELD_OUT = re.compile(r"_(valid|test)_[HL]R", re.I)
DEMO_PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")


class DatasetError(UserError):
    """A set that is not there, or whose LR images are not those of its HR images."""


class AbsentError(DatasetError):
    """A set that is not there."""


@dataclass(frozen=True)
class Pair:
    """One image of a set. `hr` is None where it is not public, `lr` where it must be made."""

    name: str
    hr: Path | None
    lr: Path | None


@dataclass(frozen=True)
class ImageSet:
    name: str
    pairs: tuple[Pair, ...]


def find(name: str, data_dir: str | Path) -> ImageSet:
    """Find a set by name below `data_dir`, or a folder given by its path.

    Args:
        name: "demo" (four colour photographs that scikit-image brings along), a challenge or
            benchmark set, or any folder that holds HR/ or LR/ or both, or HR images directly.
        data_dir: where named sets lie.

    Raises:
        AbsentError: it is not there, or holds no images.
        DatasetError: its LR images are not those of its HR images.
    """
    if name == "demo":
        return _demo()
    if not name:
        raise AbsentError("expected the name of a set or a folder, got an empty one")
    known = name in BENCHMARKS + CHALLENGE
    bases = [Path(data_dir)] if known else [Path(data_dir), Path.cwd()]
    bases = bases[-1:] if name.startswith(".") else bases  # as in a shell: from here
    left: dict[Path, None] = {}
    for base in bases:
        here = base / name
        here = here.resolve() if here.name == ".." else here  # HR/.. is no folder of a set
        folders = [folder for folder in dict.fromkeys(_folders_of(here)) if os.path.isdir(folder)]
        files = [path for folder in folders for path in find_images(folder, recursive=False)]
        if pairs := pairs_of(files, here.parent):
            own = Path(os.path.abspath(name)).name or "root"  # a link goes by its own
            label = name if known else own
            return ImageSet(label, tuple(pairs))
        left |= dict.fromkeys(files)
    raise AbsentError(_absence(name, bases, list(left)))


def pairs_of(paths: Sequence[Path], tree: Path) -> list[Pair]:
    """The pairs of one set, given all of its files, which lie below `tree`, see `pairs_among`."""
    return pairs_among([read(path, tree) for path in paths])


def pairs_among(files: Iterable[File]) -> list[Pair]:
    """The pairs of one set, given all of its files. Of several folders of HR images the one is
    taken that the table of layouts has first; without any, its LR images alone.

    Raises:
        DatasetError: there are LR images, but none is an HR image's.
    """
    pairing = pair([replace(file, set=()) for file in files])
    if not pairing.pairs:
        paths = [file.path for file in pairing.alone]
        return list(_unique(Pair(LR_REST.sub("", p.stem) or p.stem, None, p) for p in paths))
    best = min((hr for hr, _ in pairing.pairs), key=lambda hr: hr.rank).path.parent
    pairing.pairs[:] = [(hr, lr) for hr, lr in pairing.pairs if hr.path.parent == best]
    if not any(lr for _, lr in pairing.pairs) and (reason := pairing.missing()):
        raise DatasetError(reason)
    lr_folder = next((lr.parent for _, lr in pairing.pairs if lr), None)
    # One missing among others is an error of that pair, not made by bicubic.
    return list(
        _unique(
            Pair(
                hr.path.stem,
                hr.path,
                lr or (lr_folder and lr_folder / f"{hr.path.stem}x{SCALE}.png"),
            )
            for hr, lr in pairing.pairs
        )
    )


def _absence(name: str, bases: Sequence[Path], left: Sequence[Path]) -> str:
    """What to say where no set is found; `left` are images that the names of their folders, or
    their own, tell to be of another scale or degradation."""
    if left:
        return (
            f"expected HR images, or LR images at x{SCALE} by bicubic, got {len(left)} such as "
            f"{left[0]}, whose names or folders tell another scale or degradation: rename them if "
            "that is not so"
        )
    there = [base / name for base in bases if os.path.lexists(base / name)]
    if there and not os.path.isdir(there[0]):
        return f"expected the folder of a set, got the file {there[0]}: name its folder"
    place = (there or [bases[0] / name])[0] / "HR"
    return (
        f"expected images of {name} in folders such as {place}, found none: "
        "data/README.md has all in which they are looked for"
    )


def is_there(name: str, data_dir: str | Path) -> bool:
    """Whether there are images for `find`, which may still be at odds with each other."""
    try:
        find(name, data_dir)
    except AbsentError:
        return False
    except DatasetError:
        return True
    return True


def benchmarks_in(data_dir: str | Path) -> list[str]:
    """Those of BENCHMARKS that are there. Raises DatasetError if none is."""
    if names := [name for name in BENCHMARKS if is_there(name, data_dir)]:
        return names
    raise DatasetError(
        f"expected one of {', '.join(BENCHMARKS)} in {data_dir}, found none: data/README.md says "
        "in which folders they are found"
    )


def held_out(folders: Sequence[str]) -> str | None:
    """The first of an image's folders that is a validation, test or benchmark set's, in all
    layouts in which `find` would find it."""
    return next(filter(_is_held_out, folders), None)


def names_of(folder: Path, tree: Path) -> tuple[str, ...]:
    """The names of the folders down to `folder`, which is `tree` or below it, from that on which is
    called like a set of which `tree` may be but a part: of Set5/HR or Set5/LR_bicubic/X4 from Set5
    on."""
    place = Path(os.path.abspath(tree))
    while (words := words_of(place.name)).tells and words.rest in ("", "sub"):
        place = place.parent
    return Path(os.path.abspath(folder)).parts[len(place.parent.parts) :]


def _is_held_out(folder: str) -> bool:
    name = words_of(folder).rest.removesuffix("/sub")
    return bool(
        name.lower() in SPELLINGS or HELD_OUT_END.fullmatch(name) or HELD_OUT.search(folder)
    )


def _demo() -> ImageSet:
    folder = Path(skimage.__file__).parent / "data"
    paths = [folder / photo for photo in DEMO_PHOTOS]
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise DatasetError(
            f"expected the photographs of scikit-image, found no {', '.join(missing)}: "
            "install scikit-image again, or name a --dataset"
        )
    return ImageSet("demo", tuple(Pair(path.stem, path, None) for path in paths))


def _folders_of(here: Path) -> Iterator[Path]:
    """Where images of the set called `here` may lie: beside it in NAME_HR, NAME_LR_bicubic and the
    like, also of DIV2K/; in it; and as RCAN has them, in HR/NAME and LR/LRBI/NAME."""
    tops = _subfolders(here.parent)
    for folder in (*tops, *_subfolders(here.parent / "DIV2K")):
        words = words_of(folder.name)
        if words.role and words.rest == here.name:
            yield from _with_parts(folder)
    yield from _with_parts(here)
    for folder in tops:
        if words_of(folder.name).role and not words_of(folder.name).rest:
            for middle in (folder, *_subfolders(folder)):
                yield from _with_parts(middle / here.name)


def _with_parts(folder: Path, depth: int = 2) -> Iterator[Path]:
    """A folder, and those in it that its name tells to be for HR or LR images or for a scale; also
    of its own set, as where an archive was unpacked into a folder of the archive's name."""
    yield folder
    rests = ("", "sub", words_of(folder.name).rest)
    for inner in _subfolders(folder) if depth else ():
        words = words_of(inner.name)
        if inner.name == folder.name or (words.tells and words.rest in rests):
            yield from _with_parts(inner, depth - 1)


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if os.path.isdir(path))
    except OSError:
        return []


def _unique(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """The same pairs; a.png and a.jpg go by a_png and a_jpg, or one would overwrite the other."""
    pairs = list(pairs)
    times = Counter(_key(one.name) for one in pairs)
    taken = {name for name, count in times.items() if count == 1}
    for one in pairs:
        path = one.hr or one.lr
        if times[_key(one.name)] > 1 and path:
            name = path.name.replace(".", "_")
            numbered = (f"{name}_{number}" for number in itertools.count(2))
            name = next(n for n in itertools.chain([name], numbered) if _key(n) not in taken)
            taken.add(_key(name))
            one = replace(one, name=name)
        yield one


def _key(name: str) -> str:
    """The same for names that are one on a disk that knows no upper case."""
    return unicodedata.normalize("NFC", name).casefold()
