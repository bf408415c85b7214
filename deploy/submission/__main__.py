"""Check the organisers' rules and build what is sent to them: python -m deploy.submission

The code, the SR images of a run, the factsheet and the email; nothing while a rule is broken.
"""

import argparse
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

from deploy.submission.entry import Entry
from deploy.submission.package import build
from deploy.submission.rules import FILE_RULES, MODEL_RULES, check
from deploy.submission.team import TEAM, read_team
from deploy.submission.typeset import TexError
from utils import command
from utils.command import UserError
from utils.files import ROOT

# Outside git: what .gitignore leaves out, and whatever is hidden.
IGNORED = re.compile(
    r"(.*/)?(\.[^/]+|__pycache__|venv|[^/]+\.egg-info)(/.*)?|runs/.*"
    r"|data/(?!(README\.md|prepare\.py)$).*|results/(?!README\.md$|published/).*"
)


def main(argv: list[str] | None = None) -> int:
    """The command; its exit code."""
    parser = command.parser(__doc__, "deploy.submission")
    add = parser.add_argument
    add("--root", type=command.path, default=ROOT, metavar="DIR", help="the repository")
    add(
        "-o",
        "--output",
        type=command.path,
        default=Path("results/submission"),
        metavar="DIR",
        help="where the package goes",
    )
    add(
        "--results",
        type=command.path,
        metavar="SAVE_DIR",
        help="the --save_dir of a run of test_demo.py whose SR images are sent",
    )
    add("--no_zip", action="store_true", help="check, and write factsheet and email alone")
    args = parser.parse_args(argv)
    return command.run("deploy.submission", lambda: submit(args), failures=(TexError,))


def submit(args: argparse.Namespace) -> int:
    """Check the rules, build what is sent if all are kept, and say so; the exit code."""
    entry = read_entry(args.root, args.results)
    if broken := check(entry):
        title = f"deploy.submission: nothing is built, {len(broken)} violations of the rules:"
        print(title, *broken, sep="\n  ", file=sys.stderr)
        return command.FAILED
    print(f"{entry.name}: {len(FILE_RULES | MODEL_RULES)} rules kept")
    if not importlib.util.find_spec("fvcore"):
        print("2024's FLOPs not counted: fvcore is not installed")
    command.make_folder(args.output)
    for line in build(entry, args.output, args.no_zip):
        print(line)
    return command.GOOD


def read_entry(root: Path, results: Path | None = None) -> Entry:
    """The entry of a repository: what git tracks, or outside git what is not IGNORED.

    Raises:
        UserError: a folder does not exist, deploy/submission/team.toml is missing or wrong, or a
            file is a link to what is not sent.
    """
    for folder in filter(None, (root, results)):
        if not folder.is_dir():
            raise UserError(f"expected a folder, got none: {folder}")
    team = read_team(root / TEAM)
    if (root / ".git").exists():
        try:
            listed = subprocess.run(
                ["git", "-C", str(root), "ls-files", "-z"],
                check=True,
                capture_output=True,
                timeout=60,
            ).stdout
        except (OSError, subprocess.SubprocessError) as error:
            said = os.fsdecode(getattr(error, "stderr", None) or b"").splitlines()
            reason = said[0] if said else error
            raise UserError(f"expected git to list the files of {root}, got {reason}") from error
        files = [file for file in os.fsdecode(listed).split("\0") if (root / file).is_file()]
    else:
        files = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
        files = [file for file in files if not IGNORED.fullmatch(file)]
    home, known = root.resolve(), set(files)
    for file in files:
        target = (root / file).resolve()
        if not target.is_relative_to(home) or target.relative_to(home).as_posix() not in known:
            raise UserError(
                f"expected files of {root}, got a link to another in {file}: put the file there"
            )
    return Entry(root, team, tuple(sorted(files)), results)


if __name__ == "__main__":
    command.start(main)
