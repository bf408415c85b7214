"""deploy/submission: the rules on this repository and broken copies, the package, the LaTeX."""

import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from deploy.submission import factsheet, rules
from deploy.submission.__main__ import main, read_entry, result_files
from utils.files import ROOT

Image = NDArray[np.uint8]
CHECKPOINT = "model_zoo/team23_LKDN.pth"
RECORD = "results/published/23_LKDN_training.json"
TEAM = (ROOT / "deploy" / "submission" / "team.toml").read_text()

needs_tex = pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")


def listed(*options: str) -> list[str]:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", *options],
        text=True,
        capture_output=True,
        check=True,
    )
    return [file for file in done.stdout.split("\0") if file and (ROOT / file).is_file()]


def copied(folder: Path) -> Path:
    """A copy of the repository without git, with what is not yet tracked but would be."""
    in_git = (ROOT / ".git").exists() and shutil.which("git")
    files = listed("-co", "--exclude-standard") if in_git else read_entry(ROOT).files
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, folder / file)
    return folder


@pytest.fixture()
def copy(tmp_path: Path) -> Path:
    return copied(tmp_path / "copy")


@pytest.fixture(scope="session")
def restored(
    tmp_path_factory: pytest.TempPathFactory,
    noise: Callable[..., Image],
    save: Callable[[Path, Image], Path],
) -> Path:
    """A --save_dir as test_demo.py leaves it."""
    folder = tmp_path_factory.mktemp("restored")
    for name in ("DIV2K_valid/0801", "DIV2K_valid/0802", "demo/rocket"):
        save(folder / "23_LKDN" / f"{name}.png", noise(8, 8))
    (folder / "results.json").write_text("{}\n")
    (folder / "results.txt").write_text("Model\n")
    return folder


@pytest.fixture(scope="session")
def package(
    tmp_path_factory: pytest.TempPathFactory, python: Callable, restored: Path
) -> tuple[str, Path]:
    """What the command says of this repository, and what it builds.

    It looks at tracked files alone; where some are not tracked yet, a copy with them is checked.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    in_git = (ROOT / ".git").exists() and shutil.which("git")
    clean = not in_git or not listed("-o", "--exclude-standard")
    root = ROOT if clean else copied(folder / "copy")
    done = python(
        ROOT,
        "-m",
        "deploy.submission",
        "--root",
        root,
        "-o",
        folder / "package",
        "--results",
        restored,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, folder / "package"


def names(file: Path) -> list[str]:
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        return archive.namelist()


def test_this_repository_keeps_the_rules(package: tuple[str, Path]) -> None:
    said, folder = package
    assert said.startswith(f"23_LKDN: {len(rules.FILE_RULES | rules.MODEL_RULES)} rules kept\n")
    code = names(folder / "code.zip")
    assert code == sorted(code)
    needed = {
        "test_demo.py",
        "README.md",
        "LICENSE",
        "requirements.txt",
        "constraints.txt",
        "models/team23_LKDN.py",
        CHECKPOINT,
        "data/README.md",
        "train/train.py",
        "utils/record.py",
        "results/README.md",
        RECORD,
    }
    assert needed <= set(code)
    assert {"upscale.py", "deploy/README.md", "CONTRIBUTING.md", "tests/conftest.py"} <= set(code)
    assert not [name for name in code if name.startswith(("train/state/", "."))]
    assert names(folder / "results.zip") == [
        "23_LKDN/DIV2K_valid/0801.png",
        "23_LKDN/DIV2K_valid/0802.png",
        "results.json",
        "results.txt",
    ]
    assert not [path for path in folder.iterdir() if path.suffix == ".tmp"]


def test_the_judges_command_runs_from_the_package(
    package: tuple[str, Path], tmp_path: Path, python: Callable
) -> None:
    with zipfile.ZipFile(package[1] / "code.zip") as archive:
        archive.extractall(tmp_path)
    done = python(tmp_path, "test_demo.py", "--dataset", "demo", "--no_images", "--save_dir", "out")
    assert done.returncode == 0, done.stderr
    assert "129177" in done.stdout and "Traceback" not in done.stderr
    done = python(tmp_path, "train/train.py", "--help")
    assert done.returncode == 0, done.stderr


def test_equal_files_make_equal_packages(
    package: tuple[str, Path],
    copy: Path,
    restored: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    later = tmp_path / "restored"
    shutil.copytree(restored, later, copy_function=shutil.copyfile)  # other dates
    assert main(["--root", str(copy), "-o", str(tmp_path / "b"), "--results", str(later)]) == 0
    for name in ("code.zip", "results.zip", "factsheet.tex"):
        assert (package[1] / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_what_is_not_there_is_left_out_with_a_sentence(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    out = tmp_path / "out"
    out.mkdir()
    for name in ("results.zip", "factsheet.pdf"):
        (out / name).write_text("of an earlier call")
    assert main(["--root", str(copy), "-o", str(out)]) == 0
    said = capsys.readouterr().out
    for sentence in (
        "no results.zip: give --results",
        "no factsheet.pdf: install pdflatex",
        "no email in deploy/submission/team.toml",
    ):
        assert sentence in said
    assert sorted(path.name for path in out.iterdir()) == ["code.zip", "factsheet.tex"]
    assert main(["--root", str(copy), "-o", str(tmp_path / "checked"), "--no_zip"]) == 0
    assert [path.name for path in (tmp_path / "checked").iterdir()] == ["factsheet.tex"]


def test_all_sets_are_sent_where_none_is_the_challenges(
    tmp_path: Path, noise: Callable[..., Image], save: Callable[[Path, Image], Path]
) -> None:
    save(tmp_path / "23_LKDN" / "Set5" / "baby.png", noise(8, 8))
    save(tmp_path / "00_RFDN" / "Set5" / "baby.png", noise(8, 8))
    assert list(result_files(read_entry(ROOT, tmp_path))) == ["23_LKDN/Set5/baby.png"]


def edit(file: str, old: str, new: str) -> Callable[[Path], None]:
    def change(copy: Path) -> None:
        text = (copy / file).read_text()
        assert old in text
        (copy / file).write_text(text.replace(old, new))

    return change


def edit_json(file: str, **values: Any) -> Callable[[Path], None]:
    def change(copy: Path) -> None:
        content = json.loads((copy / file).read_text())
        (copy / file).write_text(json.dumps(content | values))

    return change


def edit_weights(change_state: Callable[[dict], Any]) -> Callable[[Path], None]:
    def change(copy: Path) -> None:
        state = torch.load(copy / CHECKPOINT, weights_only=True)
        change_state(state)
        torch.save(state, copy / CHECKPOINT)

    return change


def put(*images: str) -> Callable[[Path], None]:
    def change(copy: Path) -> None:
        for name in images:
            (copy / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(copy / "results/published/ladder_cpu.png", copy / name)

    return change


def put_lr_and_sr(copy: Path) -> None:
    import cv2

    for name, side in (("a", 8), ("b", 32)):
        picture = np.zeros((side, side, 3), np.uint8)
        cv2.imwrite(str(copy / "results" / "published" / f"{name}.png"), picture)


def grow(copy: Path) -> None:
    with (copy / "utils" / "large.bin").open("wb") as file:
        file.truncate(101_000_000)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "model imports utils": (
        edit("models/team23_LKDN.py", "import torch\n", "import torch\nimport utils.images\n"),
        r"one self-contained model file: expected models/team23_LKDN\.py to import .*utils",
    ),
    "two models": (
        lambda copy: shutil.copyfile(copy / "models/team23_LKDN.py", copy / "models/team23_B.py"),
        r"expected one file models/team23_NAME\.py, got models/team23_B\.py, models/team23_LKDN",
    ),
    "checkpoint of another name": (
        lambda copy: (copy / CHECKPOINT).rename(copy / "model_zoo/LKDN.pth"),
        r"named like the model: expected one model_zoo/team23_LKDN\.pth.*got model_zoo/LKDN\.pth",
    ),
    "missing key": (
        edit_weights(lambda state: state.pop("c1.bias")),
        r"weights that load.*does not fit LKDN: missing: c1\.bias",
    ),
    "wrong shape": (
        edit_weights(lambda state: state.update({"c1.bias": torch.zeros(43)})),
        r"weights that load.*of another shape: c1\.bias \(43,\), expected \(42,\)",
    ),
    "not finite": (
        edit_weights(lambda state: state["c1.bias"].fill_(torch.nan)),
        r"weights that load.*expected finite weights",
    ),
    "other claims": (
        edit_json("results/published/23_LKDN_demo_cpu_eager_fp32.json", num_parameters=129_176),
        r"cost what is claimed: expected the num_parameters.*129,176, got 129,177",
    ),
    "LR image": (
        put("DIV2K_valid_LR/0801x4.png"),
        r"no LR, SR or HR images: .*got DIV2K_valid_LR/0801x4\.png",
    ),
    "LR image published": (put("results/published/0801x4.png"), r"no image of the challenge, got"),
    "other image": (put("utils/photo.png"), r"no image but PNG pictures.*got utils/photo\.png"),
    "LR beside SR": (put_lr_and_sr, r"expected no LR beside .*/a\.png and .*/b\.png"),
    "no credits": (
        lambda copy: (copy / "README.md").write_text(
            (copy / "README.md").read_text().partition("## Credits")[0]
        ),
        r"credit to what the work is based on: .*name Chengxing Xie, .*Keller Jordan",
    ),
    "an author forgotten": (
        edit("README.md", "Haiteng Meng, ", ""),
        r"Credits in README\.md that name Haiteng Meng",
    ),
    "record of other weights": (
        edit_json(RECORD, sha256="0" * 64),
        r"no training on .*sha256 c?\w+, got that of 000000000000",
    ),
    "nothing held out": (
        edit_json(RECORD, held_out_images_compared=0),
        r"expected held-out images compared",
    ),
    "no record": (
        lambda copy: (copy / RECORD).unlink(),
        r"no training on .*23_LKDN_training\.json",
    ),
    "test folder trained on": (
        edit(RECORD, '"train"', '"DIV2K_valid_HR"'),
        r"no validation or test images under stage1, got the folder DIV2K_valid_HR",
    ),
    "foreign start": (
        edit(RECORD, '"init": null', '"init": "authors.pth"'),
        r"known training, got authors\.pth",
    ),
    "model not selected": (
        edit("test_demo.py", "team23_LKDN", "team24_LKDN"),
        r"expected an import of models\.team23_LKDN in test_demo\.py",
    ),
    "a module missing": (
        lambda copy: (copy / "utils/metrics.py").unlink(),
        r"works after a clone: expected utils\.metrics, which utils/\w+\.py imports",
    ),
    "too large": (grow, r"package of at most 100 MB: .*got 10\d MB"),
}


@pytest.mark.parametrize(("broken", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_rule_is_named_and_nothing_built(
    copy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    broken: Callable[[Path], Any],
    reason: str,
) -> None:
    broken(copy)
    if "claim" not in reason:  # the counters' two seconds
        monkeypatch.setattr(
            rules.efficiency,
            "count",
            lambda net: rules.efficiency.Counts(129_177, 8_289_189_888, 202_702_848, 86),
        )
    assert main(["--root", str(copy), "-o", str(tmp_path / "out")]) == 1
    assert re.search(reason, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_results_of_other_weights_are_refused(copy: Path, tmp_path: Path) -> None:
    run = json.loads((copy / "results/published/23_LKDN_demo_cpu_eager_fp32.json").read_text())
    run["checkpoint"]["sha256"] = "0" * 64
    (tmp_path / "run.json").write_text(json.dumps(run))
    entry = read_entry(copy, tmp_path)
    (said,) = rules.MODEL_RULES["results of the weights that are sent"](entry)
    assert "those of others on demo" in said


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_git_says_which_files_are_sent(copy: Path) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", str(copy), *arguments], check=True, capture_output=True)

    without_git = read_entry(copy).files
    image = "data/DIV2K_valid_LR/0801x4.png"
    put(image)(copy)
    assert read_entry(copy).files == without_git
    git("init")
    git("add", ".")
    tracked = read_entry(copy).files
    assert all(file[0] == "." for file in set(tracked) - set(without_git))
    assert set(without_git) <= set(tracked)
    git("add", "-f", image)
    (said,) = rules.FILE_RULES["no LR, SR or HR images"](read_entry(copy))
    assert image in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "team.toml"),
        ("name = ", "team.toml"),
        (TEAM.replace('email = ""', ""), "see to email"),
        (TEAM + "\nleader = 'A'\n", "see to leader"),
        (TEAM.replace("id = 23", "id = true"), "id, a number of 0 to 99"),
        (TEAM.replace("id = 23", "id = 230"), "id, a number of 0 to 99"),
        (TEAM.replace('"Set5 Baby"', '" "'), "name, a text"),
        (TEAM.replace('"Linze Li"', "7"), "members, a list of names"),
        (TEAM.replace('email = ""', 'email = "nobody"'), "email, an address or empty"),
    ],
)
def test_a_wrong_team_is_one_sentence_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture, text: str | None, message: str
) -> None:
    (tmp_path / "deploy" / "submission").mkdir(parents=True)
    if text is not None:
        (tmp_path / "deploy" / "submission" / "team.toml").write_text(text)
    assert main(["--root", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_wrong_usage_is_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for option in ("--root", "--results"):
        assert main([option, str(tmp_path / "none"), "-o", str(tmp_path / "out")]) == 2
        assert "expected a folder, got none" in capsys.readouterr().err


def balanced(source: str) -> bool:
    """Whether braces, environments and dollars of LaTeX go in pairs."""
    bare = re.sub(r"\\.", "", re.sub(r"(?<!\\)%.*", "", source))
    depth = 0
    for character in bare:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth < 0:
            return False
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", source):
        if kind == "begin":
            opened.append(name)
        elif not opened or opened.pop() != name:
            return False
    return depth == 0 and not opened and bare.count("$") % 2 == 0


def test_the_factsheet_is_filled_and_balanced(package: tuple[str, Path]) -> None:
    source = (package[1] / "factsheet.tex").read_text()
    assert balanced(source) and not balanced(source.replace(r"\end{center}", "", 1))
    assert "@@" not in source and "None" not in source
    for cell in (
        "32.10 / 0.8938",
        "78.49",
        "Set5 Baby",
        "Xiaole Zhao",
        "129,177 parameters",
        "not given",
        "950,000",
        "python train/train.py",
    ):
        assert cell in source.replace("{}", "")
    entry = read_entry(ROOT)
    for run in entry.runs():
        assert f"{run['ave_psnr']:.2f}" in source


def hostile() -> str:
    """A factsheet of a team whose words are full of what LaTeX reads otherwise, and no run."""
    team = factsheet.read_team(ROOT / "deploy" / "submission" / "team.toml")
    words = r'50 % & #1 {_a_} $x$ ~ ^ \command <b> | "q" @@TEAM@@ -- é'
    team = replace(
        team,
        title=words,
        name=words,
        members=(words, words),
        affiliation=words,
        email="a_b%c@d.org",
    )
    return factsheet.latex(team, "23_LKDN", "0" * 64, {}, [])


def test_data_are_escaped() -> None:
    source = hostile()
    assert balanced(source)
    assert r"50 \% \& \#1 \{\_a\_\} \$x\$ \textasciitilde{} \textasciicircum{} " in source
    assert r"\textbackslash{}command \textless{}b\textgreater{} \textbar{}" in source
    assert r"a\_b\%c@d.org" in source and "not measured" in source


@needs_tex
def test_the_factsheet_compiles(package: tuple[str, Path]) -> None:
    assert (package[1] / "factsheet.pdf").read_bytes().startswith(b"%PDF")
    document = factsheet.pdf(hostile())
    assert document and document.startswith(b"%PDF")
    with pytest.raises(factsheet.TexError, match="got ! Undefined control sequence"):
        factsheet.pdf("\\documentclass{article}\n\\begin{document}\n\\nothing\n\\end{document}")
