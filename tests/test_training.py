"""Training: right gradients, and a command that trains, scores, and refuses what it cannot do."""

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _pytest.mark.structures import ParameterSet
from numpy.typing import NDArray
from torch import Tensor

from models.team23_LKDN import LKDN
from train import log
from train.loop import make_forward
from train.patches import Sampler, sample, sampler
from train.reparam import fuse, training_form
from train.stages import RECIPES, STAGES, Engine
from utils import evaluate
from utils.datasets import Pair
from utils.packing import pack
from utils.weights import read_checkpoint

Image = NDArray[np.uint8]
MakeImage = Callable[..., Image]
Save = Callable[[Path, Image], Path]
Run = Callable[..., CompletedProcess[str]]
Logged = Callable[[Path], list[dict[str, Any]]]
Precision = Literal["fp32", "bf16", "fp64"]
CPU = torch.device("cpu")


def recipe_cases() -> list[ParameterSet]:
    """Every (device, precision, engine) that a recipe computes with, on a CPU and on a GPU, each
    part of the engine alone too, and the tolerance: what the rounding of 90 layers there and back
    amounts to.

    float32 rounds at 6e-8, which gave up to 4e-6 of a gradient; TF32 of CUDA's convolutions at
    5e-4; bfloat16 at 4e-3, which gave up to 3e-2. Sums over all pixels kept in bfloat16 stop
    growing at 256 terms (0.9 and more), broken kernels give anything.
    """
    tolerances = {("cpu", "fp32"): 5e-5, ("cuda", "fp32"): 1e-2}
    used = {(stage.precision, recipe.engine)
            for recipe in RECIPES.values() for stage in recipe.stages.values()}  # fmt: skip
    alone = {(precision, engine) for precision in ("fp32", "bf16") for engine in (
        Engine(), Engine(channels_last=False), Engine(fold=False), Engine(compile="on"))}
    cases = {("cpu", p, replace(e, depthwise="torch")) for p, e in used | alone}
    cases |= {("cuda", p, e) for p, e in used | alone}
    cases |= {("cuda", p, Engine(depthwise="triton")) for p in ("fp32", "bf16")}
    return [
        pytest.param(
            *case, tolerances.get(case[:2], 6e-2), id="-".join(map(str, case)),
            marks=[pytest.mark.skipif(case[0] == "cuda" and not torch.cuda.is_available(),
                                      reason="needs a CUDA device")],
        )
        for case in sorted(cases, key=str)
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile on torch's own parts
@pytest.mark.parametrize(("device", "precision", "engine", "tolerance"), recipe_cases())
def test_gradients_of_the_training_forward_are_right(
    device: str, precision: Precision, engine: Engine, tolerance: float
) -> None:
    # As large as it must be: some of torch's kernels are right on smaller batches.
    torch.manual_seed(0)
    form = training_form(LKDN())
    x, target = torch.rand(16, 3, 32, 32), torch.rand(16, 3, 128, 128)

    def gradients(form: LKDN, forward: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
        form.zero_grad()
        F.mse_loss(forward(x).to(x.dtype), target.to(x)).backward()
        return [p.grad.double().cpu() for p in form.parameters() if p.grad is not None]

    exact = copy.deepcopy(form).double()
    expected = gradients(exact, exact, x.double())
    layout = torch.channels_last if engine.channels_last else torch.contiguous_format
    form = form.to(device)
    forward = make_forward(form, replace(STAGES[1], precision=precision), torch.device(device),
                           engine)  # fmt: skip
    got = gradients(form, forward, x.to(device, memory_format=layout))
    errors = {
        name: float((g - e).norm() / e.norm())
        for (name, _), g, e in zip(form.named_parameters(), got, expected, strict=True)
    }
    assert not {name: error for name, error in errors.items() if not error < tolerance}


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


def test_processes_together_train_as_one_and_as_a_plain_loop(
    place: Path, root: Path, python: Run, source: Sampler, logged: Logged
) -> None:
    # Three patches on two processes: unequal shares.
    options = [root / "train/train.py", "--stage", 1, "--data", "images", "--packed", "packed",
               "--steps", 5, "--batch", 3, "--patch", 32, "--precision", "fp64", "--ema", 0.9,
               "--seed", 6, "--threads", 1, "--device", "cpu", "--log_every", 1]  # fmt: skip
    alone = python(place, *options, "--out", "alone")
    assert alone.returncode == 0, alone.stderr
    together = python(place, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2,
                      *options, "--out", "together")  # fmt: skip
    assert together.returncode == 0, together.stderr

    torch.manual_seed(6)
    net = training_form(LKDN()).double()
    adam = torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.9, 0.99), eps=1e-8)
    average = copy.deepcopy(net.state_dict())
    losses = []
    for step in range(5):
        lr, hr = (patches.double() / 255 for patches in sample(source, 6, step, batch=3))
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
    lr, hr = (patches.float() / 255 for patches in sample(source, 4, 0, batch=2))
    with torch.no_grad():
        squared = F.mse_loss(form(lr), hr).item()
    lines = logged(place / "two stages")
    assert lines[:-1] == logged(uninterrupted)
    assert (lines[-1]["stage"], lines[-1]["step"]) == ("stage2", 1)
    assert lines[-1]["loss"] == pytest.approx(squared, rel=1e-4)  # float32, another order of sums


SMALL_RECIPE = """
import sys
sys.path.insert(0, {root!r})
from dataclasses import replace
from train import stages, train
small = {{"steps": 3, "batch": 2, "patch": 32, "precision": "fp32"}}
recipe = stages.RECIPES["fast"]
smaller = {{number: replace(stage, **small) for number, stage in recipe.stages.items()}}
engine = replace(recipe.engine, compile="off")
stages.RECIPES["fast"] = replace(recipe, stages=smaller, engine=engine)
sys.exit(train.main(sys.argv[1:]))
"""


def test_a_recipe_is_its_stages_one_after_another_also_in_slices(
    place: Path, root: Path, python: Run, logged: Logged
) -> None:
    def train(*options: object) -> CompletedProcess[str]:
        return python(place, "-c", SMALL_RECIPE.format(root=str(root)), "--recipe", "fast",
                      "--data", "images", "--packed", "packed", "--device", "cpu", "--threads", 1,
                      "--log_every", 1, *options)  # fmt: skip

    runs = [train("--out", "at once"), train("--out", "apart", "--stage", 1),
            train("--out", "apart", "--stage", 2)]  # fmt: skip
    for slice_ in range(2):  # nothing is done in no time, and what is done is kept
        runs.append(train("--out", "sliced", "--max_minutes", 0, "--resume"))
        assert read_checkpoint(place / "sliced" / "stage1.pt")["step"] == 0
        assert not (place / "sliced" / "stage2.pt").exists(), slice_
    runs += [train("--out", "sliced", "--stage", 1, "--resume"),
             train("--out", "sliced", "--resume")]  # fmt: skip
    assert [run.returncode for run in runs] == [0] * len(runs), [run.stderr for run in runs]
    for stage in ("stage1", "stage2"):
        one, *others = (read_checkpoint(place / out / f"{stage}.pt")
                        for out in ("at once", "apart", "sliced"))  # fmt: skip
        assert one["step"] == 3
        assert one["history"][0]["engine"]["depthwise"] == "torch"  # Triton needs CUDA
        for other in others:
            for key in ("params", "params_ema"):
                assert all(torch.equal(v, other[key][n]) for n, v in one[key].items())
    lines = [(x["stage"], x["step"], x["loss"]) for x in logged(place / "at once")]
    assert [line[:2] for line in lines] == [(s, i) for s in ("stage1", "stage2") for i in (1, 2, 3)]
    assert lines == [(x["stage"], x["step"], x["loss"]) for x in logged(place / "sliced")]
    again = train("--out", "apart")
    assert again.returncode == 2 and "--resume" in again.stderr


def test_the_gpu_recipe_rehearsed_with_its_kernels_in_the_interpreter(
    place: Path, train: Run, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    options = ("--recipe", "fast", "--steps", 1, "--batch", 1, "--patch", 32,
               "--precision", "fp32", "--compile", "off")  # fmt: skip
    plain = train("rehearsed with torch", *options)
    assert plain.returncode == 0, plain.stderr
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    done = train("rehearsed", *options)
    assert done.returncode == 0, done.stderr
    one, other = (logged(place / run)[0] for run in ("rehearsed", "rehearsed with torch"))
    assert read_checkpoint(place / "rehearsed/stage1.pt")["history"][0]["engine"]["depthwise"] == (
        "triton"
    )
    # Float32, sums in another order.
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-5)


def test_divergence_is_reported_and_the_last_checkpoint_stays_good(
    place: Path, train: Run, logged: Logged
) -> None:
    done = train("diverged", "--lr", 1e30, "--optimizer", "adam", "--warmup", 0,
                 "--schedule", "constant", "--save_every", 1)  # fmt: skip
    assert done.returncode == 1
    (message,) = [line for line in done.stderr.splitlines() if "finite" in line]
    assert "step 1," in message and "1e+30" in message and "--lr" in message
    saved = read_checkpoint(place / "diverged" / "stage1.pt")
    assert saved["step"] == 1
    assert all(torch.isfinite(value).all() for value in saved["params"].values())
    trained, failure = logged(place / "diverged")
    assert trained["step"] == failure["step"] == 1 and failure["failed"] == message


def test_divergence_found_by_validation_is_reported_too(place: Path, train: Run) -> None:
    done = train("diverged early", "--lr", 1e30, "--optimizer", "adam", "--warmup", 0,
                 "--ema", 0, "--val", "held out", "--val_every", 1)  # fmt: skip
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
        (["--recipe", "cpu", "--stage", 2], ["cpu", "--stage 2"]),
        (["--compile", "graphs"], ["CUDA", "--compile"]),
        (["--depthwise", "triton"], ["CUDA", "--depthwise"]),
        (["--momentum", 1.5], ["--momentum", "1.5"]),
    ],
)
def test_wrong_usage_exits_2_before_the_first_step_and_says_why(
    place: Path, tmp_path: Path, train: Run, noise: MakeImage, save: Save,
    options: list[object], named: list[str],
) -> None:  # fmt: skip
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


def test_log_drops_a_cut_line_and_what_a_resumed_run_writes_again(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for stage, step in (("stage1", 1), ("stage1", 2), ("stage2", 1), ("stage2", 2)):
        log.append(path, {"stage": stage, "step": step, "loss": 0.5})
    with path.open("a") as file:
        file.write('{"stage": "stage2", "step": 3, "lo')
    assert [(x["stage"], x["step"]) for x in log.read(path)][-1] == ("stage2", 2)
    log.trim(path, "stage2", 1)
    log.append(path, {"stage": "stage2", "step": 2, "loss": 0.25})
    steps = [(x["stage"], x["step"], x["loss"]) for x in log.read(path)]
    assert steps == [
        ("stage1", 1, 0.5), ("stage1", 2, 0.5), ("stage2", 1, 0.5), ("stage2", 2, 0.25)
    ]  # fmt: skip
    with pytest.raises(ValueError):  # NaN is no JSON
        log.append(path, {"stage": "stage2", "step": 3, "loss": float("nan")})
