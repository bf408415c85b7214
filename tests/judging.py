"""test_demo.py in a process of its own, for tests."""

import json
import subprocess
from pathlib import Path
from typing import Any

from warm_python import python

from utils.files import ROOT

SCRIPT = str(ROOT / "test_demo.py")
STEM = "23_LKDN@random"


def judge(cwd: Path, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
    device = () if "--device" in arguments else ("--device", "cpu")  # also where a GPU is
    done = python(cwd, SCRIPT, *arguments, *device, **environment)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def strict(path: Path) -> Any:
    """JSON that must not hold NaN or Infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} in {path}")

    return json.loads(path.read_text(), parse_constant=refuse)
