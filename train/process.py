"""A run of train.py in a process of its own, for the commands that compare such runs."""

import argparse
import logging
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train import log
from train.options import add_packed
from utils import command
from utils.command import UserError
from utils.files import ROOT

logger = logging.getLogger(__name__)


def add_data(parser: argparse.ArgumentParser) -> None:
    """The options that say what train.py is measured on."""
    parser.add_argument(
        "--data", type=command.path, nargs="+", required=True, metavar="DIR", help="as for train.py"
    )
    add_packed(parser)


def require_data(args: argparse.Namespace) -> None:
    """UserError unless what add_data's options name is there: no row could be measured."""
    for folder in args.data:
        if not folder.exists():
            raise UserError(f"expected a folder of images, got none: {folder}")


def run_train(
    options: Sequence[object], args: argparse.Namespace, record: Path, minutes: float = math.inf
) -> list[dict[str, Any]]:
    """The log of a run of train.py with these options, on the data of add_data's options.

    What is compiled is kept beside `record`, the file that the figures go to, and so is all that a
    failed run printed.

    Raises:
        RuntimeError: it failed, or took more than so many minutes; the message says why.
    """
    compiled = str(record.resolve().parent / ".compiled")
    kept = dict.fromkeys(("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"), compiled)
    with tempfile.TemporaryDirectory() as folder:
        data = ["--data", *args.data, "--packed", args.packed, "--out", folder]
        line = [sys.executable, ROOT / "train" / "train.py", *data, *options]
        try:
            done = subprocess.run(
                list(map(str, line)),
                capture_output=True,
                text=True,
                timeout=None if minutes == math.inf else 60 * minutes,
                env={**os.environ, **kept},
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"not done after {minutes:g} minutes") from error
        if done.returncode:
            whole = record.with_suffix(".failed.log")
            whole.write_text(done.stderr)
            logger.info("its whole output is in %s", whole)
            raise RuntimeError(_reason(done.stderr))
        return log.read(Path(folder) / "log.jsonl")


def _reason(stderr: str) -> str:
    """The line of an error message that names the error; torch.compile ends with advice."""
    lines = stderr.strip().splitlines() or ["no message"]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Failed)\b.*:", line)]
    return named[-1] if named else lines[-1].removeprefix("train/train.py: ")
