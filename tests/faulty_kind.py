"""Inputs for the fuzz command that do what inputs must not, each another thing, by its number."""

import os
from pathlib import Path

import numpy as np

from tests.fuzz.kinds import Kind, Refused, Unfit

OUTCOMES = (
    "read",
    "refused",
    "refused",
    "traceback",
    "wrong",
    "wrong",
    "hang",
    "memory",
    "died",
    "read",
)
DRAWN = [int(np.random.default_rng([7, i]).integers(1 << 40)) for i in range(len(OUTCOMES))]


def make(rng: np.random.Generator, folder: Path) -> Path:
    (folder / "drawn").write_text(str(rng.integers(1 << 40)))
    return folder / "drawn"


def attack(path: Path) -> None:
    match DRAWN.index(int(path.read_text())):
        case 1:
            raise LookupError("expected another number")
        case 2:
            raise Refused("left out")
        case 3:
            raise ZeroDivisionError
        case 4:
            raise LookupError("in\ntwo lines")
        case 5:
            raise Unfit("numbers")
        case 6:
            while True:
                pass
        case 7:
            bytearray(300 << 20)
        case 8:
            os._exit(3)


KIND = Kind("faulty", make, attack, (LookupError,))
