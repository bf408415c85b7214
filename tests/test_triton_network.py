"""The fused network in Triton against plain torch and float64, interpreted or on a GPU."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deploy.bench.worker import load_shipped
from models.team23_LKDN import LKDN

SCRIPT = """
import sys
from dataclasses import replace
from types import SimpleNamespace

import torch
import triton.language

sys.path.append("tests")
import plain_layers
from kernels import triton_layers
from kernels.triton_network import FusedLKDN
from models.team23_LKDN import LKDN

device, cases = sys.argv[1], {cases}
torch.backends.cudnn.allow_tf32 = False
torch.set_num_threads(1)
if device == "cpu":  # the interpreter multiplies the bits of bfloat16 as if they were integers
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def widened(tensor):
        if tensor.dtype.scalar != triton.language.bfloat16:
            return tensor
        wide = (tensor.data.astype("uint32") << 16).view("float32")
        return TensorHandle(wide, triton.language.float32)

    multiply = InterpreterBuilder.create_dot
    InterpreterBuilder.create_dot = lambda self, a, b, *others: multiply(
        self, widened(a), widened(b), *others
    )
STEPS = ("shallow", "refine", "merge", "spread", "attend", "smooth", "enlarge")
ran = set()


def both(name, tolerance):
    # Run a kernel and its reference on equal arguments, and compare what they return and write.
    def run(w, *arguments):
        copies = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
        got = getattr(triton_layers, name)(w, *arguments)
        expected = getattr(plain_layers, name)(w, *copies)
        outputs = (got, expected) if isinstance(got, tuple) else ((got,), (expected,))
        written = [(a, t) for a, t in zip(arguments, copies) if isinstance(a, torch.Tensor)]
        for a, b in [*zip(*outputs, strict=True), *written]:
            assert a.shape == b.shape and a.dtype == b.dtype, (name, a.shape, b.shape)
            if a.numel():
                # Before it is first written, the running sum holds anything.
                wrong = (a.double() - b.double()).abs()[b.isfinite()].max()
                most = tolerance * b[b.isfinite()].abs().max()
                assert wrong <= most, (name, a.shape, arguments[-1], wrong)
        ran.add(name)
        return got
    return run


for channels, shape in cases:
    large = shape[-1] >= 64  # larger tiles, for the interpreter's time goes by programs
    torch.manual_seed(0)
    net = LKDN(channels, 1 if large else 2).eval().requires_grad_(False).to(device)
    x = torch.rand(shape, device=device)
    exact = net.double()(x.double())
    net.float()
    # float16: a sum that differs in its last bits is rounded to the next number, 2**-11 away,
    # at two places of a kernel; over the whole network that adds up. bfloat16 has three bits
    # less, and the interpreter cuts off where a GPU rounds.
    for dtype, tolerance, whole in (
        (torch.float32, 1e-5, 1e-5), (torch.float16, 2e-3, 5e-3), (torch.bfloat16, 2e-2, 1e-1),
    ):
        if large and dtype != torch.float32:  # these are for the borders of tiles
            continue
        steps = SimpleNamespace(**{{name: both(name, tolerance) for name in STEPS}})
        fast = FusedLKDN(net, dtype, steps)
        if large and device == "cpu":
            fast.blocks = replace(fast.blocks, tile=(16, 64))
        y = fast(x)
        assert y.dtype == torch.float32 and y.shape == exact.shape
        error = float((y - exact).abs().max())
        assert error < whole, (shape, dtype, error)
assert ran == set(STEPS), ran
"""

# Channels, image. The interpreter is slow: large images are checked with few channels.
CASES = [
    (42, (1, 3, 7, 13)),
    (6, (1, 3, 1, 1)),
    (6, (2, 3, 5, 19)),
    (6, (1, 3, 64, 64)),
    (6, (1, 3, 65, 127)),
]


def test_each_kernel_equals_plain_torch_in_the_interpreter(run_triton: Callable) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    run_triton(SCRIPT.format(cases=CASES), "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_each_kernel_equals_plain_torch_on_a_gpu(run_triton: Callable) -> None:
    run_triton(SCRIPT.format(cases=CASES), "cuda")


GELU = """
import sys

import torch

from kernels.triton_layers import refine
from kernels.triton_weights import choose_blocks

# Without weights, what refine stores is the GELU of its bias.
device, blocks = sys.argv[1], choose_blocks(42, torch.float32, 90)
inputs = blocks.taps[0] * blocks.taps[1] + blocks.taps[2]
weight = torch.zeros(3, inputs, blocks.wide, device=device)
source, part = (torch.zeros(1, n, device=device) for n in (blocks.pitch, blocks.parts))
worst = 0
for bias in torch.linspace(-10, 10, 40 * blocks.wide).view(40, -1):
    w = {"weight": weight, "bias": bias.to(device)}
    y = refine(w, blocks, source, part, (1, 1, 1))[0].cpu().double()
    exact = torch.nn.functional.gelu(bias.double())[: blocks.pitch]
    worst = max(worst, float((y - exact).abs().max()))
assert 1e-8 < worst < 1e-6, worst  # 6.4e-7 of the formula, and float32's rounding
"""


def test_gelu_is_exact_to_the_last_bits_in_the_interpreter(run_triton: Callable) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    run_triton(GELU, "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gelu_is_exact_to_the_last_bits_on_a_gpu(run_triton: Callable) -> None:
    run_triton(GELU, "cuda")


SIZES = """
import torch
from kernels.triton_network import FusedLKDN
from models.team23_LKDN import LKDN

fast = FusedLKDN(LKDN(6, 3).to("cuda"))
for i in range(100):
    fast(torch.rand(1, 3, 1 + i, 1 + 16 * i % 37, device="cuda"))
"""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_hundred_sizes_compile_each_kernel_once(
    root: Path, tmp_path: Path, python: Callable
) -> None:
    done = python(root, "-c", SIZES, TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    # Seven kernels, attend in three forms: first, last, between.
    assert 7 <= len(list(tmp_path.rglob("*.cubin"))) <= 9


def test_half_precision_holds_weights_grown_beyond_it() -> None:
    """Training lets what the normalisation divides out grow to 1e11 (half holds 65504)."""
    pytest.importorskip("triton", reason="triton is not installed")
    import plain_layers

    from kernels.triton_network import FusedLKDN

    torch.manual_seed(0)
    net = LKDN(8, 2).eval().requires_grad_(False)
    for name in net.blocks:
        block = net.get_submodule(name)
        for layer in (block.c5, block.atten.pointwise, block.atten.depthwise):
            layer.weight *= 300
            layer.bias *= 300
    x = torch.rand(1, 3, 21, 18)
    exact = copy.deepcopy(net).double()(x.double())
    assert not net.half()(x.half()).isfinite().all()  # what makes this necessary
    assert (FusedLKDN(net.float(), torch.float16, plain_layers)(x) - exact).abs().max() < 5e-3


def split_product(rows: Tensor, matrix: Tensor, parts: int) -> Tensor:
    """A product as tensor cores do it in TF32: of numbers rounded to 10 bits, or, in three parts,
    of those and of what the rounding left."""

    def rounded(x: Tensor) -> Tensor:  # to the nearest, as cvt.rna.tf32 does
        return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    a, b = rows.float(), matrix[: rows.shape[1]].float()
    high_a, high_b = rounded(a), rounded(b)
    if parts == 1:
        return high_a @ high_b
    low_a, low_b = rounded(a - high_a), rounded(b - high_b)
    return low_a @ high_b + high_a @ low_b + high_a @ high_b


def test_float32_on_tensor_cores_is_as_exact_as_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the shipped weights, against float64; in one part it would be some hundred times less."""
    pytest.importorskip("triton", reason="triton is not installed")
    import plain_layers

    from kernels.triton_network import FusedLKDN

    net = load_shipped()
    x = torch.rand(1, 3, 40, 33, generator=torch.Generator().manual_seed(0))
    exact = copy.deepcopy(net).double()(x.double())

    def error() -> float:
        return float((FusedLKDN(net, torch.float32, plain_layers)(x) - exact).abs().max())

    ieee = error()
    monkeypatch.setattr(plain_layers, "product", partial(split_product, parts=3))
    three = error()
    monkeypatch.setattr(plain_layers, "product", partial(split_product, parts=1))
    one = error()
    assert three < 2 * ieee < 1e-5 and one > 50 * three, (ieee, three, one)


def test_image_too_large_for_int32_is_refused() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    from kernels.triton_network import FusedLKDN

    net = LKDN(4, 1).eval().requires_grad_(False)
    with pytest.raises(ValueError, match="use tiles"):
        FusedLKDN(net)(torch.empty(1, 3, 2**13, 2**13, device="meta"))


def test_images_of_other_channels_are_refused() -> None:
    """The kernels would read behind the weights."""
    pytest.importorskip("triton", reason="triton is not installed")
    from kernels.triton_network import FusedLKDN

    fast = FusedLKDN(LKDN(4, 1))
    for shape in ((1, 1, 5, 6), (1, 4, 5, 6), (3, 5, 6)):
        with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\), got"):
            fast(torch.empty(shape, device="meta"))
