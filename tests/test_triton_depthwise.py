"""The Triton depthwise convolution against float64, in Triton's interpreter or on a GPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

# Batch, channels, height, width; kernel size; dilation. The interpreter is slow, pixel by pixel:
# whole images are checked on a GPU.
CASES = [
    *(((1, 42, 1, 1), size, dilation) for size, dilation in ((3, 1), (5, 1), (5, 3))),
    *(((2, 21, 5, 7), size, dilation) for size, dilation in ((3, 1), (5, 1), (5, 3))),
    ((1, 70, 2, 18), 5, 3),
    ((1, 3, 3, 4), 1, 1),
    ((1, 3, 3, 4), 7, 2),
]
LARGE = [((1, 2, 64, 64), 3, 1), ((2, 48, 16, 16), 5, 3), ((1, 130, 65, 127), 5, 3)]

SCRIPT = """
import sys
import torch
import torch.nn.functional as F
from kernels import triton_depthwise
from kernels.triton_depthwise import depthwise

device = sys.argv[1]
for shape, size, dilation in {cases}:
    for dtype in (torch.float32, torch.bfloat16):
        # Programs of one turn, and of several, of which the last is cut.
        triton_depthwise.GRADIENT_PROGRAMS = 2048 if dtype == torch.float32 else 3
        torch.manual_seed(0)
        x, upstream = (torch.randn(shape, device=device).to(dtype) for _ in "xu")
        weight = torch.randn(shape[1], 1, size, size, device=device)
        bias = torch.randn(shape[1], device=device)
        if shape[0] == 2:  # the others are copied from NCHW
            x = x.contiguous(memory_format=torch.channels_last)
        leaves = [leaf.requires_grad_() for leaf in (x, weight, bias)]
        y = depthwise(*leaves, dilation)
        got = [y, *torch.autograd.grad(y, leaves, upstream)]
        leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
        exact = F.conv2d(*leaves, padding=size // 2 * dilation, dilation=dilation, groups=shape[1])
        expected = [exact, *torch.autograd.grad(exact, leaves, upstream.double())]
        assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
        for name, a, b in zip(("y", "x", "weight", "bias"), got, expected, strict=True):
            error = float((a.double() - b).norm() / b.norm())
            # Float32 sums; images of bfloat16 are rounded once, at the end, to 8 bits, which
            # Triton's interpreter does by cutting off.
            rounded = dtype == torch.bfloat16 and name in ("y", "x")
            assert error < (8e-3 if rounded else 2e-6), (shape, size, dtype, name, error)
small = torch.randn(1, 3, 2, 5, device=device, requires_grad=True)
weight = torch.randn(3, 1, 3, 3, device=device, requires_grad=True)
torch.library.opcheck(torch.ops.lkdn.depthwise, (small, weight, None, 1))
leaves = (small.detach(), small.detach(), weight.detach(), 1)
torch.library.opcheck(torch.ops.lkdn.depthwise_backward, leaves)
with torch.autocast(device, torch.bfloat16):
    y = depthwise(small, weight, None)
assert torch.equal(y, depthwise(small.bfloat16(), weight, None)) and y.dtype == torch.bfloat16
assert torch.autograd.grad(y.sum(), small)[0].dtype == torch.float32
# Of every second number, and of one for all.
for bias in (torch.randn(6, device=device)[::2], torch.randn(1, device=device).expand(3)):
    leaves = [leaf.double() for leaf in (small, weight, bias)]
    expected = F.conv2d(*leaves, padding=1, groups=3).float()
    torch.testing.assert_close(depthwise(small, weight, bias), expected)
"""


def test_values_and_gradients_in_the_interpreter(run_triton: Callable) -> None:
    run_triton(SCRIPT.format(cases=CASES), "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_values_and_gradients_on_the_gpu(run_triton: Callable) -> None:
    run_triton(SCRIPT.format(cases=CASES + LARGE), "cuda")


@pytest.mark.parametrize(
    ("x", "weight", "bias", "message"),
    [
        (torch.empty(3, 4, 5), torch.empty(3, 1, 3, 3), None, "expected x"),
        (torch.empty(1, 3, 4, 5), torch.empty(4, 1, 3, 3), None, "expected x"),
        (torch.empty(1, 3, 4, 5), torch.empty(3, 1, 2, 2), None, "a square kernel of odd size"),
        (torch.empty(1, 3, 4, 5), torch.empty(3, 1, 3, 5), None, "a square kernel of odd size"),
        (torch.empty(1, 3, 4, 5), torch.empty(3, 1, 3, 3), torch.empty(1), r"a bias \(3,\)"),
        (torch.empty(1, 3, 4, 5), torch.empty(3, 1, 3, 3), torch.empty(3, 1), r"a bias \(3,\)"),
        (
            torch.empty(2, 1, 2**15, 2**15, device="meta"),
            torch.empty(1, 1, 3, 3),
            None,
            "fewer images",
        ),
        (torch.empty(1, 3, 4, 5).double(), torch.empty(3, 1, 3, 3), None, "got torch.float64"),
        (torch.empty(1, 3, 4, 5).int(), torch.empty(3, 1, 3, 3), None, "got torch.int32"),
    ],
)
def test_what_it_cannot_do_is_refused(
    x: Tensor, weight: Tensor, bias: Tensor | None, message: str
) -> None:
    from kernels.triton_depthwise import depthwise

    with pytest.raises(ValueError, match=message):
        depthwise(x, weight, bias)
