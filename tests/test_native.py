"""The compiled CPU kernels against the plain network in float64, however an image is cut."""

import copy
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import torch

from kernels import native_library
from kernels.native import NativeLKDN
from models.team23_LKDN import LKDN
from utils import efficiency
from utils.devices import prepare_cpu, torch_threads


def compiled(
    net: LKDN, threads: int | None = None, arithmetic: str = "float32", whole: bool = False
) -> NativeLKDN:
    """The network on the kernels, or a skip where there is no compiler or no such arithmetic."""
    if not any(map(native_library.shutil.which, native_library.COMPILERS)):
        pytest.skip("needs a C++ compiler")
    if "bf16" in arithmetic and arithmetic not in {
        *native_library.cpu_features(),
        "amx_bf16 emulated",
    }:
        pytest.skip(f"needs a CPU with {arithmetic}")
    with torch_threads(threads or torch.get_num_threads()):
        return NativeLKDN(net, arithmetic, whole)


def randomised(shape: tuple[int, int, int, int]) -> LKDN:
    """A network whose norms do not start at one and zero, which would hide a mistake."""
    torch.manual_seed(0)
    net = LKDN(*shape).eval().requires_grad_(False)
    for layer in net.modules():
        if isinstance(layer, torch.nn.LayerNorm):
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
            torch.nn.init.uniform_(layer.bias, -0.5, 0.5)
    return net


# Channels, blocks, scale, image channels: registers filled to the last lane, and not.
NETWORKS = [(42, 5, 4, 3), (56, 2, 3, 3), (48, 1, 2, 1), (6, 2, 4, 3)]


@pytest.mark.parametrize("shape", NETWORKS)
def test_native_computes_the_network(shape: tuple[int, int, int, int]) -> None:
    """One strip and several, one band and several, edges in the middle of a group of pixels."""
    net, images = randomised(shape), shape[3]
    exact = copy.deepcopy(net).double()
    for threads in (1, 3):
        fast = compiled(net, threads)
        for size in ((1, 1), (7, 13), (40, 261), (97, 9), (1, 130)):
            x = torch.rand(1, images, *size, generator=torch.Generator().manual_seed(sum(size)))
            error = float((fast(x) - exact(x.double())).abs().max())
            # Sums in another order, and a polynomial for erf that is off by 1e-6.
            assert error < 1e-5, (size, threads, error)


@pytest.mark.parametrize(
    ("arithmetic", "shape"),
    [
        ("avx512_bf16", (42, 5, 4, 3)),
        ("avx512_bf16", (6, 2, 4, 1)),
        ("amx_bf16", (42, 5, 4, 3)),
        ("amx_bf16 emulated", (42, 2, 4, 3)),
        ("amx_bf16 emulated", (56, 1, 3, 3)),
    ],
)
def test_native_in_bf16(
    arithmetic: str, shape: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "emulated" in arithmetic:
        monkeypatch.setattr(
            native_library, "FLAGS", (*native_library.FLAGS, "-O1")
        )  # compiled sooner
    net = randomised(shape)
    exact = copy.deepcopy(net).double()
    fast = compiled(net, 3, arithmetic)
    for size in ((1, 1), (7, 13), (40, 61), (3, 130)):
        x = torch.rand(1, shape[3], *size, generator=torch.Generator().manual_seed(sum(size)))
        error = float((fast(x) - exact(x.double())).abs().max())
        # Inputs of products rounded to 8 bits: 6e-3 at most, and torch's own bf16 is off by 7e-3.
        assert error < 1e-2, (size, error)


@pytest.mark.parametrize("size", [(11, 17), (90, 190)])  # small enough for one thread, and not
def test_batch_and_strides_are_followed(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net = LKDN(6, 1).eval().requires_grad_(False)
    x = torch.rand(5, *size, 3).permute(0, 3, 1, 2)
    expected = net(x)
    alone = [compiled(net, threads, whole=True)(x) for threads in (1, 2, 7)]
    assert (alone[0] - expected).abs().max() < 1e-5
    assert torch.equal(alone[0], alone[1]) and torch.equal(alone[0], alone[2])
    for threads in (1, 2, 7):
        fast = compiled(net, threads)
        fast(x[:1])
        assert (fast(x) - expected).abs().max() < 1e-5
        assert fast(x[:0]).shape == (0, 3, 4 * size[0], 4 * size[1])


def test_memory_of_an_earlier_image_does_not_show() -> None:
    """Rings and maps are used again: nothing may be read before it is written."""
    torch.manual_seed(0)
    net = LKDN(6, 2).eval().requires_grad_(False)
    fast = compiled(net, 2)
    x = torch.rand(1, 3, 20, 150)
    expected = fast(x)
    fast.memory.fill_(float("nan"))
    assert (fast(x) == expected).all()


def test_threads_take_turns() -> None:
    torch.manual_seed(0)
    fast = compiled(LKDN(6, 1).eval().requires_grad_(False), 2)
    images = torch.rand(1, 3, 9, 20), torch.rand(1, 3, 70, 40)
    expected = [fast(x) for x in images]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: fast(images[i % 2]), range(120)))
    assert [i for i, y in enumerate(results) if not torch.equal(y, expected[i % 2])] == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_goes_on() -> None:
    fast = compiled(LKDN(6, 1).eval().requires_grad_(False), 2)
    x = torch.rand(1, 3, 150, 150)  # padded by several threads of torch

    def run() -> None:
        assert torch.equal(fast(x), expected)

    child = multiprocessing.get_context("fork").Process(target=run)
    with torch_threads(2):
        expected = fast(x)
        with fast.lock:  # as while another thread runs an image
            child.start()
    child.join(60)
    child.kill()
    child.join()
    assert child.exitcode == 0


def test_memory_is_that_of_the_largest_image() -> None:
    """Sizes that differ a little, as the pages of a book do."""
    sizes = [(120 + i, 170 + i) for i in range(60)]
    with ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        many, one = pool.map(peak_mib, (sizes, sizes[-1:]))
    assert many is not None and one is not None and many < 1.2 * one


def peak_mib(sizes: list[tuple[int, int]]) -> float | None:
    """What images of these sizes take at most, in a process of its own."""
    prepare_cpu()
    torch.set_num_threads(1)
    # Not enlarged: the results are the caller's, and would count.
    fast = compiled(LKDN(42, 1, 1).eval().requires_grad_(False), 1)
    fast(torch.rand(1, 3, 8, 8))
    efficiency.reset_peak_memory(torch.device("cpu"))
    before = efficiency.peak_memory_mib(torch.device("cpu"))
    for size in sizes:
        fast(torch.rand(1, 3, *size))
    after = efficiency.peak_memory_mib(torch.device("cpu"))
    return None if before is None or after is None else after - before
