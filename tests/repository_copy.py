"""Copies of the repository, for tests that break one or check what is not yet tracked."""

import shutil
import subprocess
from pathlib import Path

from deploy.submission.__main__ import read_entry
from utils.files import ROOT


def listed(*options: str) -> list[str]:
    """Files that git lists; what is deleted and not yet so in git is left out."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", *options],
        text=True,
        capture_output=True,
        check=True,
    )
    return [file for file in done.stdout.split("\0") if file and (ROOT / file).is_file()]


def in_git() -> bool:
    """Whether git can say what belongs to the repository."""
    return (ROOT / ".git").exists() and shutil.which("git") is not None


def copied(folder: Path) -> Path:
    """A copy without git, with what is not yet tracked but would be."""
    files = listed("-co", "--exclude-standard") if in_git() else read_entry(ROOT).files
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, folder / file)
    return folder
