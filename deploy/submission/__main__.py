"""Check the organisers' rules and build what is sent to them: python -m deploy.submission

The code, the SR images of a run, and the factsheet; nothing is built while a rule is broken.
"""

import argparse
import importlib.util
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from deploy.submission.factsheet import TexError, latex, pdf, read_team
from deploy.submission.rules import FILE_RULES, MODEL_RULES, Entry, check
from utils import command
from utils.command import UserError
from utils.datasets import CHALLENGE
from utils.files import ROOT, sha256, whole_file, write_bytes

TEAM = "deploy/submission/team.toml"
# Outside git: what .gitignore leaves out, and whatever is hidden.
IGNORED = re.compile(
    r"(.*/)?(\.[^/]+|__pycache__|venv|[^/]+\.egg-info)(/.*)?|runs/.*"
    r"|data/(?!(README\.md|prepare\.py)$).*|results/(?!README\.md$|published/).*"
)


def main(argv: list[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.submission",
        description=(__doc__ or "").splitlines()[0],
        formatter_class=command.HelpFormatter,
    )
    add = parser.add_argument
    add("--root", type=Path, default=ROOT, metavar="DIR", help="the repository")
    add(
        "-o",
        "--output",
        type=Path,
        default=Path("results/submission"),
        metavar="DIR",
        help="where the package goes",
    )
    add(
        "--results",
        type=Path,
        metavar="SAVE_DIR",
        help="the --save_dir of a run of test_demo.py whose SR images are sent",
    )
    add("--no_zip", action="store_true", help="check, and write the factsheet alone")
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
    for line in build(entry, args.output, args.no_zip):
        print(line)
    return command.GOOD


def read_entry(root: Path, results: Path | None = None) -> Entry:
    """The entry of a repository: what git tracks, or outside git what is not IGNORED.

    Raises:
        UserError: a folder does not exist, or deploy/submission/team.toml is missing or wrong.
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
                text=True,
                timeout=60,
            ).stdout
        except (OSError, subprocess.SubprocessError) as error:
            raise UserError(f"expected git to list the files of {root}, got {error}") from error
        files = [file for file in listed.split("\0") if file and (root / file).is_file()]
    else:
        files = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
        files = [file for file in files if not IGNORED.fullmatch(file)]
    return Entry(root, team, tuple(sorted(files)), results)


def build(entry: Entry, output: Path, no_zip: bool = False) -> Iterator[str]:
    """Write the package, with a sentence on each part.

    Raises:
        OSError: a file cannot be written.
        TexError: TeX does not set the factsheet.
    """
    if not no_zip:
        code = {file: entry.root / file for file in entry.sent}
        yield _zipped(output / "code.zip", code)
        if results := result_files(entry):
            yield _zipped(output / "results.zip", results)
        else:
            (output / "results.zip").unlink(missing_ok=True)  # of an earlier call
            yield (
                "no results.zip: "
                + (
                    f"no images of {entry.name} in {entry.results}"
                    if entry.results
                    else "give --results SAVE_DIR, of a run of test_demo.py"
                )
            )
    digest = sha256(entry.checkpoint)
    runs = [run for run in entry.runs() if run["checkpoint"]["sha256"] == digest]
    source = latex(entry.team, entry.name, digest, entry.training(), runs)
    write_bytes(output / "factsheet.tex", source.encode())
    yield f"{output / 'factsheet.tex'}: {len(runs)} published runs"
    if not entry.team.email:
        yield f"no email in {TEAM}, which the organisers need: the factsheet says so"
    (output / "factsheet.pdf").unlink(missing_ok=True)
    if document := pdf(source):
        write_bytes(output / "factsheet.pdf", document)
        yield f"{output / 'factsheet.pdf'}: {_size(output / 'factsheet.pdf')}"
    else:
        yield "no factsheet.pdf: install pdflatex, tectonic or latexmk, or set factsheet.tex"


def result_files(entry: Entry) -> dict[str, Path]:
    """SR images by their names in the package, the challenge's sets or else all, and the
    template's results; nothing where there are no images."""
    if entry.results is None:
        return {}
    by_set: dict[str, list[Path]] = {}
    for path in (entry.results / entry.name).glob("*/*.png"):
        by_set.setdefault(path.parent.name, []).append(path)
    if challenge := {name: by_set[name] for name in CHALLENGE if name in by_set}:
        by_set = challenge
    files = {
        f"{entry.name}/{name}/{path.name}": path for name, paths in by_set.items() for path in paths
    }
    tables = {name: entry.results / name for name in ("results.json", "results.txt")}
    return files and files | {name: path for name, path in tables.items() if path.is_file()}


def _zipped(path: Path, files: Mapping[str, Path]) -> str:
    write_zip(path, files)
    return f"{path}: {len(files)} files, {_size(path)}"


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.2f} MB"


def write_zip(path: Path, files: Mapping[str, Path]) -> None:
    """Write files under their names in a ZIP; equal files make equal bytes."""
    with whole_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name)  # dated 1980
            info.create_system = 3  # Unix, on any system
            info.external_attr = 0o644 << 16
            compressed = name.endswith(".png")
            info.compress_type = zipfile.ZIP_STORED if compressed else zipfile.ZIP_DEFLATED
            archive.writestr(info, files[name].read_bytes())


if __name__ == "__main__":
    sys.exit(main())
