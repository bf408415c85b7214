"""Figures, tables and machines as text."""

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def machine(environment: Mapping[str, Any]) -> str:
    """What a run ran on, of the environment in its record."""
    return f"{device_name(environment)}, {environment['threads']} threads"


def device_name(environment: Mapping[str, Any]) -> str:
    """The device of a run, and a CPU's widest instructions, if its record has them."""
    able = environment.get("instructions")
    return f"{environment['device']}, {able}" if able else str(environment["device"])


def revision(environment: Mapping[str, Any]) -> str:
    """The commit of a run, and whether its files were changed since."""
    return f"{str(environment.get('commit'))[:7]}{', changed' if environment.get('dirty') else ''}"


def number(value: float | None, digits: int, missing: str = "not measured") -> str:
    """A figure for a table, or the word for one that is missing."""
    return missing if value is None else f"{value:.{digits}f}"


def aligned(rows: Sequence[Sequence[str]], separator: str = "  ") -> str:
    """A table in columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        separator.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    )


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its first row the header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def encoded(text: str) -> bytes:
    """Text for a file, in UTF-8. Bytes of a file's name that are no UTF-8, which Python has as lone
    surrogates, are escaped as \\udc82, of which JSON makes the same name again."""
    return text.encode("utf-8", "backslashreplace")


def printable(value: object, most: int = 60) -> str:
    """Text from a file for a terminal: one line, without control characters, cut to `most`."""
    text = str(value)
    cut = text[:most] + "…" if len(text) > most else text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in cut)


def first_line(error: BaseException, most: int = 200) -> str:
    """The first line of an error's message for a terminal; its type where it has none."""
    lines = str(error).strip().splitlines()
    return printable(lines[0] if lines else type(error).__name__, most)


# What Markdown reads as more than the character, or ends a cell of a table.
MARKDOWN = str.maketrans({c: f"&#{ord(c)};" for c in "|<`[\\&*~"})


def in_markdown(record: Any) -> Any:
    """The same record, its texts as Markdown that shows them as they are, on one line each."""
    return _changed(record, lambda text: printable(text, len(text)).translate(MARKDOWN))


def in_code(text: str) -> str:
    """A text that in_markdown made, for a block of code, which shows characters as they are. But
    < stays escaped: the marks of a document's generated parts begin with it."""
    return html.unescape(text.replace("&#60;", "&#38;#60;"))


def in_terminal(record: Any) -> Any:
    """The same record, its texts without control characters, on one line each."""
    return _changed(record, lambda text: printable(text, len(text)))


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {change(key): _changed(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_changed(item, change) for item in value]
    return change(value) if isinstance(value, str) else value
