"""Targets that are partly a teacher's SR, from patches to the record of what was shipped."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from kernels import native_library
from models.team23_LKDN import LKDN
from train.export import export
from train.forward import make_aim
from train.packing import pack
from train.patches import sample, sampler
from train.recipes import STAGES, Engine
from train.reparam import fuse, training_form
from train.teacher import read_teacher
from utils.weights import CheckpointError, read_checkpoint

Image = NDArray[np.uint8]
Run = Callable[..., CompletedProcess[str]]


@pytest.fixture()
def teacher() -> LKDN:
    torch.manual_seed(3)
    return LKDN(channels=6, blocks=1).eval()


@pytest.mark.parametrize("kernels", ["torch", "native"])
@pytest.mark.parametrize("truth", [0.0, 0.25])
def test_targets_are_the_share_of_the_truth_and_the_rest_of_the_teachers_sr(
    kernels: str, truth: float, teacher: LKDN
) -> None:
    if kernels == "native" and not any(map(shutil.which, native_library.COMPILERS)):
        pytest.skip("needs a C++ compiler")
    generator = torch.Generator().manual_seed(1)
    lr = torch.randint(256, (3, 3, 7, 7), dtype=torch.uint8, generator=generator)
    hr = torch.randint(256, (3, 3, 28, 28), dtype=torch.uint8, generator=generator)
    stage = replace(STAGES[1], truth=truth)
    engine = Engine(kernels=kernels)  # type: ignore[arg-type]
    target = make_aim(teacher, stage, torch.device("cpu"), engine)(lr, hr)
    with torch.no_grad():
        sr = teacher.double()(lr.double() / 255).clamp(0, 1) * 255
    assert target.dtype == torch.uint8 and target.shape == hr.shape
    expected = truth * hr + (1 - truth) * sr
    assert (target - expected).abs().max() < 0.51  # rounded, from float32


@pytest.mark.parametrize(
    ("kind", "words"),
    [("x2", "scale 4, got 2"), ("odd", "an even number"), ("text", "checkpoint"), ("none", "no")],
)
def test_a_file_that_cannot_teach_is_told(
    kind: str, words: str, place: Path, train: Run, tmp_path: Path
) -> None:
    file, state = tmp_path / "teacher.pth", LKDN(channels=4, blocks=1).state_dict()
    if kind == "x2":
        state = training_form(LKDN(channels=4, blocks=1, scale=2)).state_dict()
    if kind == "odd":
        state = {name: value[:3] for name, value in state.items()}
    if kind == "text":
        file.write_text("no weights")
    elif kind != "none":
        torch.save(state, file)
    done = train(f"taught by {kind}", "--teacher", file, "--truth", 0.5)
    assert done.returncode == 2 and words in done.stderr, done.stderr


def test_weights_without_a_record_may_teach(place: Path, train: Run, random_weights: Path) -> None:
    done = train("by anyone", "--teacher", random_weights, "--truth", 0.5, "--steps", 1)
    assert done.returncode == 0, done.stderr
    assert read_checkpoint(place / "by anyone" / "stage1.pt")["teacher"]["records"] == []


def test_a_run_learns_from_a_teacher_and_says_so(
    place: Path, train: Run, uninterrupted: Path, root: Path, python: Run, logged: Callable
) -> None:
    """SOAP on the plain network, begun with branches, taught by a network of another size."""
    options = ("--form", "inference", "--optimizer", "soap", "--momentum", 0.5)
    larger = train("larger", *options, "--channels", 8, "--blocks", 2)
    assert larger.returncode == 0, larger.stderr
    teacher = read_teacher(place / "larger" / "stage1.pt")
    assert len(teacher.net.blocks) == 2
    begin = ("--init", uninterrupted / "stage1.pt", "--teacher", "larger/stage1.pt")
    taught = train("taught", *options, *begin, "--truth", 0.25, "--steps", 1, "--lr", 0)
    assert taught.returncode == 0, taught.stderr

    form = training_form(LKDN())
    form.load_state_dict(read_checkpoint(uninterrupted / "stage1.pt")["params_ema"])
    saved = read_checkpoint(place / "taught" / "stage1.pt")
    plain = fuse(form).state_dict()  # the run's first weights; a rate of 0 changes none
    assert all(torch.equal(saved["params"][name], value) for name, value in plain.items())
    data = pack([place / "images"], place / "packed")
    lr, hr = (x.float() / 255 for x in sample(sampler(data, 8), 4, 0, batch=2))
    with torch.no_grad():
        target = (0.25 * hr + 0.75 * teacher.net(lr).clamp(0, 1)).mul(255).round() / 255
        loss = F.l1_loss(form(lr), target).item()
    assert logged(place / "taught")[0]["loss"] == pytest.approx(loss, rel=1e-4)
    assert saved["teacher"]["sha256"] == teacher.sha256
    (record,) = saved["teacher"]["records"]
    assert (record["stage"]["channels"], record["stage"]["blocks"]) == (8, 2)
    assert record["step"] == 12

    shutil.copytree(place / "taught", place / "taught by itself")
    same = (*options, "--truth", 0.25, "--steps", 1, "--lr", 0, "--resume")
    again = train("taught by itself", *same, "--teacher", "taught/stage1.pt")
    assert again.returncode == 2 and re.search(r"\(teacher .*, now [0-9a-f]{64}\)", again.stderr)
    alone = train("without a teacher", *options, "--truth", 0.25)
    assert alone.returncode == 2 and "--teacher FILE and --truth below 1" in alone.stderr
    unused = train("unused", *options, "--teacher", "larger/stage1.pt")
    assert unused.returncode == 2 and "--teacher FILE and --truth below 1" in unused.stderr


def test_what_a_teacher_saw_counts_and_a_teacher_is_not_shipped(
    place: Path,
    train: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    noise: Callable[..., Image],
    save: Callable[[Path, Image], Path],
) -> None:
    monkeypatch.setattr("train.export.SHIPPED", tmp_path / "zoo" / "w.pth")
    monkeypatch.setattr("train.export.TRAINING_RECORD", tmp_path / "training.json")
    options = ("--form", "inference", "--steps", 1)
    save(place / "other images" / "one.png", noise(40, 40, seed=30))
    small = ("--channels", 8, "--blocks", 1)
    assert train("tall", *options, *small, "--data", "other images").returncode == 0
    taught = ("--teacher", "tall/stage1.pt", "--truth", 0.5)
    assert train("pupil", *options, *taught).returncode == 0
    seen = [save(tmp_path / "held out.png", noise(40, 40, seed=30))]
    with pytest.raises(CheckpointError, match=r"the teacher of .* saw 1: .*held out\.png"):
        export(place / "pupil", held_out=seen, ship=True)
    with pytest.raises(CheckpointError, match="8 channels and 1 blocks"):
        export(place / "tall", ship=True)
    assert not (tmp_path / "zoo").exists()
    saved = read_checkpoint(place / "pupil" / "stage1.pt")
    saved["teacher"]["records"] = []
    torch.save(saved, place / "pupil" / "stage1.pt")
    with pytest.raises(CheckpointError, match="teacher .* no training record"):
        export(place / "pupil", ship=True)
