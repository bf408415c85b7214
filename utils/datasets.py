"""Where the LR and HR images of a test set lie, in the layouts in which people have them."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import skimage

from utils.command import UserError
from utils.images import find_images

SCALE = 4
BENCHMARKS = ("Set5", "Set14", "B100", "Urban100", "Manga109")
CHALLENGE = (
    "DIV2K_valid",
    "DIV2K_test",
    "LSDIR_DIV2K_test",
    "DIV2K_LSDIR_valid",
    "DIV2K_LSDIR_test",
)
HELD_OUT = re.compile(r"_(valid|test)_[HL]R|^val1$")  # DIV2K_valid_HR, .., LSDIR's validation
DEMO_PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")

# Folders of HR images and of their LR images, relative to the data folder. First what the
# challenge's template and DIV2K's archives have, then the common layouts of the benchmark sets.
HR_FOLDERS = (
    "{name}_HR",
    "DIV2K/{name}_HR",
    "{name}/HR",
    "{name}/GTmod4",
    "{name}/GTmod12",
    "{name}/original",
    "{name}/image_SRF_4",
)
LR_FOLDERS = (
    "{name}_LR",
    "DIV2K/{name}_LR",
    "{name}_LR_bicubic/X4",
    "DIV2K/{name}_LR_bicubic/X4",
    "{name}/LR",
    "{name}/LRbicx4",
    "{name}/LR_bicubic/X4",
)


class DatasetError(UserError):
    """A set that is not there; the message names every place where it was looked for."""


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
        DatasetError: it is not there, or holds no images.
    """
    if name == "demo":
        return _demo()
    known = name in BENCHMARKS + CHALLENGE
    looked: list[Path] = []
    for base in [Path(data_dir)] if known else [Path(data_dir), Path.cwd()]:
        hr_folders = [base / folder.format(name=name) for folder in HR_FOLDERS]
        lr_folders = [base / folder.format(name=name) for folder in LR_FOLDERS]
        hr_folders.append(base / name)
        hr_folder, lr_folder = _first_with_images(hr_folders), _first_with_images(lr_folders)
        if hr_folder or lr_folder:
            label = name if known else Path(name).resolve().name
            return ImageSet(label, tuple(_unique(_pair_up(hr_folder, lr_folder))))
        looked += [*hr_folders, *lr_folders]
    places = "\n  ".join(map(str, dict.fromkeys(looked)))
    raise DatasetError(f"expected images of {name}, found none in any of\n  {places}")


def is_there(name: str, data_dir: str | Path) -> bool:
    """Whether `find` finds this set."""
    try:
        find(name, data_dir)
    except DatasetError:
        return False
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
    """The first of an image's folders that is a validation, test or benchmark set's."""
    return next((f for f in folders if HELD_OUT.search(f) or f in BENCHMARKS), None)


def _demo() -> ImageSet:
    folder = Path(skimage.__file__).parent / "data"
    paths = [folder / photo for photo in DEMO_PHOTOS]
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise DatasetError(
            "expected the photographs of scikit-image, found none in any of\n  "
            + "\n  ".join(missing)
        )
    return ImageSet("demo", tuple(Pair(path.stem, path, None) for path in paths))


def _first_with_images(folders: Iterable[Path]) -> Path | None:
    return next((f for f in folders if f.is_dir() and find_images(f, recursive=False)), None)


def _pair_up(hr_folder: Path | None, lr_folder: Path | None) -> Iterable[Pair]:
    """Pairs by file name: LR is named like HR, with or without x4 behind it."""
    if hr_folder and hr_folder.name == "image_SRF_4":
        yield from _pair_up_srf(hr_folder)
        return
    lr_paths = find_images(lr_folder, recursive=False) if lr_folder else []
    if hr_folder is None:
        yield from (Pair(path.stem.removesuffix(f"x{SCALE}"), None, path) for path in lr_paths)
        return
    lr_files = {path.stem: path for path in lr_paths}
    for path in find_images(hr_folder, recursive=False):
        lr = lr_files.get(f"{path.stem}x{SCALE}") or lr_files.get(path.stem)
        if lr_folder and not lr:  # one missing among others is an error of that pair, not bicubic
            lr = lr_folder / f"{path.stem}x{SCALE}.png"
        yield Pair(path.stem, path, lr)


def _pair_up_srf(folder: Path) -> Iterable[Pair]:
    """Pairs of a folder of img_001_SRF_4_HR.png, .._LR.png and what other methods made of them."""
    files = find_images(folder, recursive=False)
    has_lr = any(path.stem.endswith(f"_SRF_{SCALE}_LR") for path in files)
    for path in files:
        if path.stem.endswith(f"_SRF_{SCALE}_HR"):  # as above, one missing LR is an error
            lr = path.with_name(f"{path.stem.removesuffix('HR')}LR{path.suffix}")
            yield Pair(path.stem, path, lr if has_lr else None)


def _unique(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """The same pairs; a.png and a.jpg go by a_png and a_jpg, or one would overwrite the other."""
    pairs = list(pairs)
    times = Counter(pair.name for pair in pairs)
    for pair in pairs:
        path = pair.hr or pair.lr
        if times[pair.name] > 1 and path:
            pair = replace(pair, name=path.name.replace(".", "_"))
        yield pair
