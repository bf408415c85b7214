"""deploy/submission: the command and the package that it builds of this repository."""

import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from repository_copy import copied, in_git, listed

from deploy.submission import rules
from deploy.submission.__main__ import main, read_entry
from deploy.submission.package import branch, result_files, write_zip
from deploy.submission.team import TEAM
from utils.command import UserError
from utils.files import ROOT, read_json, sha256, write_json

Image = NDArray[np.uint8]
# Of a clone of the organisers' repository.
TEMPLATE = (
    ".gitignore",
    "LICENSE",
    "README.md",
    "test_demo.py",
    "factsheet/factsheet.zip",
    "models/team00_RFDN.py",
    "model_zoo/team00_rfdn.pth",
    "utils/model_summary.py",
    "utils/utils_image.py",
    "utils/utils_logger.py",
)
# .. and of this one.
NEEDED = {
    "test_demo.py",
    "upscale.py",
    "README.md",
    "LICENSE",
    "requirements.txt",
    "constraints.txt",
    "CONTRIBUTING.md",
    "models/team23_LKDN.py",
    "model_zoo/team23_LKDN.pth",
    "data/README.md",
    "deploy/README.md",
    "deploy/submission/architecture.tex",
    "train/train.py",
    "tests/conftest.py",
    "utils/record.py",
    "results/README.md",
    "results/published/23_LKDN_training.json",
}
SELECT_MODEL = """\
import os
import torch

def select_model(model_id):
    if model_id == 0:
        name, data_range, model = "theirs", 255.0, None
    else:
        raise NotImplementedError
    return name, data_range, model

name, data_range, model = select_model(23)
print(name, data_range, model(torch.rand(1, 3, 5, 7)).shape)
"""


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
    run = read_json(ROOT / "results" / "published" / "23_LKDN_demo_cpu_eager_fp32.json")
    for dataset, names in (("DIV2K_LSDIR_valid", ("0801", "0802")), ("demo", ("rocket",))):
        images = []
        for name in names:
            file = save(folder / "23_LKDN" / dataset / f"{name}.png", noise(8, 8))
            images.append({**run["images"][0], "name": name, "png_sha256": sha256(file)})
        file = folder / f"23_LKDN_{dataset}_cpu_eager_fp32.json"
        write_json(file, {**run, "dataset": dataset, "images": images})
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
    clean = not in_git() or not listed("-o", "--exclude-standard")
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
    tree = {name.removeprefix("team23_LKDN/") for name in code if name.startswith("team23_LKDN/")}
    assert tree >= NEEDED and not [name for name in tree if name.startswith(("train/state/", "."))]
    assert names(folder / "factsheet.zip") == ["architecture.tex", "astronaut.png", "factsheet.tex"]
    assert names(folder / "results.zip") == [
        "23_LKDN/DIV2K_LSDIR_valid/0801.png",
        "23_LKDN/DIV2K_LSDIR_valid/0802.png",
        "results.json",
        "results.txt",
    ]
    assert not [path for path in folder.iterdir() if path.suffix == ".tmp"]


def test_over_a_clone_of_the_template_nothing_is_replaced(
    package: tuple[str, Path], tmp_path: Path, python: Callable
) -> None:
    for file in TEMPLATE:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(SELECT_MODEL if file == "test_demo.py" else "theirs")
    with zipfile.ZipFile(package[1] / "code.zip") as archive:
        assert not set(TEMPLATE) & set(archive.namelist())
        archive.extractall(tmp_path)
    added = {
        path.name for folder in ("models", "model_zoo") for path in (tmp_path / folder).iterdir()
    }
    assert added == {"team00_RFDN.py", "team00_rfdn.pth", "team23_LKDN.py", "team23_LKDN.pth"}
    lines = (tmp_path / "team23_LKDN_select_model.txt").read_text()
    assert lines.strip() in (ROOT / "README.md").read_text()
    (tmp_path / "test_demo.py").write_text(SELECT_MODEL.replace("    else:", f"{lines}    else:"))
    done = python(tmp_path, "test_demo.py")
    assert done.stdout == "23_LKDN 1.0 torch.Size([1, 3, 20, 28])\n", done.stderr
    done = python(
        tmp_path / "team23_LKDN",
        "test_demo.py",
        "--dataset",
        "demo",
        "--no_images",
        "--save_dir",
        "out",
    )
    assert done.returncode == 0, done.stderr
    assert "129177" in done.stdout and "Traceback" not in done.stderr
    done = python(tmp_path / "team23_LKDN", "train/train.py", "--help")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("key", ["", ":params_ema"])
def test_the_lines_for_the_template_are_those_of_the_entry(
    copy: Path, python: Callable, key: str
) -> None:
    """Of weights in a larger checkpoint, in 0..255, with what is to be called then."""
    network, demo = copy / "models" / "team23_LKDN.py", copy / "test_demo.py"
    text = network.read_text()
    method = "    def deploy(self):\n        print('deployed')\n\n    def forward("
    network.write_text(method.join(text.rsplit("    def forward(", 1)))
    line = '"models.team23_LKDN:LKDN", "team23_LKDN.pth"'
    assert line in demo.read_text()
    changed = f'{line[:-1]}{key}", data_range=255.0, after_loading="deploy"'
    demo.write_text(demo.read_text().replace(line, changed))
    weights = copy / "model_zoo" / "team23_LKDN.pth"
    state = torch.load(weights, weights_only=True)
    bad = dict.fromkeys(state, torch.zeros(1))  # which cannot be loaded
    torch.save({"params": bad, "params_ema": state} if key else {"params": state}, weights)
    lines = branch(read_entry(copy))
    demo.write_text(SELECT_MODEL.replace("    else:", f"{lines}    else:"))
    done = python(copy, "test_demo.py")
    said = "deployed\n23_LKDN 255.0 torch.Size([1, 3, 20, 28])\n"
    assert done.stdout == said, done.stderr


def test_equal_files_make_equal_packages(
    package: tuple[str, Path],
    copy: Path,
    restored: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)  # no PDF
    later = tmp_path / "restored"
    shutil.copytree(restored, later, copy_function=shutil.copyfile)  # other dates
    assert main(["--root", str(copy), "-o", str(tmp_path / "b"), "--results", str(later)]) == 0
    for name in ("code.zip", "results.zip", "factsheet.zip", "email.txt"):
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
        "missing in deploy/submission/team.toml: leader's name, leader's email, ",
    ):
        assert sentence in said
    built = ["code.zip", "email.txt", "factsheet", "factsheet.zip"]
    assert sorted(path.name for path in out.iterdir()) == built
    assert main(["--root", str(copy), "-o", str(tmp_path / "checked"), "--no_zip"]) == 0
    built = ["email.txt", "factsheet"]
    assert sorted(path.name for path in (tmp_path / "checked").iterdir()) == built


def test_all_sets_are_sent_where_none_is_the_challenges(
    tmp_path: Path, noise: Callable[..., Image], save: Callable[[Path, Image], Path]
) -> None:
    save(tmp_path / "23_LKDN" / "Set5" / "baby.png", noise(8, 8))
    save(tmp_path / "00_RFDN" / "Set5" / "baby.png", noise(8, 8))
    assert list(result_files(read_entry(ROOT, tmp_path))) == ["23_LKDN/Set5/baby.png"]


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_names_that_are_not_utf_8_are_sent_escaped(tmp_path: Path) -> None:
    root, name = tmp_path / "root", os.fsdecode(b"caf\xe9.txt")
    (root / "deploy" / "submission").mkdir(parents=True)
    shutil.copy(ROOT / TEAM, root / TEAM)
    (root / name).write_text("x")
    for git in ("init", "add ."):
        subprocess.run(["git", "-C", root, *git.split()], check=True, capture_output=True)
    assert read_entry(root).files == (name, TEAM)
    write_zip(tmp_path / "a.zip", {name: root / name})
    assert names(tmp_path / "a.zip") == [r"caf\udce9.txt"]


def test_wrong_usage_is_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for option in ("--root", "--results"):
        assert main([option, str(tmp_path / "none"), "-o", str(tmp_path / "out")]) == 2
        assert "expected a folder, got none" in capsys.readouterr().err


def test_no_link_leads_out_of_what_is_sent(
    tmp_path: Path, noise: Callable[..., Image], save: Callable[[Path, Image], Path]
) -> None:
    secret = save(tmp_path / "secret.png", noise(8, 8))
    root, results = tmp_path / "root", tmp_path / "results"
    (root / "deploy" / "submission").mkdir(parents=True)
    shutil.copy(ROOT / TEAM, root / TEAM)
    assert read_entry(root).files == (TEAM,)
    (root / ".token").touch()
    for target in (secret, root / ".token"):  # outside, and inside but not sent
        (root / "notes.txt").symlink_to(target)
        with pytest.raises(UserError, match="got a link to another in notes.txt"):
            read_entry(root)
        (root / "notes.txt").unlink()
    (root / "team.toml").symlink_to(root / TEAM)
    assert read_entry(root).files == (TEAM, "team.toml")

    save(results / "23_LKDN" / "Set5" / "baby.png", noise(8, 8))
    (results / "23_LKDN" / "Set5" / "bird.png").symlink_to(secret)
    with pytest.raises(UserError, match="got a link out of it in .*bird.png"):
        result_files(read_entry(ROOT, results))
