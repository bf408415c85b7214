"""The lines of a network's run in a file, beside the terminal."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def log_file(logger: logging.Logger, path: Path, model: str, failed: list[str]) -> Iterator[None]:
    """Send the lines that are logged with extra={"model": model} to a file, begun anew by the
    first of them. Where it cannot be written, the run goes on without it and `failed` says so."""
    handler = _LogFile(path, model, failed)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _LogFile(logging.Handler):
    """A file that is open for each line alone, so that all of them are in it, whatever comes."""

    def __init__(self, path: Path, model: str, failed: list[str]) -> None:
        super().__init__()
        self.path, self.model, self.failed, self.mode = path, model, failed, "w"

    def emit(self, line: logging.LogRecord) -> None:
        if not self.mode or getattr(line, "model", None) != self.model:
            return
        try:
            with self.path.open(self.mode, encoding="utf-8", errors="backslashreplace") as file:
                file.write(self.format(line) + "\n")
            self.mode = "a"
        except OSError as error:
            self.mode = ""
            self.failed.append(f"{self.path.name}: {error.strerror}")
