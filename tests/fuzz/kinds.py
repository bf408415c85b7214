"""What an input of the fuzz command is, and what may become of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

READ, REFUSED = "read", "refused"
# What must not happen: another exception than the reader's own; a result or a message that is not
# fit to be used or printed; more time or memory than allowed; the end of the process.
WRONG = ("traceback", "wrong", "hang", "memory", "died")


class Refused(Exception):
    """The input was left out, as the readers of folders do, who raise nothing."""


class Unfit(Exception):
    """What came out is not fit to be used or printed; the message says what of it."""


@dataclass(frozen=True)
class Kind:
    """One sort of inputs.

    make: writes the input of a random generator into an empty folder; returns its path.
    attack: reads it as the commands do; raises Refused, one of `refusals`, or what it must not.
    refusals: the exceptions of which a command makes one line.
    """

    name: str
    make: Callable[[np.random.Generator, Path], Path]
    attack: Callable[[Path], None]
    refusals: tuple[type[Exception], ...]


def check_text(text: str, lines: bool = False, most: int = 2000) -> None:
    """Raise Unfit for text that a terminal should not be given; `lines`: more than one is fine."""
    if not text or len(text) > most:
        raise Unfit(f"a text of {len(text)} characters")
    if bad := next((c for c in text if not (c.isprintable() or lines and c in "\n\t")), None):
        raise Unfit(f"a text with {bad!r} in it")
