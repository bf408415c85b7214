"""The counters against hand counts, the runtime summary, the memory peaks."""

import mmap
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.team23_LKDN import LKDN
from utils import peak_memory
from utils.efficiency import Counts, count, peak_memory_mib, reset_peak_memory, runtime


class Unread(nn.Module):
    """A convolution whose output nobody reads, one that is called twice, one that is not called
    but gives its weights, and functions, which no hook sees."""

    def __init__(self) -> None:
        super().__init__()
        self.unread, self.twice, self.weights = (nn.Conv2d(2, 2, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        self.unread(x)
        y = F.relu(self.twice(self.twice(x))).clamp(0, 1)
        return F.conv2d(y, self.weights.weight) @ y.new_ones(8, 5)


# Inputs are 2 x 7 x 10; the figures are FLOPs of 2023, activations, convolutions, FLOPs of 2024.
CONV = 2 * 2 * 9 * 70  # a 3x3 of 2 -> 2 channels: one multiply-add a weight and position
BY_HAND = {
    "calls": (Unread, 3 * CONV, 3 * 140, 3, 2 * CONV + 36 * 5 * 8 + 2 * 5 * 8 * 5),
    # 2024: where the input is, 7 x 10; 2023: where the output is, 15 x 21
    "transposed": (
        lambda: nn.ConvTranspose2d(2, 4, 3, stride=2, groups=2),
        315 * 9 * 2 * 2,
        4 * 315,
        1,
        70 * 9 * 2 * 2,
    ),
    # strided 3 x 4 positions, grouped
    "grouped": (lambda: nn.Conv2d(2, 6, 3, stride=2, groups=2), 12 * 9 * 6, 6 * 12, 1, 12 * 9 * 6),
    # 2023 reads (batch, channels, rows) of the linear layer's (1, 2, 7, 10): 1 * 2 * 2
    "linear": (lambda: nn.Linear(10, 4), 4, 0, 0, 14 * 10 * 4),
    "norms": (
        lambda: nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2, affine=False), nn.LayerNorm(10)),
        3 * 140,
        0,
        0,
        2 * 140 + 1 * 140 + 5 * 140,
    ),
    "relus": (
        lambda: nn.Sequential(nn.ReLU(), nn.LeakyReLU(0.05), nn.PReLU(), nn.ReLU6(), nn.ELU()),
        5 * 140,
        0,
        0,
        0,
    ),
    "free": (lambda: nn.Sequential(nn.GELU(), nn.Sigmoid(), nn.Hardtanh(), nn.RReLU()), 0, 0, 0, 0),
    "1d": (lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(2, 3, 1)), 0, 0, 0, 70 * 2 * 3),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_counters_are_the_challenges(case: str) -> None:
    make, flops, activations, num_conv, flops_fvcore = BY_HAND[case]
    net = make()
    net.register_parameter("one", nn.Parameter(torch.ones(1)))  # says where the network lies
    counts = count(net.eval(), (2, 7, 10))
    assert (counts.flops, counts.activations, counts.num_conv) == (flops, activations, num_conv)
    assert counts.flops_fvcore == flops_fvcore
    assert not any(module._forward_hooks for module in net.modules())


def test_lkdn_equals_the_factsheet() -> None:
    counts = count(LKDN(), (3, 16, 16))
    assert counts.num_parameters == 129177  # 0.129 M
    assert counts.num_conv == 86
    times = 256  # every layer works at the input's resolution: at 3x256x256 it is that many times
    assert times * counts.flops == 8289189888  # 8.29 G
    assert times * counts.activations == 202702848  # 202.70 M
    assert counts.flops_fvcore == counts.flops + 5 * 5 * 42 * 16**2  # 5 layer norms, 5 a value


def test_counting_takes_no_memory_unless_shapes_depend_on_numbers() -> None:
    class Numbers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            ran.append(x.device.type)
            return self.conv(x if x.sum() > 0 else -x)

    ran: list[str] = []
    net = Numbers()
    assert count(net, (3, 4, 4)).flops == 3 * 5 * 16 and set(ran) == {"meta", "cpu"}
    assert net.conv.weight.device.type == "cpu"


def test_counting_goes_on_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Analysis:
        def __init__(self, net: nn.Module, x: Tensor) -> None:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setitem(sys.modules, "fvcore.nn", SimpleNamespace(FlopCountAnalysis=Analysis))
    counts = count(LKDN(), (3, 512, 512))
    assert (counts.flops, counts.flops_fvcore) == (4 * 8289189888, None)
    monkeypatch.setitem(sys.modules, "fvcore.nn", None)
    assert count(LKDN(), (3, 2**16, 2**16)).flops == 2**16 * 8289189888  # 720 GB a layer


def test_counting_goes_on_where_fvcore_cannot_read_the_network() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.weight = nn.Conv2d(3, 5, 1), nn.Parameter(torch.ones(5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.matmul(self.conv(x).permute(0, 2, 3, 1), self.weight)

    assert count(Attention(), (3, 4, 4)) == Counts(25, 3 * 5 * 16, 5 * 16, 1, None)


def test_fvcore_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fvcore.nn", None)
    counts = count(nn.Conv2d(3, 5, 1), (3, 4, 4))
    assert (counts.flops, counts.flops_fvcore) == (3 * 5 * 16, None)


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
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # a test before this one may have needed more
        pytest.skip("this system lets no process begin its peak anew")
    reset_peak_memory(device)
    before = peak_memory_mib(device)
    if before is None:
        pytest.skip("this system does not tell the peak of resident memory")
    with mmap.mmap(-1, 300 * 2**20) as fresh:  # an array might get memory that is resident already
        fresh.write(bytes(300 * 2**20))
    after = peak_memory_mib(device)
    assert after is not None and after > before + 250


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("raise SystemExit('no room')", "no room"),
        ("print('a line of a library')", "could not convert"),
        ("import os; os.kill(os.getpid(), 9)", "exit -9"),
    ],
)
def test_memory_that_cannot_be_measured_is_none(
    program: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = {"model": "net", "images": [{"size": (8, 12)}]}
    assert peak_memory.memory_alone(run, [sys.executable, "-c", program]) == {"memory_mib": None}
    assert "the memory of net was not measured" in caplog.text and reason in caplog.text


def test_memory_is_that_of_the_largest_image() -> None:
    program = "import sys; w, h = sys.argv[-1].split('x'); print('noise'); print(int(w) * int(h))"
    run = {"model": "net", "images": [{"size": (40, 12)}, {"size": (16, 32)}, {"size": (8, 8)}]}
    got = peak_memory.memory_alone(run, [sys.executable, "-c", program])
    assert got["memory_mib"] == 4 * 8 and "4x8" in str(got["memory_of"])


def test_an_image_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(
        OSError, match="cannot restore 10000000x10000000 pixels: Unable to allocate"
    ):
        peak_memory.memory_of([], (10**7, 10**7), torch.device("cpu"))
    assert peak_memory.memory_of([], (8, 8), torch.device("cpu")) > 10
