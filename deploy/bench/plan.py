"""How much a benchmark has to run, and how long that takes by one that ran here before."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from utils.report import speed

WARM_UP = 3  # forwards before the first that is timed; the triton backend records at the second
TURN = 1  # .. and before the one that is timed in each turn: caches, clocks and threads wake up


def forwards(rounds: int) -> int:
    """How often a row runs at one size."""
    return WARM_UP + rounds * (TURN + 1)


def megapixels(sizes: Sequence[tuple[int, ...]], rounds: int) -> float:
    """LR megapixels that one row runs in all."""
    return forwards(rounds) * sum(height * width for height, width in sizes) / 1e6


def describe(
    labels: Sequence[str],
    sizes: Sequence[tuple[int, ...]],
    rounds: int,
    environment: Mapping[str, Any],
    earlier: Sequence[Path],
) -> str:
    """What is to be run, and how long that takes by the first of the files `earlier` that is a
    benchmark of the same device and as many threads."""
    count = forwards(rounds)
    text = f"{len(labels)} rows at {len(sizes)} sizes, {count} forwards each"
    for file in earlier:
        medians = _medians(file, environment)
        known = [medians[pair] for pair in product(labels, sizes) if pair in medians]
        if known:
            seconds = count * sum(known) / 1000
            time = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"
            return (
                f"{text}: about {time} of forwards by {file}, "
                f"which has {len(known)} of these {len(labels) * len(sizes)} pairs; to start each "
                "row and to measure its accuracy comes on top"
            )
    return f"{text}; no benchmark of this machine says how long that takes, the bar will"


def _medians(
    file: Path, environment: Mapping[str, Any]
) -> dict[tuple[str, tuple[int, ...]], float]:
    """Milliseconds by row and size, of a benchmark on such a machine; of any other file nothing."""
    result = speed.read(file)
    if not result:
        return {}
    known = result["environment"]
    # Older records do not tell the instructions.
    same = [key for key in ("device", "threads", "instructions") if key in known]
    if any(known[key] != environment.get(key) for key in same):
        return {}
    return {(row["label"], (row["height"], row["width"])): row["p50_ms"] for row in result["rows"]}
