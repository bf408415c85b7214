"""Recipes: right gradients the way each of them computes, stages one after another, in slices."""

import copy
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from _pytest.mark.structures import ParameterSet
from torch import Tensor
from torch.overrides import TorchFunctionMode

from models.team23_LKDN import LKDN
from train.forward import make_forward
from train.options import HELP, engine_of, parse, stages_of
from train.recipes import RECIPES, STAGES, Engine, Stage
from train.reparam import training_form
from utils.command import UserError
from utils.weights import read_checkpoint

Run = Callable[..., CompletedProcess[str]]
Logged = Callable[[Path], list[dict[str, Any]]]
Precision = Literal["fp32", "bf16", "fp64"]
Example = tuple[LKDN, Tensor, Tensor, list[Tensor]]


def recipe_cases() -> list[ParameterSet]:
    """Every (device, precision, engine) that a recipe computes with, on a CPU and on a GPU, each
    part of the engine alone too, and the tolerance: what the rounding of 90 layers, those of five
    blocks, there and back amounts to.

    float32 rounds at 6e-8, which gave up to 4e-6 of a gradient; TF32 of CUDA's convolutions at
    5e-4; bfloat16 at 4e-3, which gave up to 3e-2. Sums over all pixels kept in bfloat16 stop
    growing at 256 terms (0.9 and more), broken kernels give anything.
    """
    tolerances = {("cpu", "fp32"): 5e-5, ("cuda", "fp32"): 1e-2}
    used = {
        (stage.precision, recipe.engine)
        for recipe in RECIPES.values()
        for stage in recipe.stages.values()
    }
    alone = {
        (precision, engine)
        for precision in ("fp32", "bf16")
        for engine in (
            Engine(),
            Engine(channels_last=False),
            Engine(fold=False),
            Engine(dense=True),
            Engine(aligned=True),
        )
    }
    alone.add(("bf16", Engine(compile="on")))  # in one precision, for it takes 20 s on a CPU
    cases = {("cpu", p, replace(e, depthwise="torch")) for p, e in used | alone}
    cases |= {("cuda", p, e) for p, e in used | alone}
    cases |= {("cuda", p, Engine(depthwise="triton")) for p in ("fp32", "bf16")}
    cases.add(("cuda", "bf16", Engine(depthwise="triton", compile="on", dense=True)))
    return [
        pytest.param(
            *case,
            tolerances.get(case[:2], 6e-2),
            id="-".join(map(str, case)),
            marks=[
                pytest.mark.skipif(
                    case[0] == "cuda" and not torch.cuda.is_available(),
                    reason="needs a CUDA device",
                )
            ],
        )
        for case in sorted(cases, key=str)
    ]


def test_every_number_of_a_stage_and_an_engine_is_an_option() -> None:
    given = {"loss": "l2", "steps": 7, "lr": 0.5, "draw": "detail", "fold": False, "crops": "cpu"}
    words = [f"--{name}={value}" for name, value in given.items() if name != "fold"]
    args = parse(["--data", "d", "--out", "o", "--no-fold", *words])
    assert {name: getattr(args, name) for name in given} == given
    assert not hasattr(args, "momentum")  # the recipe's
    assert set(HELP) == {field.name for field in (*fields(Stage), *fields(Engine))} - {"name"}
    with pytest.raises(SystemExit):
        parse(["--data", "d", "--out", "o", "--loss", "l3"])


def test_what_is_left_out_of_an_engine_leaves_the_rest() -> None:
    def engine(*options: str) -> Engine:
        args = parse(["--data", "d", "--out", "o", *options])
        return engine_of(args, torch.device("cpu"), stages_of(args))

    plain = engine("--recipe", "fast", "--no-fold", "--compile", "off")
    assert not (plain.fold or plain.aligned or plain.graphs)
    without = engine("--recipe", "cpu", "--no-graphs", "--no-dense", "--fold", "--compile", "off")
    assert without == engine("--recipe", "cpu")
    assert engine("--recipe", "cpu", "--aligned").kernels == "torch"
    for way in ("--no-fold", "--dense", "--compile on"):
        with pytest.raises(UserError, match=f"--kernels torch for {way}, got native"):
            engine("--recipe", "cpu", "--kernels", "native", *way.split())
    for options in (["--no-fold", "--dense"], ["--no-fold", "--aligned"], ["--graphs"]):
        with pytest.raises(UserError, match=f"with {options[-1]}|for {options[-1]}"):
            engine(*options)
    with pytest.raises(UserError, match="--kernels native .* --arithmetic float32, got torch"):
        engine("--arithmetic", "float32")
    with pytest.raises(UserError, match="--precision bf16 with --arithmetic float32, got other"):
        engine("--arithmetic", "float32", "--kernels", "native")


def test_compiling_without_a_compiler_is_refused_or_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """torch.compile itself would end in a traceback at the first step."""

    def compiled(*options: str, device: str = "cpu") -> str:
        args = parse(["--data", "d", "--out", "o", *options])
        return engine_of(args, torch.device(device), stages_of(args)).compile

    monkeypatch.setenv("CXX", "/nowhere/c++ -pipe")
    with pytest.raises(UserError, match="expected a C\\+\\+ compiler for --compile on, got none"):
        compiled("--compile", "on")
    assert compiled("--recipe", "fast") == "off" and "it needs a C++ compiler" in caplog.text
    monkeypatch.setenv("CXX", f"{sys.executable} -pipe")
    assert compiled("--compile", "on") == "on"


@pytest.mark.parametrize("name", ["momentum", "adam_share", "weight_decay"])
def test_numbers_that_an_optimiser_has_no_use_for_are_refused(name: str) -> None:
    given = ["--data", "d", "--out", "o", "--stage", "1", f"--{name}", "0.5"]
    with pytest.raises(UserError, match=f"--optimizer muon or soap with --{name}, got adam"):
        stages_of(parse(given))
    (stage,) = stages_of(parse([*given, "--optimizer", "muon"])).values()
    assert getattr(stage, name) == 0.5


@pytest.fixture(scope="module")
def example() -> Example:
    """A network, a batch, and the gradients in float64."""
    # As large as it must be: some of torch's kernels are right on smaller batches.
    torch.manual_seed(0)
    form = training_form(LKDN(blocks=2))
    x, target = torch.rand(16, 3, 32, 32), torch.rand(16, 3, 128, 128)
    double = copy.deepcopy(form).double()
    return form, x, target, gradients(double, double, x.double(), target)


def gradients(
    form: LKDN, forward: Callable[[Tensor], Tensor], x: Tensor, target: Tensor
) -> list[Tensor]:
    F.mse_loss(forward(x).to(x.dtype), target.to(x)).backward()
    return [p.grad.double().cpu() for p in form.parameters() if p.grad is not None]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile on torch's own parts
@pytest.mark.parametrize(("device", "precision", "engine", "tolerance"), recipe_cases())
def test_gradients_of_the_training_forward_are_right(
    device: str, precision: Precision, engine: Engine, tolerance: float, example: Example
) -> None:
    form, x, target, expected = copy.deepcopy(example)
    layout = torch.channels_last if engine.channels_last else torch.contiguous_format
    form = form.to(device)
    forward = make_forward(
        form, replace(STAGES[1], precision=precision), torch.device(device), engine
    )
    got = gradients(form, forward, x.to(device, memory_format=layout), target)
    errors = {
        name: float((g - e).norm() / e.norm())
        for (name, _), g, e in zip(form.named_parameters(), got, expected, strict=True)
    }
    assert not {name: error for name, error in errors.items() if not error < tolerance}


@pytest.mark.parametrize(("arithmetic", "dtype"), [("float32", "32"), ("avx512_bf16", "16")])
def test_bf16_on_a_cpu_takes_units_for_it(
    arithmetic: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.forward.choose_arithmetic", lambda precision: arithmetic)
    stage = replace(STAGES[1], precision="bf16")
    forward = make_forward(LKDN(6, 1), stage, torch.device("cpu"), Engine())
    assert str(forward(torch.rand(1, 3, 4, 5)).dtype).endswith(dtype)


class Convolutions(TorchFunctionMode):
    """Counts the convolutions that are called."""

    count = 0

    def __torch_function__(self, func: Callable, types: object, args: Any = (), kwargs: Any = None):
        self.count += func is torch.conv2d
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (17, 31)], ids=str)
def test_dense_pairs_are_the_branches_to_the_border_with_half_the_convolutions(
    size: tuple[int, int],
) -> None:
    torch.manual_seed(0)
    form = training_form(LKDN(6, 2)).double()
    stage = replace(STAGES[1], precision="fp64")
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    target = torch.rand(2, 3, 4 * size[0], 4 * size[1], dtype=torch.float64)
    expected, exact = gradients(form, form, x, target), form(x)
    form.zero_grad()
    forward = make_forward(form, stage, torch.device("cpu"), Engine(dense=True))
    with Convolutions() as dense:
        y = forward(x)
    with Convolutions() as pairs:
        make_forward(form, stage, torch.device("cpu"), Engine())(x)
    assert dense.count == pairs.count - 10  # four pairs in each of two blocks, one on either side
    torch.testing.assert_close(y, exact, rtol=0, atol=1e-12)
    got = gradients(form, forward, x, target)
    for (name, _), g, e in zip(form.named_parameters(), got, expected, strict=True):
        # Float64, and gradients of up to 1: products are added in another order.
        torch.testing.assert_close(g, e, rtol=1e-9, atol=1e-12, msg=name)


SMALL_RECIPE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from dataclasses import asdict, fields, replace
from train import recipes, train
# Muon: where SOAP has no gradient yet, rounding decides its bases, and that of two differs.
small = {"steps": 3, "batch": 2, "patch": 32, "precision": "fp64", "optimizer": "muon"}
recipe = recipes.RECIPES["fast"]
smaller = {number: replace(stage, **small) for number, stage in recipe.stages.items()}
engine = replace(recipe.engine, compile="off")
recipes.RECIPES["fast"] = replace(recipe, stages=smaller, engine=engine)
sys.exit(train.main(sys.argv[1:]))
"""


def test_a_recipe_is_its_stages_one_after_another_in_slices_and_by_two_processes(
    place: Path, root: Path, python: Run, logged: Logged
) -> None:
    (place / "small.py").write_text(SMALL_RECIPE)

    def train(*options: object, by: tuple[object, ...] = ()) -> CompletedProcess[str]:
        words = "--recipe fast --data images --packed packed --device cpu --threads 1 --log_every 1"
        return python(place, *by, "small.py", root, *words.split(), *options)

    runs = [
        train("--out", "at once"),
        train("--out", "apart", "--stage", 1),
        train("--out", "apart", "--stage", 2),
    ]
    for slice_ in range(2):  # nothing is done in no time, and what is done is kept
        runs.append(train("--out", "sliced", "--max_minutes", 0, "--resume"))
        assert read_checkpoint(place / "sliced" / "stage1.pt")["step"] == 0
        assert not (place / "sliced" / "stage2.pt").exists(), slice_
    runs += [
        train("--out", "sliced", "--stage", 1, "--resume"),
        train("--out", "sliced", "--resume"),
        train("--out", "by two", by=(root / "tests" / "two_processes.py",)),
    ]
    assert [run.returncode for run in runs] == [0] * len(runs), [run.stderr for run in runs]
    for stage in ("stage1", "stage2"):
        one, *others = (
            read_checkpoint(place / out / f"{stage}.pt") for out in ("at once", "apart", "sliced")
        )
        assert one["step"] == 3
        assert one["history"][0]["engine"]["depthwise"] == "torch"  # Triton needs CUDA
        for other in others:
            for key in ("params", "params_ema"):
                assert all(torch.equal(v, other[key][n]) for n, v in one[key].items())
        together = read_checkpoint(place / "by two" / f"{stage}.pt")
        for name, value in one["params_ema"].items():  # float64, sums in another order
            torch.testing.assert_close(together["params_ema"][name], value, rtol=0, atol=1e-9)
    lines = [(x["stage"], x["step"], x["loss"]) for x in logged(place / "at once")]
    assert [line[:2] for line in lines] == [(s, i) for s in ("stage1", "stage2") for i in (1, 2, 3)]
    assert lines == [(x["stage"], x["step"], x["loss"]) for x in logged(place / "sliced")]


def test_the_gpu_recipe_rehearsed_with_its_kernels_in_the_interpreter(
    place: Path, root: Path, train: Run, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    options = (
        "--recipe fast --steps 1 --batch 1 --patch 32 --precision fp32 --compile off --blocks 1"
    )
    plain = train("rehearsed with torch", *options.split())
    assert plain.returncode == 0, plain.stderr
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    done = train("rehearsed", *options.split())
    assert done.returncode == 0, done.stderr
    one, other = (logged(place / run)[0] for run in ("rehearsed", "rehearsed with torch"))
    assert read_checkpoint(place / "rehearsed/stage1.pt")["history"][0]["engine"]["depthwise"] == (
        "triton"
    )
    # Float32, sums in another order.
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-5)
