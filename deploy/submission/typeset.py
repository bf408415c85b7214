"""LaTeX: texts and tables as its source, and a source as a PDF where a TeX is installed."""

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.text import printable

TEX = ("pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape")
# What LaTeX reads as more than the character, or its default font has another sign for.
ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    **{character: "\\" + character for character in "_%&#${}"},
    "-": "-{}",
}


class TexError(ValueError):
    """A factsheet that TeX does not set; the message holds its first complaint."""


def escaped(text: str) -> str:
    """A text as LaTeX that sets it as it is."""
    return "".join(
        ESCAPES.get(character, character)
        for character in printable(" ".join(text.split()), len(text))
    )


def tabular(rows: Sequence[Sequence[str]], columns: str = "") -> str:
    """A table, its first row the header; without `columns` the first of them to the left, the
    others centred."""
    head, *body = (" & ".join(map(escaped, row)) + r" \\" for row in rows)
    columns = columns or "l" + "c" * (len(rows[0]) - 1)
    line = r"\hline\rule{0pt}{2.4ex}%"  # with room below it
    lines = [rf"\begin{{tabular}}{{{columns}}}", line, head]
    lines += [line, *body] if body else []
    return "\n".join([*lines, r"\hline", r"\end{tabular}"])


def pdf(sources: Mapping[str, bytes]) -> bytes | None:
    """Files by their names, factsheet.tex among them, as a PDF; None without pdflatex.

    Raises:
        TexError: TeX does not set it.
    """
    if not shutil.which(TEX[0]):
        return None
    with tempfile.TemporaryDirectory() as folder:
        for name, content in sources.items():
            Path(folder, name).write_bytes(content)
        result = Path(folder, "factsheet.pdf")
        for _ in range(2):  # the second knows its own references
            try:
                done = subprocess.run(
                    [*TEX, "factsheet.tex"],
                    cwd=folder,
                    timeout=300,
                    capture_output=True,
                    text=True,
                    errors="replace",
                )
            except subprocess.TimeoutExpired as error:
                raise TexError(
                    f"expected pdflatex to end in {error.timeout:.0f} s, it did not: set "
                    "factsheet.tex by hand"
                ) from error
            if done.returncode or not result.exists():
                lines = done.stdout.splitlines()
                complaint = next((line for line in lines if line.startswith("!")), "no message")
                raise TexError(
                    f"expected pdflatex to set factsheet.tex, got {complaint}: look at the file"
                )
        return result.read_bytes()
