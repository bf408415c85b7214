"""The runs of a folder that the page can show, in its order, and their images, by set."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.datasets import BENCHMARKS, CHALLENGE
from utils.record import ENTRY, read_runs
from utils.report import summary
from utils.text import number


@dataclass(frozen=True)
class Group:
    """The runs of one set, and its images, the one of the lowest PSNR first."""

    ident: str
    name: str
    runs: list[dict[str, Any]]
    images: list[dict[str, Any]]


def read(folder: Path) -> list[dict[str, Any]]:
    """The runs in `folder` that have all that the page shows, in the page's order."""
    return sorted((run for run in read_runs(folder) if run["images"]), key=_order)


def _order(run: dict[str, Any]) -> tuple[int, str, bool, bool, str, bool]:
    """Where a run stands: by set, the challenge's and the benchmarks first; in each the shipped
    weights and the plain network come first, and what has no scores last."""
    known = [*CHALLENGE, *BENCHMARKS]
    name, model = run["dataset"], run["model"]
    place = known.index(name) if name in known else len(known)
    unscored = all(psnr_of(image) == "not measured" for image in run["images"])
    return place, name, unscored, model != ENTRY, model, not summary.is_plain(run)


def by_set(runs: Sequence[dict[str, Any]]) -> list[Group]:
    """The runs by set, in their order."""
    groups = []
    for i, name in enumerate(dict.fromkeys(run["dataset"] for run in runs), 1):
        own = [run for run in runs if run["dataset"] == name]
        images = {image["name"]: image for run in reversed(own) for image in run["images"]}
        groups.append(Group(f"set-{i}", name, own, sorted(images.values(), key=_rank)))
    return groups


def _rank(image: dict[str, Any]) -> tuple[bool, float, str]:
    """Where an image stands: the lowest PSNR first, what was not measured last."""
    psnr = math.inf if image["psnr"] is None else image["psnr"]
    return psnr_of(image) == "not measured", psnr, image["name"]


def psnr_of(image: dict[str, Any], key: str = "psnr") -> str:
    """An image's PSNR, or bicubic's by `psnr_bicubic`, in words."""
    scored = image["psnr"] is not None or image["psnr_bicubic"] is not None
    return number(image[key], 2, "infinite" if scored else "not measured")  # JSON has no infinity
