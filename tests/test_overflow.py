"""Finite weights with which a layer leaves float32's range: one line, whichever command meets
them."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploy import onnx_export
from deploy.backends import make
from deploy.runners import BackendError
from kernels.fold import folded, reduced, rescaled
from models.team23_LKDN import LKDN
from train import checkpoint
from train.export import largest_difference
from train.forward import _native_forward
from train.optim import make_optimizers
from train.recipes import STAGES
from utils.command import UserError

MESSAGE = "expected weights with which float32 holds what every layer gives, got inf of B2.c5"


@pytest.fixture(scope="module")
def huge(random_net: LKDN) -> LKDN:
    net = copy.deepcopy(random_net)
    net.get_parameter("B2.c5.weight").fill_(3e38)
    net.get_parameter("B2.c5.bias").fill_(3e38)
    return net


@pytest.fixture(scope="module")
def file(huge: LKDN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "huge.pth"
    torch.save(huge.state_dict(), path)
    return path


@pytest.mark.parametrize("rewrite", [folded, rescaled, reduced])
def test_the_layer_is_named(rewrite: Callable[[nn.Module], object], huge: LKDN) -> None:
    with pytest.raises(OverflowError, match=MESSAGE):
        rewrite(huge)


def test_not_a_number_is_not_taken_for_nothing(random_net: LKDN) -> None:
    net = copy.deepcopy(random_net)
    net.get_parameter("B3.c6.bias").fill_(torch.nan)
    with pytest.raises(OverflowError, match=r"got nan of B3\.c6"):
        rescaled(net)


@pytest.mark.parametrize(
    ("name", "precision"),
    [("auto", "fp32"), ("native", "fp32"), ("eager", "bf16"), ("onnxruntime", "fp32")],
)
def test_no_backend_takes_them(name: str, precision: str, huge: LKDN) -> None:
    if name == "onnxruntime":
        pytest.importorskip("onnxruntime")
    with pytest.raises(BackendError, match=f"^{MESSAGE}"):
        make(name, huge, precision)


def test_commands_say_so_in_a_line(
    huge: LKDN, file: Path, python: Callable, root: Path, tmp_path: Path, save: Callable
) -> None:
    save(tmp_path / "photo.png", np.zeros((8, 9, 3), np.uint8))
    stage = replace(STAGES[1], form="inference")
    run = checkpoint.State(huge, huge.state_dict(), make_optimizers(huge, stage), step=3)
    checkpoint.save(tmp_path / "stage1.pt", run, stage, 0, "fingerprint")
    before = sorted(tmp_path.iterdir())
    native = ("--device", "cpu", "--backend", "native", "--checkpoint", file)
    for arguments, code in (
        (("upscale.py", tmp_path / "photo.png", *native), 2),
        (("test_demo.py", "--save_dir", tmp_path, *native), 2),
        (("-m", "deploy.onnx_export", "-o", tmp_path / "net.onnx", "--checkpoint", file), 1),
        (("train/export.py", tmp_path / "stage1.pt"), 1),
    ):
        done = python(root, *arguments)
        assert done.returncode == code, done.stderr
        assert MESSAGE in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_a_teacher_with_them_is_the_users_to_change(huge: LKDN) -> None:
    with pytest.raises(UserError, match=f"the teacher cannot run: {MESSAGE}"):
        _native_forward(huge, "float32")


def test_a_difference_that_is_no_number_is_the_largest(tmp_path: Path) -> None:
    class Broken(LKDN):
        def forward(self, x: Tensor) -> Tensor:
            dark_or_last = x.amax() == 0 or x.shape[-1] == onnx_export.SIZES[-1][-1]
            return super().forward(x) * (math.nan if dark_or_last else 1)

    net = Broken(4, 1).eval().requires_grad_(False)
    assert math.isnan(largest_difference(net.double(), net))
    pytest.importorskip("onnxruntime")
    with pytest.raises(ArithmeticError, match="got nan"):
        onnx_export.export(net.float(), tmp_path / "net.onnx")
