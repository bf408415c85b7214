"""Weights rewritten for half precision: what is made smaller, and where that is not done."""

import copy

import pytest
import torch

from kernels.fold import reduced
from models.team23_LKDN import LKDN
from train.export import _held_by_half_precision


def test_a_network_of_small_numbers_comes_back_as_it_is() -> None:
    torch.manual_seed(0)
    for factor in (1.0, 1e-3):
        net = LKDN(channels=8, blocks=2).eval()
        for parameter in net.parameters():
            parameter.data.mul_(factor)
        before = copy.deepcopy(net.state_dict())
        after = reduced(net).state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())


@torch.no_grad()
def test_weights_that_would_become_another_function_are_left_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Huge before the norm, but for a black image: there the norm's eps is nothing beside the bias
    alone, and all beside a smaller one."""
    torch.manual_seed(0)
    net = LKDN(channels=8, blocks=2).double().eval()
    for name, parameter in net.named_parameters():
        if name.startswith(("fea_conv.", "B1.")) and name.endswith(".bias"):
            parameter.mul_(name == "B1.c6.bias")
    net.B1.c6.weight.mul_(1e12)
    black = torch.zeros(1, 3, 9, 7, dtype=torch.float64)
    change = float((reduced(net)(black) - net(black)).abs().max())
    assert change > 1e-3
    assert _held_by_half_precision(net) is net
    (said,) = caplog.messages
    assert "too large for half precision" in said
    assert float(said.rpartition(" ")[2]) == pytest.approx(change, rel=0.5)
