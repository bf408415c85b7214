"""Two forms, one function: fusing against the branches, in float64."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from models.team23_LKDN import LKDN
from train.reparam import RepBSConv, RepUpsampler, fuse, fuse_parameters, plain_like, training_form

SIZES = [(1, 1), (1, 5), (7, 13), (16, 9)]
# Folding reorders float64 sums of a few hundred terms; outputs are of order one to ten.
EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}


def random_form(**arguments: int) -> LKDN:
    """A training form in float64 with every branch and bias away from its default and zero."""
    torch.manual_seed(5)
    form = training_form(LKDN(**arguments)).double()
    with torch.no_grad():
        for p in form.parameters():
            p.copy_(torch.randn(p.shape, dtype=p.dtype) * (p[0].numel() or 1) ** -0.5 * 0.7)
    return form


@pytest.mark.parametrize("size", SIZES)
def test_fused_network_equals_the_branches(size: tuple[int, int]) -> None:
    form = random_form()
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fuse(form)(x), form(x), **EXACT)


@pytest.mark.parametrize(
    "arguments",
    [{"scale": 2, "channels": 8, "blocks": 3}, {"in_channels": 1, "copies": 2, "channels": 6}],
)
def test_fuse_keeps_the_constructor_arguments(arguments: dict[str, int]) -> None:
    form = random_form(**arguments)
    x = torch.rand(1, arguments.get("in_channels", 3), 6, 5, dtype=torch.float64)
    fused = fuse(form)
    assert list(fused.state_dict()) == list(LKDN(**arguments).state_dict())
    with torch.no_grad():
        torch.testing.assert_close(fused(x), form(x), **EXACT)


def test_rbsb_in_training_is_the_described_sum_of_branches() -> None:
    rbsb = random_form(blocks=1).get_submodule("B1.c2_r")
    assert isinstance(rbsb, RepBSConv)
    w = dict(rbsb.named_parameters())
    x = torch.randn(2, 42, 6, 5, dtype=torch.float64)
    u = F.conv2d(x, w["pw.weight"]) + x
    v = F.conv2d(u, w["dw.weight"], w["dw.bias"], padding=1, groups=42)
    v = v + F.conv2d(u, w["rep1x1.weight"], w["rep1x1.bias"], groups=42) + u
    torch.testing.assert_close(rbsb(x), v, **EXACT)


def test_upsampler_in_training_pads_its_third_branch_with_the_bias() -> None:
    upsampler = random_form(blocks=1).upsampler
    assert isinstance(upsampler, RepUpsampler)
    w = dict(upsampler.named_parameters())
    x = torch.randn(2, 42, 4, 6, dtype=torch.float64)
    wide = w["conv1x1.bias"][:, None, None].expand(2, 84, 6, 8).clone()
    wide[:, :, 1:-1, 1:-1] = F.conv2d(x, w["conv1x1.weight"], w["conv1x1.bias"])
    y = F.conv2d(x, w["conv3.weight"], w["conv3.bias"], padding=1)
    y = y + F.conv2d(x, w["conv1.weight"], w["conv1.bias"])
    y = y + F.conv2d(wide, w["conv3x3.weight"], w["conv3x3.bias"])
    torch.testing.assert_close(upsampler(x), F.pixel_shuffle(y, 4), **EXACT)


def test_zero_padding_in_the_upsampler_would_be_seen_on_the_border_alone() -> None:
    class ZeroPadded(RepUpsampler):
        def forward(self, x: Tensor) -> Tensor:
            wide = F.pad(self.conv1x1(x), (1, 1, 1, 1))
            return self.shuffle(self.conv3(x) + self.conv1(x) + self.conv3x3(wide))

    form = random_form(blocks=1)
    x = torch.rand(1, 3, 6, 7, dtype=torch.float64)
    with torch.no_grad():
        fused = fuse(form)(x)
        object.__setattr__(form.upsampler, "__class__", ZeroPadded)
        off = (form(x) - fused).abs()
    inside = off[:, :, 4:-4, 4:-4]  # one LR pixel is four HR pixels
    assert inside.max() < 1e-12
    off[:, :, 4:-4, 4:-4] = 1
    assert off.amax((0, 1)).min() > 1e-3  # each border pixel differs in some colour


def test_training_form_has_the_published_size_and_keeps_the_plain_kernels() -> None:
    net = LKDN()
    before = copy.deepcopy(net.state_dict())
    form = training_form(net)
    assert sum(p.numel() for p in form.parameters()) == 172_449
    assert list(net.state_dict()) == list(before)
    state = form.state_dict()
    for name, value in before.items():
        assert torch.equal(state[name.replace("upsampler.0.", "upsampler.conv3.")], value)
    with torch.no_grad():
        for p in form.parameters():
            p.zero_()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_fuse_changes_nothing_and_shares_nothing() -> None:
    form = random_form(channels=8, blocks=2).eval()
    before = copy.deepcopy(form.state_dict())
    fused = fuse(form)
    assert type(fused) is LKDN and not fused.training
    assert list(fused.state_dict()) == list(LKDN(channels=8, blocks=2).state_dict())
    with torch.no_grad():
        for p in fused.parameters():
            p.fill_(7)
    assert all(torch.equal(value, before[name]) for name, value in form.state_dict().items())


def test_fuse_in_float32_rounds_once() -> None:
    form = random_form().float()
    exact = fuse(copy.deepcopy(form).double()).float().state_dict()
    rounded = fuse(form).state_dict()
    assert all(torch.equal(value, exact[name]) for name, value in rounded.items())


def test_plain_parameters_pass_through_unchanged() -> None:
    state = LKDN(channels=8, blocks=1).state_dict()
    passed = fuse_parameters(state)
    assert list(passed) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in passed.items())


def gradients(form: LKDN, run: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, Tensor]:
    form.zero_grad()
    y = run(x)
    # Random signs: a plain mean would hide errors that cancel.
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=y.dtype)
    (y * weights).sum().backward()
    return {name: p.grad.clone() for name, p in form.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("size", [(1, 5), (7, 6)])
def test_gradients_through_folded_kernels_equal_those_through_the_branches(
    size: tuple[int, int],
) -> None:
    form = random_form()
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    plain = plain_like(form)
    branches = gradients(form, form, x)
    folded = gradients(
        form,
        lambda x: functional_call(plain, fuse_parameters(dict(form.named_parameters())), (x,)),
        x,
    )
    assert set(folded) == set(branches) == {name for name, _ in form.named_parameters()}
    for name, expected in branches.items():
        # Float64 rounding over the depth of the network, relative to the largest gradient.
        atol = 1e-11 * float(expected.abs().max())
        torch.testing.assert_close(folded[name], expected, rtol=0, atol=atol, msg=name)


def published(shared: Path, name: str) -> dict:
    return torch.load(shared / "reference" / name, weights_only=True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("weights", ["params", "params_ema"])
def test_published_training_form_fuses_exactly(
    shared: Path, weights: str, size: tuple[int, int]
) -> None:
    form = training_form(LKDN())
    form.load_state_dict(published(shared, "LKDN-S_x4_training.pth")[weights])
    form.double()
    x = torch.rand(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fuse(form)(x), form(x), **EXACT)


def test_published_training_form_fuses_to_the_published_fused_weights(shared: Path) -> None:
    form = training_form(LKDN())
    form.load_state_dict(published(shared, "LKDN-S_x4_training.pth")["params_ema"])
    ours, theirs = fuse(form).state_dict(), published(shared, "LKDN-S_x4_fused.pth")
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        # The authors folded in float32; 84 terms a sum give 2.3e-7 of the largest weight at most.
        atol = 1e-6 * float(value.abs().max())
        torch.testing.assert_close(ours[name], value, rtol=0, atol=atol, msg=name)
