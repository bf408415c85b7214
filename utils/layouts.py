"""The table of what folders and files of HR and LR images are called, and what a file is by it."""

import functools
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

SCALE = 4

# A folder is called by words: of DIV2K_train_LR_bicubic/X4 or Set5/GTmod12 the words DIV2K, train
# and Set5 name the set, the others tell what lies there. Checked against the distributions of
# DIV2K, Flickr2K, RealSR and SelfExSR and those that come with EDSR, RCAN, BasicSR and KAIR.
HR = ("HR", r"GT(?:mod\d+)?", "HQ", "high(?:res)?", "original")  # the first is preferred
LR = "(?:LR|LQ|low(?:res)?)"
BICUBIC = "(?:bicubic|bic|BI)"
OTHER = "(?:unknown|mild|difficult|wild|BD|DN|noise|noisy|blur)"  # degradations
WORD = re.compile(
    rf"(?:(?P<HR>{'|'.join(HR)})|{BICUBIC}?(?P<LR>{LR})(?:{BICUBIC}|(?P<other>{OTHER}))?|{BICUBIC})?"
    r"(?:x?(?P<scale>\d)|(?P<times>\d)x)?",
    re.I,
)
EVERYDAY = re.compile("high|low|original", re.I)  # words that tell nothing beside others
BESIDE = {"sub", "train", "valid", "val", "test"}  # .. but these
SEPARATOR = r"[_\-. ]"
SRF = re.compile(r"image_SRF_(\d)", re.I)  # in it each file tells what it is

# Names of files: what is left of the LR image's behind the HR image's, as in 0001x4.png,
# baby_LRBI_x4.png, 0001_bicLRx4.png, img_001_SRF_4_LR.png, Canon_001_LR4.png.
_LR = rf"{BICUBIC}?{LR}(?:{BICUBIC}|{OTHER})?(?:x?\d)?"
_TIMES = rf"x\d|{SEPARATOR}\dx|{SEPARATOR}SRF{SEPARATOR}\d"
LR_REST = re.compile(rf"(?:{SEPARATOR}?(?:{_LR}|{BICUBIC}(?:x?\d)?|{_TIMES}))++$", re.I)
# .. and, at its end, what tells that it is one of either kind, whatever its folder is called.
LR_END = re.compile(
    rf"{SEPARATOR}{BICUBIC}?(?:LR|LQ)(?:{BICUBIC}|{OTHER})?(?:{SEPARATOR}?x?\d)?$", re.I
)
HR_END = re.compile(rf"(?:{_TIMES})?{SEPARATOR}(?:HR|HQ|GT)(?:{SEPARATOR}?x\d)?$", re.I)

Role = Literal["HR", "LR", ""]


@dataclass(frozen=True)
class Words:
    """What a folder's name tells.

    role, scale: where it tells them, and then `tells` is set.
    other: its images are of another degradation than bicubic.
    rest: the name of a set, or set/sub for the pieces of its images.
    ends: it is the name of a set, or of anything, with a scale at its end.
    """

    role: Role = ""
    scale: str = ""
    other: bool = False
    rest: str = ""
    tells: bool = True
    ends: bool = False


@dataclass(frozen=True)
class File:
    """What an image file is.

    path, tree: the file, and the folder of all files that are looked at.
    role: HR, LR, or neither is said.
    sure: no other file can change that.
    left: it is of another scale or degradation, or another method's result.
    set: what the names of folders of HR and LR images have in common, from the root on.
    ends: the same, if the folder may be that of LR images by the scale at its end.
    rank: the place of its folder's word in HR.
    """

    path: Path
    tree: Path
    role: Role
    sure: bool
    left: bool
    set: tuple[str, ...]
    ends: tuple[str, ...] | None
    rank: int


@functools.lru_cache(maxsize=4096)
def words_of(folder: str) -> Words:
    """What the name of one folder tells."""
    words = [word for word in re.split(SEPARATOR, SRF.sub(r"x\1", folder)) if word]
    found = {w: m for w in words if not w.isdecimal() and (m := WORD.fullmatch(w))}
    hr, lr = ([m[role] for m in found.values() if m[role]] for role in ("HR", "LR"))
    degraded = [w for w in words if lr and re.fullmatch(OTHER, w, re.I)]
    rest = [w for w in words if w not in found and w not in degraded]
    scales = [s for m in found.values() if (s := m["scale"] or m["times"])]
    scale = next((s for s in scales if s != str(SCALE)), scales[0] if scales else "")
    other = bool(degraded) or any(m["other"] for m in found.values())
    name = "_".join(word for word in rest if word != "sub")
    name = "/".join(filter(None, (name, "sub" if "sub" in rest else "")))  # cut up by BasicSR
    if hr or lr:
        everyday = all(map(EVERYDAY.match, hr + lr)) and not set(rest) <= BESIDE
        if everyday or (hr and lr):
            return Words(rest=folder, tells=False)
        return Words("HR" if hr else "LR", scale, other, name)
    if found and set(rest) <= {"sub"}:
        return Words("", scale, other, name)
    ends = bool(scales) and words[-1] in found
    return Words(scale=scale, rest=name if ends else folder, tells=False, ends=ends)


def read(path: Path, tree: Path) -> File:
    """What a file in a tree is. The tree's own name counts only where no folder in it tells
    anything."""
    absolute = Path(os.path.abspath(path))
    inside = len(absolute.parts) - len(Path(os.path.abspath(tree)).parts) - 1
    file = replace(_read_folder(absolute.parent, inside), path=path, tree=tree)
    hr, lr = HR_END.search(path.stem), LR_END.search(path.stem)
    mixed = bool(SRF.fullmatch(absolute.parent.name))
    if not (file.role and file.sure) and (hr or lr):
        file = replace(file, role="HR" if hr else "LR", sure=True)
    elif mixed:
        return replace(file, left=True)
    elif lr and file.role == "HR":
        file = replace(file, sure=False)
    end = hr or lr
    return replace(file, left=file.left or is_of_another_scale(end[0] if end else ""))


@functools.lru_cache(maxsize=4096)
def _read_folder(folder: Path, inside: int) -> File:
    """What all files in a folder are, which lies so many folders inside its tree."""
    names = folder.parts
    words = [words_of(name) for name in names]
    top = len(words) - inside
    inner = [word for word in words[top:] if word.tells]
    telling = inner or [word for word in words[top - 1 : top] if word.tells]
    role: Role = next((w.role for w in reversed(telling) if w.role), "")
    sets = [w.rest if w.tells else name for w, name in zip(words, names, strict=True)]
    ends = (*sets[:-1], words[-1].rest) if words[-1].ends and not inner else None
    ranks = [
        i
        for i, word in enumerate(HR)
        for w in re.split(SEPARATOR, names[-1])
        if re.fullmatch(word, w, re.I)
    ]
    return File(
        folder,
        folder,
        role,
        sure=not telling or bool(telling[-1].role) or role == "LR",
        left=any(w.scale not in ("", str(SCALE)) or (w.other and role == "LR") for w in telling),
        set=tuple("/".join(filter(None, sets)).split("/")),
        ends=ends and tuple("/".join(filter(None, ends)).split("/")),
        rank=ranks[0] if ranks else len(HR),
    )


def is_of_another_scale(rest: str) -> bool:
    """Whether the end of a name tells a scale that is not SCALE."""
    return bool(set(re.findall(r"\d", rest)) - {str(SCALE)})
