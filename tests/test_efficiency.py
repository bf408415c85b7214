"""The counters against hooks and hand counts, the runtime summary, the memory peaks."""

import mmap

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.team23_LKDN import LKDN
from utils.efficiency import count, peak_memory_mib, reset_peak_memory, runtime


def hooked(net: nn.Module, x: Tensor) -> tuple[int, int]:
    """Multiply-adds and activations of Conv2d modules, the way of the challenge's template."""
    total = [0, 0]

    def hook(conv: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        kernel = conv.kernel_size[0] * conv.kernel_size[1] * conv.in_channels // conv.groups
        total[0] += output.numel() * kernel
        total[1] += output.numel()

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(hook)
    net(x)
    return total[0], total[1]


def test_lkdn_equals_the_factsheet_and_the_hooks() -> None:
    counts = count(LKDN())
    assert counts.num_parameters == 129177  # 0.129 M
    assert counts.flops == 8289189888  # 8.29 G
    assert counts.activations == 202702848  # 202.70 M
    assert counts.num_conv == 86
    small = count(LKDN(), (3, 20, 13))
    assert (small.flops, small.activations) == hooked(LKDN(), torch.rand(1, 3, 20, 13))


def test_relu_like_layers_count_one_per_output_and_others_nothing() -> None:
    convs = [nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1, groups=3), nn.Conv2d(6, 4, 3, stride=2)]
    free = [nn.GELU(), nn.Sigmoid(), nn.GroupNorm(1, 4)]
    relus = [nn.ReLU(inplace=True), nn.LeakyReLU(0.05), nn.PReLU(), nn.ReLU6(), nn.ELU()]
    net = nn.Sequential(*convs, *free, *relus)
    flops, activations = hooked(nn.Sequential(*convs), torch.rand(1, 3, 11, 17))
    counts = count(net, (3, 11, 17))
    assert counts.flops == flops + len(relus) * 4 * 4 * 7
    assert counts.activations == activations
    assert counts.num_conv == 3


def test_products_that_are_no_convolutions_count_too() -> None:
    counts = count(nn.Linear(7, 5), (2, 3, 7))
    assert (counts.flops, counts.activations) == (2 * 3 * 7 * 5, 2 * 3 * 5)


def test_runtime_keeps_the_cold_image_in_the_mean_alone() -> None:
    assert runtime([[100.0, 1.0, 2.0, 3.0]]).average == 26.5
    assert runtime([[100.0, 1.0, 2.0, 3.0]]).median == 2.0
    times = runtime([[100.0, 1.0], [4.0, 5.0], [6.0, 7.0]])
    assert times.average == 50.5
    assert times.median == 5.5
    assert (times.p20, times.p80) == tuple(np.percentile([4, 5, 6, 7], [20, 80]))
    assert runtime([[100.0]]).median is None
    assert runtime([[]]).average is None


def test_peak_memory_sees_what_was_freed_again() -> None:
    device = torch.device("cpu")
    reset_peak_memory(device)
    before = peak_memory_mib(device)
    if before is None:
        pytest.skip("this system does not tell the peak of resident memory")
    with mmap.mmap(-1, 300 * 2**20) as fresh:  # an array might get memory that is resident already
        fresh.write(bytes(300 * 2**20))
    after = peak_memory_mib(device)
    assert after is not None and after > before + 250
