"""Which LR image belongs to which HR image, by the names of their folders and their own."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.imaging.images import BAD_IMAGE, read_rgb
from utils.layouts import HR_END, LR_REST, SCALE, File, is_of_another_scale, words_of

Names = dict[tuple[tuple[str, ...], str], File]


@dataclass(frozen=True)
class Pairing:
    """HR images in the order of the files, each with its LR image or None; LR images that belong to
    none; files that are left alone, being of another scale, degradation or method."""

    pairs: list[tuple[File, Path | None]] = field(default_factory=list)
    alone: list[File] = field(default_factory=list)
    left: list[File] = field(default_factory=list)

    def missing(self) -> str:
        """An error's text for the first LR image without a HR image, or "". It is an error where a
        HR image of the same set lacks its LR image, and where the set has no HR images."""
        sets = {hr.set for hr, _ in self.pairs}
        bare = {hr.set: hr.path for hr, lr in reversed(self.pairs) if not lr}
        for lr in self.alone:
            if path := bare.get(lr.set):
                names = [f"{path.stem}{end}{lr.path.suffix}" for end in ("", "x4", "_LRx4")]
                wanted = f"an LR image of {path}, {' or '.join(names)}"
            elif lr.set not in sets:
                wanted = "HR images of its set beside its folder, in HR/ for example"
            else:
                continue
            return (
                f"{lr.path} looks like an LR image, but is no HR image's: expected {wanted}; "
                "rename it, or move it away"
            )
        return ""


def pair(files: Sequence[File]) -> Pairing:
    """Pair files, which may be of several trees and sets.

    An LR image is of its HR image's set, and called like it, or like it with what tells LR or the
    scale behind. One that only a scale tells, in X4/ or as 0001x4.png beside 0001.png, is taken for
    an LR image if there is an HR image for it.
    """
    left = [file for file in files if file.left]
    rest = [file for file in files if not file.left]
    lr = [file for file in rest if file.role == "LR"]
    hr = [file for file in rest if file.role != "LR" and file.sure and file.ends is None]
    names: Names = {}
    _enter(hr, names)
    unsure = [file for file in rest if file.role != "LR" and not file.sure]
    ending = [file for file in rest if file.role != "LR" and file.sure and file.ends is not None]
    for file in ending:
        if _hr_of(file, names, file.ends):
            scale = words_of(file.path.parent.name).scale
            (left if is_of_another_scale(scale) else lr).append(file)
        else:
            hr.append(file)
    _enter(hr, names)
    for file in unsure:
        is_hr = file.role == "HR" and not _hr_of(file, names)
        (hr if is_hr else lr).append(file)
    _enter(hr, names)
    beside = _beside(hr, names)
    hr_paths = {file.path for file in hr} - beside
    found: dict[File, Path] = {}
    alone = []
    order = {folder: i for i, folder in enumerate(dict.fromkeys(f.path.parent for f in lr))}
    lr.sort(key=lambda f: (order[f.path.parent], f"x{SCALE}" not in f.path.stem.lower()))
    for file in [*lr, *(file for file in hr if file.path in beside)]:
        if not (match := _hr_of(file, names, file.ends) or _hr_of(file, names)):
            alone.append(file)
        elif is_of_another_scale(match[1]):
            left.append(file)
        else:
            found.setdefault(match[0], file.path)
    pairs = [(file, found.get(file)) for file in rest if file.path in hr_paths]
    return Pairing(pairs, alone, left)


def _enter(files: Iterable[File], names: Names) -> None:
    """Note HR images under the names that their LR images may begin with."""
    for file in sorted(files, key=lambda f: f.rank):
        stem = _composed(file.path.stem)
        for name in (stem, HR_END.sub("", stem)):
            names.setdefault((file.set, name), file)


def _hr_of(
    lr: File, names: Names, of_set: tuple[str, ...] | None = None
) -> tuple[File, str] | None:
    """The HR image of an LR image, and what the LR image's name has behind; the longest name is
    tried first."""
    stem = _composed(lr.path.stem)
    rest = LR_REST.search(stem)
    for end in range(len(stem), rest.start() - 1 if rest else len(stem) - 1, -1):
        if end < len(stem) and not LR_REST.match(stem, end):
            continue
        found = names.get((lr.set if of_set is None else of_set, stem[:end]))
        if found and found.path != lr.path:
            return found, stem[end:]
    return None


def _composed(name: str) -> str:
    """A name with its accents as most systems write them: macOS may have them as signs apart."""
    return unicodedata.normalize("NFC", name)


def _beside(hr: Sequence[File], names: Names) -> set[Path]:
    """Those of the images that are LR images of others in their own folder, as 0001x4.png beside
    0001.png; the sizes of the first of each folder tell whether it is not an enlargement."""
    found: dict[Path, list[tuple[Path, Path]]] = {}
    for file in hr:
        match = _hr_of(file, names)
        if match and match[1] and match[0].path.parent == file.path.parent:
            found.setdefault(file.path.parent, []).append((file.path, match[0].path))
    return {lr for both in found.values() if _is_quarter(*both[0]) for lr, _ in both}


def _is_quarter(lr: Path, hr: Path) -> bool:
    try:
        small, large = read_rgb(lr).shape, read_rgb(hr).shape
    except BAD_IMAGE:
        return False
    return small[:2] == (large[0] // SCALE, large[1] // SCALE)
