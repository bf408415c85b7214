"""Training: right gradients, and a command that trains, scores, and refuses what it cannot do."""

import copy
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from models.team23_LKDN import LKDN
from train import log, loop
from train.checkpoint import State
from train.crops import Sampler
from train.packing import pack
from train.patches import sample, sampler
from train.reparam import fuse, training_form
from train.shrink import sides_of
from train.teacher import read_teacher
from train.trial import trial
from utils import evaluate
from utils.datasets import Pair
from utils.lock import locked
from utils.weights import read_checkpoint

Image = NDArray[np.uint8]
MakeImage = Callable[..., Image]
Save = Callable[[Path, Image], Path]
Run = Callable[..., CompletedProcess[str]]
Logged = Callable[[Path], list[dict[str, Any]]]
Precision = Literal["fp32", "bf16", "fp64"]
CPU = torch.device("cpu")
SHIPPED = Path(__file__).resolve().parent.parent / "model_zoo" / "team23_LKDN.pth"
DIVERGING = ("--lr", 1e15, "--optimizer", "adam")


@pytest.fixture()
def source(place: Path, tmp_path: Path) -> Sampler:
    return sampler(pack([place / "images"], tmp_path), 8)


def test_log_has_each_step_and_score_once(uninterrupted: Path, logged: Logged) -> None:
    lines = logged(uninterrupted)
    assert all(line["stage"] == "stage1" for line in lines)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 13))
    scores = [line["step"] for line in lines if "val_psnr_y" in line]
    assert scores == [4, 8, 12]
    # warmup over two steps, then the half cosine: 0.01/3 at first, nearly nothing at last
    assert steps[0]["lr"] == pytest.approx(0.01 / 3)
    assert steps[-1]["lr"] == pytest.approx(0.005 * (1 + np.cos(np.pi * 11 / 12)))
    assert (uninterrupted / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_validation_scores_the_fused_average(
    uninterrupted: Path, place: Path, logged: Logged
) -> None:
    form = training_form(LKDN())
    form.load_state_dict(read_checkpoint(uninterrupted / "stage1.pt")["params_ema"])
    samples = [evaluate.load(Pair("v", place / "held out" / "v.png", None))]
    expected = evaluate.validate(fuse(form), samples, CPU)
    last = [line for line in logged(uninterrupted) if "val_psnr_y" in line][-1]
    # Folding in float32 or in float64 moves single pixels of 1344 by one level at most.
    assert last["val_psnr"] == pytest.approx(expected.psnr, abs=1e-2)
    assert last["val_psnr_y"] == pytest.approx(expected.psnr_y, abs=1e-2)


def test_validation_searches_no_kernels_for_each_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which cuDNN does where patches of one size are trained on, for seconds a size."""
    searching = []

    def scored(*_: object) -> evaluate.Scores:
        searching.append(torch.backends.cudnn.benchmark)
        return evaluate.Scores(30.0, 31.0)

    monkeypatch.setattr(evaluate, "validate", scored)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    form = training_form(LKDN(channels=6, blocks=1))
    state = State(form, dict(form.named_parameters()), [])
    world = SimpleNamespace(device=CPU, rank=1)
    loop.validate(SimpleNamespace(samples={"a": [], "b": []}, world=world), state)  # type: ignore
    assert searching == [False, False] and torch.backends.cudnn.benchmark


def test_images_that_are_scored_and_trained_on_are_told(place: Path, train: Run) -> None:
    done = train("seen", "--val", "images", "held out", "--steps", 1)
    assert done.returncode == 0, done.stderr
    assert "4 of the 4 images of --val images are trained on, such as 0" in done.stderr
    assert "--val held out" not in done.stderr


def test_processes_together_train_as_one_and_as_a_plain_loop(
    place: Path, root: Path, python: Run, source: Sampler, logged: Logged, random_weights: Path
) -> None:
    """With pairs of shrunk and turned images, a patch without HR, blends, and a teacher."""
    # Three patches on two processes: unequal shares.
    options = """
        --data images --packed packed --stage 1 --steps 5 --batch 3 --patch 32 --precision fp64
        --ema 0.9 --seed 6 --threads 1 --device cpu --log_every 1
        --shrink 1.5 --zoom 0.34 --mixup 0.7 --rotate 0.7 --truth 0.5
    """
    sides = sides_of(source.patch, 1.5)
    source = replace(source, sides=sides, zoom=0.34, mixup=0.7, rotate=0.7)
    script, taught = root / "train/train.py", ("--teacher", random_weights)
    alone = python(place, script, *options.split(), *taught, "--out", "alone")
    assert alone.returncode == 0, alone.stderr
    launcher = "-m torch.distributed.run --standalone --nproc_per_node 2"
    command = (*launcher.split(), script, *options.split(), *taught, "--out", "together")
    together = python(place, *command)
    assert together.returncode == 0, together.stderr

    torch.manual_seed(6)
    net = training_form(LKDN()).double()
    teacher = read_teacher(random_weights).net.double()
    adam = torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.9, 0.99), eps=1e-8)
    average = copy.deepcopy(net.state_dict())
    losses = []
    for step in range(5):
        lr, hr = (patches.double() / 255 for patches in sample(source, 6, step, batch=3))
        with torch.no_grad():
            sr = teacher(lr).clamp(0, 1)
            hr = torch.cat((0.5 * hr + 0.5 * sr[:2], sr[2:])).mul(255).round() / 255
        loss = F.l1_loss(net(lr), hr)
        adam.zero_grad()
        loss.backward()
        adam.step()
        keep = min(0.9, (1 + step) / (10 + step))
        for name, value in net.state_dict().items():
            average[name] = keep * average[name] + (1 - keep) * value
        losses.append(loss.item())

    for run in ("alone", "together"):
        saved = read_checkpoint(place / run / "stage1.pt")
        assert saved["step"] == 5
        for key, expected in (("params", net.state_dict()), ("params_ema", average)):
            for name, value in expected.items():
                # Float64 sums in another order: 1e-16, which Adam enlarges where a gradient is
                # hardly larger than its eps of 1e-8.
                torch.testing.assert_close(saved[key][name], value, rtol=0, atol=1e-9, msg=name)
        assert [line["loss"] for line in logged(place / run)] == pytest.approx(losses, abs=1e-9)


def test_stage_2_starts_from_the_average_of_stage_1_with_its_own_loss(
    place: Path, train: Run, uninterrupted: Path, source: Sampler, logged: Logged
) -> None:
    shutil.copytree(uninterrupted, place / "two stages")
    done = train("two stages", "--stage", 2, "--steps", 1, "--lr", 0)
    assert done.returncode == 0, done.stderr
    first = read_checkpoint(place / "two stages" / "stage1.pt")
    second = read_checkpoint(place / "two stages" / "stage2.pt")
    for name, value in first["params_ema"].items():  # a learning rate of zero moves nothing
        assert torch.equal(second["params"][name], value)
        assert torch.equal(second["params_ema"][name], value)
    assert not torch.equal(first["params"]["c1.weight"], first["params_ema"]["c1.weight"])

    form = training_form(LKDN())
    form.load_state_dict(first["params_ema"])
    # Stage 1 had patches of 12 steps: these are the next.
    lr, hr = (patches.float() / 255 for patches in sample(source, 4, 12, batch=2))
    with torch.no_grad():
        squared = F.mse_loss(form(lr), hr).item()
    lines = logged(place / "two stages")
    assert lines[:-1] == logged(uninterrupted)
    assert (lines[-1]["stage"], lines[-1]["step"]) == ("stage2", 1)
    assert lines[-1]["loss"] == pytest.approx(squared, rel=1e-4)  # float32, another order of sums


DIVERGE = """
import runpy, sys
sys.argv = [sys.argv[1] + "/train/train.py", *sys.argv[2:]]
sys.path.insert(0, sys.argv[0].rsplit("/", 2)[0])
import train.loop
rate = train.loop.learning_rate
train.loop.learning_rate = lambda stage, step: 1e30 if step == 4 else rate(stage, step)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("steps", [12, 5])
def test_divergence_is_reported_and_the_checkpoint_is_of_before_the_bad_step(
    place: Path, root: Path, train: Run, logged: Logged, steps: int
) -> None:
    """Also if that was the last step."""
    (place / "diverge.py").write_text(DIVERGE)
    run = f"diverged of {steps}"
    options = ("--optimizer", "adam", "--save_every", 1, "--steps", steps)
    done = train(run, *options, script=(place / "diverge.py", root))
    assert done.returncode == 1
    (message,) = [line for line in done.stderr.splitlines() if "finite" in line]
    assert "step 5," in message and "--lr" in message
    saved = read_checkpoint(place / run / "stage1.pt")
    assert saved["step"] == 4
    assert all(value.abs().max() < 10 for value in saved["params"].values())
    *trained, failure = logged(place / run)
    assert [line["step"] for line in trained] == [1, 2, 3, 4, 5]
    assert failure["step"] == 5 and message == f"train/train.py: {failure['failed']}"
    assert trial(place / run, "too-high", "")["failed"] == failure["failed"]


EXHAUST = """
import runpy, sys
sys.argv = [sys.argv[1] + "/train/train.py", *sys.argv[2:]]
sys.path.insert(0, sys.argv[0].rsplit("/", 2)[0])
import torch
import train.loop
train.loop.make_gradients = lambda *_: torch.empty(10**16)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_exhausted_memory_is_said_with_what_helps(place: Path, root: Path, train: Run) -> None:
    (place / "exhaust.py").write_text(EXHAUST)
    done = train("exhausted", script=(place / "exhaust.py", root))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "lower --batch" in done.stderr.splitlines()[-1]


def test_divergence_found_by_validation_is_reported_too(place: Path, train: Run) -> None:
    options = ("--warmup", 0, "--ema", 0, "--val", "held out", "--val_every", 1)
    done = train("diverged early", *DIVERGING, *options)
    assert done.returncode == 1
    assert "finite" in done.stderr


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--stage", 2], [str(Path("wrong") / "stage1.pt"), "--init"]),
        (["--data", "absent"], ["absent"]),
        (["--data", "empty"], ["empty"]),
        (["--patch", 128], ["128", "--patch"]),
        (["--patch", 30], ["30", "--patch"]),
        (["--val", "absent"], ["absent"]),
        (["--val", "lr only"], ["HR", "v"]),
        (["--warmup", -1], ["--warmup", "-1"]),
        (["--lr", "nan"], ["--lr", "nan"]),
        (["--init", "text.pt"], ["text.pt"]),
        (["--init", "absent.pt"], ["absent.pt"]),
        (["--init", SHIPPED], ["--form inference"]),
        (["--recipe", "cpu", "--stage", 2], ["cpu", "--stage 2"]),
        (["--graphs"], ["CUDA", "--graphs"]),
        (["--depthwise", "triton"], ["CUDA", "--depthwise"]),
        (["--dense", "--no-fold"], ["--fold", "--dense"]),
        (["--momentum", 1.5], ["--momentum", "1.5"]),
        (["--channels", 7], ["--channels", "7"]),
        (["--threads", 10**11], ["--threads", "100000000000"]),
        (["--out", "text.pt"], ["cannot write to text.pt"]),
        (["--out", "text.pt/run"], ["cannot write to text.pt/run"]),
        (["--val", "held out", "held out"], ["--val", "held out"]),
    ],
)
def test_wrong_usage_exits_2_before_the_first_step_and_says_why(
    place: Path,
    tmp_path: Path,
    train: Run,
    noise: MakeImage,
    save: Save,
    options: list[object],
    named: list[str],
) -> None:
    (place / "empty").mkdir(exist_ok=True)
    (place / "text.pt").write_text("no weights")
    save(place / "lr only" / "LR" / "vx4.png", noise(6, 7))
    run = tmp_path / "wrong"
    done = train(run, *options)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert all(name in last for name in named), last
    assert not (run / "stage1.pt").exists() and not log.read(run / "log.jsonl")


def test_existing_run_is_not_overwritten_nor_continued_with_other_settings(
    place: Path, train: Run, uninterrupted: Path, logged: Logged
) -> None:
    before = (uninterrupted / "stage1.pt").read_bytes(), logged(uninterrupted)
    again = train("uninterrupted")
    assert again.returncode == 2
    assert str(Path("uninterrupted") / "stage1.pt") in again.stderr and "--resume" in again.stderr
    other = train("uninterrupted", "--resume", "--lr", 0.5, "--batch", 3, "--seed", 5, "--first", 3)
    assert other.returncode == 2
    for named in ("lr 0.01, now 0.5", "batch 2, now 3", "seed 4, now 5", "data "):
        assert named in other.stderr
    assert ((uninterrupted / "stage1.pt").read_bytes(), logged(uninterrupted)) == before


def test_second_run_into_one_folder_is_refused_and_names_the_first(
    place: Path, train: Run, uninterrupted: Path, logged: Logged
) -> None:
    before = logged(uninterrupted)
    with locked(uninterrupted / ".lock", "the run"):
        done = train("uninterrupted", "--resume")
    assert done.returncode == 2
    assert f"in use by process {os.getpid()} on" in done.stderr.splitlines()[-1]
    assert logged(uninterrupted) == before
    assert not (uninterrupted / ".lock").exists()
