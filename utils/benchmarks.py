"""Files that people have: of which benchmark set they are, and its pairs by their plain names."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from utils.datasets import SPELLINGS, DatasetError, Pair, find
from utils.layouts import HR_END, words_of


def has_lr(pairs: Sequence[Pair]) -> bool:
    """Whether there are pairs, and the LR images of all of them."""
    return bool(pairs) and all(pair.lr and pair.lr.exists() for pair in pairs)


def find_pairs(root: Path) -> list[Pair]:
    """The pairs of the set called `root` whose HR images are there, by their plain names."""
    try:
        return with_hr(find(str(root), root.parent).pairs)
    except DatasetError:
        return []


def with_hr(pairs: Sequence[Pair]) -> list[Pair]:
    """Those whose HR images are there, by their plain names."""
    return [replace(pair, name=HR_END.sub("", pair.name)) for pair in pairs if pair.hr]


def set_of(image: Path, tree: Path) -> str | None:
    """The benchmark set that an image is of, if between it and the set's own folder there are only
    such as are called for HR or LR images or for a scale."""
    for name in image.parents:
        words = words_of(name.name)
        if found := SPELLINGS.get(words.rest.lower()):
            return found
        if name == tree or not words.tells or words.rest:
            return None
    return None
