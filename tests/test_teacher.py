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
from torch import Tensor
from torch.nn import functional as F

from kernels import native_library
from kernels.native_library import CompileError
from models.team23_LKDN import LKDN
from train.export import export
from train.forward import _native_forward, make_gradients
from train.packing import pack
from train.patches import sample, sampler
from train.recipes import STAGES, Engine
from train.reparam import fuse, training_form
from train.teacher import read_teacher
from utils import devices
from utils.weights import CheckpointError, read_checkpoint

Image = NDArray[np.uint8]
Run = Callable[..., CompletedProcess[str]]
CPU = torch.device("cpu")
COMPILER = pytest.mark.skipif(
    not any(map(shutil.which, native_library.COMPILERS)), reason="needs a C++ compiler"
)


def network(seed: int, channels: int, blocks: int) -> LKDN:
    torch.manual_seed(seed)
    return LKDN(channels=channels, blocks=blocks).eval()


def patches() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    lr, hr = (
        torch.randint(256, (5, 3, side, side), dtype=torch.uint8, generator=generator)
        for side in (7, 28)
    )
    return lr, hr


def loss_of(kernels: str, truth: float, known: int = 5) -> float:
    """Of a step on `patches`, of which so many have HR, taught by a network of another size."""
    stage = replace(STAGES[1], truth=truth, batch=5)
    engine = Engine(kernels=kernels)  # type: ignore[arg-type]
    teacher = network(3, channels=8, blocks=2)
    form = network(4, channels=6, blocks=1)
    lr, hr = patches()
    return make_gradients(form, stage, CPU, engine, teacher=teacher)(lr, hr[:known]).item()


@pytest.mark.parametrize("kernels", ["torch", pytest.param("native", marks=COMPILER)])
@pytest.mark.parametrize(("truth", "known"), [(0.0, 5), (0.25, 5), (0.25, 2)])
def test_targets_are_the_share_of_the_truth_and_the_rest_of_the_teachers_sr(
    kernels: str, truth: float, known: int
) -> None:
    """.. and the teacher's alone, where there is no truth."""
    lr, hr = (x.double() for x in patches())
    with torch.no_grad():
        sr = network(3, channels=8, blocks=2).double()(lr / 255).clamp(0, 1)
        own = network(4, channels=6, blocks=1).double()(lr / 255)
    shares = torch.tensor([truth] * known + [0.0] * (5 - known), dtype=torch.float64)
    shares = shares[:, None, None, None]
    target = (shares * hr + (1 - shares) * 255 * sr).round() / 255
    # Some values are halves but for rounding; each is one of 11,760.
    assert loss_of(kernels, truth, known) == pytest.approx(F.l1_loss(own, target).item(), rel=1e-5)


@COMPILER
@pytest.mark.parametrize("shape", [(5, 3, 19, 7), (1, 3, 32, 32), (2, 3, 5, 40)])
def test_a_teacher_gives_the_same_bits_on_any_number_of_threads(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    results = []
    for threads in (1, 2, 3, 5):
        with devices.torch_threads(threads):
            results.append(_native_forward(network(3, channels=8, blocks=2), "float32")(x))
    assert all(torch.equal(results[0], other) for other in results[1:])


@COMPILER
def test_a_teacher_that_cannot_be_compiled_runs_in_torch_and_a_line_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = loss_of("native", 0.25)

    def fail(net: LKDN, arithmetic: str, whole: bool) -> None:
        raise CompileError("the disk is full")

    monkeypatch.setattr("train.forward.NativeLKDN", fail)
    assert loss_of("native", 0.25) == pytest.approx(expected, rel=1e-5)
    assert "in torch, not on compiled kernels: the disk is full" in caplog.text


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


def test_patches_without_hr_want_a_teacher_and_some_with_hr(
    train: Run, random_weights: Path
) -> None:
    alone = train("zoomed alone", "--zoom", 0.5)
    assert alone.returncode == 2 and "--teacher FILE with --zoom, got stage1" in alone.stderr
    taught = ("--teacher", random_weights, "--truth", 0.5)
    few = train("zoomed too little", *taught, "--zoom", 0.2)
    assert few.returncode == 2 and "--zoom of one patch of a batch of 2" in few.stderr
    none = train("zoomed", *taught, "--zoom", 0.9)  # both of a step's patches
    assert none.returncode == 2 and "1 pairs for 1 processes, got 0" in none.stderr


def test_turned_squares_want_shrunk_ones(train: Run) -> None:
    done = train("turned", "--rotate", 0.5, "--shrink", 1.3)
    assert done.returncode == 2
    assert "expected --shrink of 1.4 or more with --rotate, got 1.3" in done.stderr


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
    # The first weights have had the patches of 12 steps: these are the next.
    lr, hr = (x.float() / 255 for x in sample(sampler(data, 8), 4, 12, batch=2))
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
