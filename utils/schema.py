"""What the content of a JSON must be, and where it first is not."""

import re
from typing import Any

from utils.text import printable

# A kind of value is: str, bool, None; int or float, finite and of a size that can be printed; a
# range or a pattern that holds it; a list of one kind, [kind], of one item at least if
# [kind, ...], or of so many kinds; a dict of kinds by key, where "key?" may be missing and "*" is
# any other; a tuple of kinds, any of which will do.
Kind = Any

MOST = 10**18  # of a number, either way
NAME = re.compile(r"(?!\.{1,2}\Z)[^/\0]+")  # of a file or folder


def misfit(value: Any, kind: Kind, where: str = "") -> str | None:
    """What was expected where and what came, of the first value that is not of its kind."""
    if isinstance(kind, tuple):
        found = [misfit(value, one, where) for one in kind]
        return None if None in found else found[0]
    if isinstance(kind, dict) and isinstance(value, dict):
        return _misfit_in(value, kind, where)
    if isinstance(kind, list) and isinstance(value, list):
        many = len(kind) == 1 or (kind[-1] is ... and value)
        kinds = kind[:1] * len(value) if many else kind
        if len(kinds) == len(value):
            pairs = enumerate(zip(value, kinds, strict=True))
            faults = (misfit(item, kind, f"{where}[{i}]") for i, (item, kind) in pairs)
            return next(filter(None, faults), None)
    if _fits(value, kind):
        return None
    at = f" for {printable(where)}" if where else ""
    return f"expected {_words(kind)}{at}, got {printable(repr(value))}"


def _misfit_in(value: dict[str, Any], kinds: dict[str, Kind], where: str) -> str | None:
    dot = "." if where else ""
    for name, kind in kinds.items():
        key = name.removesuffix("?")
        if key in value:
            found = misfit(value[key], kind, f"{where}{dot}{key}")
        elif name == "*":
            others = {key: kind for key in value if key not in kinds and f"{key}?" not in kinds}
            found = _misfit_in(value, others, where) if others else None
        else:
            found = None if name != key else f"expected {printable(where + dot + key)}, got none"
        if found:
            return found
    return None


def _fits(value: Any, kind: Kind) -> bool:
    if isinstance(kind, re.Pattern):
        return isinstance(value, str) and bool(kind.fullmatch(value))
    if isinstance(kind, range):
        return type(value) is int and value in kind
    if kind is int or kind is float:
        number = int if kind is int else (int, float)
        is_number = isinstance(value, number) and not isinstance(value, bool)
        return is_number and -MOST <= value <= MOST  # which NaN is not
    return value is None if kind is None else isinstance(kind, type) and isinstance(value, kind)


def _words(kind: Kind) -> str:
    words = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    if isinstance(kind, range):
        return f"a whole number of {kind.start} to {kind.stop - 1}"
    if isinstance(kind, re.Pattern):
        return f"a text such as {kind.pattern}" if kind is not NAME else "a name"
    if isinstance(kind, dict | list):
        return "fields" if isinstance(kind, dict) else "a list"
    return "nothing" if kind is None else words[kind]
