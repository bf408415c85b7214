"""deploy/submission: each of the organisers' rules on a copy of this repository that breaks it."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from repository_copy import copied

from deploy.submission import rules
from deploy.submission.__main__ import main, read_entry
from utils.command import UserError
from utils.files import sha256

CHECKPOINT = "model_zoo/team23_LKDN.pth"
RECORD = "results/published/23_LKDN_training.json"


@pytest.fixture()
def copy(tmp_path: Path) -> Path:
    return copied(tmp_path / "copy")


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
            shutil.copyfile(copy / "results/published/benchmark_cpu.png", copy / name)

    return change


def let_a_teacher_see_test_images(copy: Path) -> None:
    """Only the last stage's teacher, in the first stage of its own."""
    content = json.loads((copy / RECORD).read_text())
    content["stages"][-1]["teacher"]["records"][0]["data_summary"]["folders"] = ["DIV2K_test_HR"]
    (copy / RECORD).write_text(json.dumps(content))


def grow(copy: Path) -> None:
    with (copy / "utils" / "large.bin").open("wb") as file:
        file.truncate(101_000_000)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "model imports utils": (
        edit("models/team23_LKDN.py", "import torch\n", "import torch\nimport utils.text\n"),
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
        r"no images but published pictures: .*got DIV2K_valid_LR/0801x4\.png",
    ),
    "LR image published": (put("results/published/0801x4.png"), r"no image of the challenge, got"),
    "other image": (put("utils/photo.png"), r"no image but PNG pictures.*got utils/photo\.png"),
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
    "teacher from elsewhere": (
        edit(RECORD, '"teacher": null', '"teacher": {"sha256": "0", "records": []}'),
        r"expected a teacher of known training for stage1",
    ),
    "teacher of test images": (
        let_a_teacher_see_test_images,
        r"violations of the rules:\n.*no validation or test images under .*DIV2K_test_HR\n\Z",
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


def test_images_that_no_run_wrote_are_refused(
    copy: Path, tmp_path: Path, noise: Callable[..., Any], save: Callable[..., Path]
) -> None:
    file = "23_LKDN_demo_cpu_eager_fp32.json"
    run = json.loads((copy / "results/published" / file).read_text())
    run["checkpoint"]["sha256"] = sha256(read_entry(copy).checkpoint)
    run["dataset"], run["images"] = "DIV2K_LSDIR_valid", run["images"][:2]
    names = [image["name"] for image in run["images"]]

    def said() -> list[str]:
        (tmp_path / file).write_text(json.dumps(run))
        return list(rules.MODEL_RULES["results of the weights that are sent"](entry))

    entry = read_entry(copy, tmp_path)
    for seed, image in enumerate(run["images"]):
        path = save(
            tmp_path / "23_LKDN/DIV2K_LSDIR_valid" / f"{image['name']}.png", noise(8, 9 + seed)
        )
        image["png_sha256"] = sha256(path)
    assert said() == []
    stale = save(tmp_path / "23_LKDN/DIV2K_LSDIR_valid/stale.png", noise(8, 8))
    (reason,) = said()
    assert "wrote, got others stale.png: remove them" in reason
    stale.unlink()
    run["images"][0]["png_sha256"] = "0" * 64
    (reason,) = said()
    assert f"got others {names[0]}.png" in reason
    path.unlink()
    assert any(f"got none of {names[1]}:" in reason for reason in said())
    run["dataset"] = "DIV2K_valid"
    assert any("the 100 images of DIV2K_valid, got those of 2" in reason for reason in said())


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_why_git_lists_no_files_is_said(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    (copy / ".git").write_text("gitdir: nowhere\n")
    with pytest.raises(UserError, match="list the files of .*, got fatal: not a git repository"):
        read_entry(copy)


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
    (said,) = rules.FILE_RULES["no images but published pictures"](read_entry(copy))
    assert image in said
