"""The compiled training kernels: every gradient against float64 autograd on the branches."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from native_gradients import errors, gradients, patches, randomised, torch_gradients
from torch import Tensor

from kernels import native_library, native_training
from kernels.native_library import cpu_features
from kernels.native_training import NativeGradients, NativeOrthogonaliser
from models.team23_LKDN import LKDN
from train.forward import make_gradients
from train.optim import make_optimizers, orthogonalise_all
from train.recipes import STAGES, Engine
from train.reparam import fuse_parameters, plain_like, training_form
from utils.devices import torch_threads
from utils.weights import load_state, read_checkpoint

SIZES = ((1, 1), (1, 7), (5, 3), (17, 31), (48, 48))

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, native_library.COMPILERS)), reason="needs a C++ compiler"
)


def kernels_of(form: LKDN, threads: int, arithmetic: str = "float32") -> NativeGradients:
    with torch_threads(threads):
        return NativeGradients(plain_like(form), arithmetic)


@pytest.fixture()
def compiled_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the compiler's time for kernels that are not run for long."""
    monkeypatch.setattr(native_library, "FLAGS", (*native_library.FLAGS, "-O1"))


@pytest.fixture(scope="module", params=["random", "trained"])
def form(request: pytest.FixtureRequest, root: Path) -> Iterator[LKDN]:
    """The challenge network's training form; trained: one that fuses to the shipped weights."""
    torch.manual_seed(0)
    if request.param == "random":
        yield randomised(LKDN())
        return
    plain = LKDN()
    file = root / "model_zoo" / "team23_LKDN.pth"
    load_state(plain, read_checkpoint(file), file)
    form = training_form(plain)
    with torch.no_grad():
        # What the branches add is taken from the kernels that they are added to.
        fused = fuse_parameters(dict(form.named_parameters()))
        own = dict(form.named_parameters())
        for name, value in plain.named_parameters():
            target = own[name.replace("upsampler.0.", "upsampler.conv3.")]
            target.add_(value - fused[name])
    yield form


@pytest.mark.parametrize("loss", ["l1", "l2", "psnr"])
@pytest.mark.parametrize(("batch", "size"), [*zip((1, 5, 1, 5, 1), SIZES, strict=True)])
def test_gradients_are_those_of_float64(
    form: LKDN, batch: int, size: tuple[int, int], loss: str
) -> None:
    lr, hr = patches(form, batch, *size)
    value, got = gradients(form, kernels_of(form, 2), lr, hr, loss)
    expected, exact = torch_gradients(form, lr, hr, loss)
    assert value == pytest.approx(expected, rel=1e-5)
    # Rounding of 90 layers there and back. On a few pixels torch's own float32 is off by more.
    _, rounded = torch_gradients(form, lr, hr, loss, torch.float32)
    most = max(2e-5, 3 * max(errors(rounded, exact).values()))
    assert not {name: e for name, e in errors(got, exact).items() if not e < most}


def test_adam_takes_in_the_gradients_of_float64() -> None:
    """torch's fused Adam reads a gradient's memory from end to end, whatever its strides are."""
    torch.manual_seed(0)
    form, stage = randomised(LKDN()), replace(STAGES[1], batch=5)
    lr, hr = patches(form, 5, 5, 3)
    _, exact = torch_gradients(form, lr, hr, stage.loss)
    make_gradients(form, stage, torch.device("cpu"), Engine(kernels="native"))(lr, hr)
    (adam,) = make_optimizers(form, stage)
    adam.step()
    taken = {name: adam.state[p]["exp_avg"] / 0.1 for name, p in form.named_parameters()}
    assert not {name: e for name, e in errors(taken, exact).items() if not e < 2e-5}


# Inputs rounded to bf16, 2^-9 of each, amount to 0.016 to 0.02 of a gradient's largest number after
# 90 layers there and back, to 0.049 to 0.060 on the fewest pixels, as the CPU rounds sums; torch's
# autocast to 0.02 to 0.2. A simulation in float64 that rounds the same inputs gives as much.
BF16 = 0.08


@pytest.mark.parametrize("loss", ["l1", "l2", "psnr"])
@pytest.mark.parametrize("arithmetic", ["avx512_bf16", "amx_bf16", "amx_bf16 emulated"])
def test_gradients_in_bf16(arithmetic: str, loss: str, request: pytest.FixtureRequest) -> None:
    if "emulated" in arithmetic:
        request.getfixturevalue("compiled_quickly")
    elif arithmetic not in cpu_features():
        pytest.skip(f"needs a CPU with {arithmetic}")
    torch.manual_seed(0)
    form = randomised(LKDN())
    kernels = kernels_of(form, 2, arithmetic)
    # Of few pixels one whose rounded error has another sign turns much of the gradient of L1.
    smallest = (1, 5, 3) if loss != "l1" else (1, 11, 13)
    for batch, *size in (smallest, (2, 17, 31), (1, 48, 48)):
        lr, hr = patches(form, batch, *size)
        value, got = gradients(form, kernels, lr, hr, loss)
        expected, exact = torch_gradients(form, lr, hr, loss)
        assert value == pytest.approx(expected, rel=1e-3)
        assert not {name: e for name, e in errors(got, exact).items() if not e < BF16}
        again = gradients(form, kernels, lr, hr, loss)[1]
        assert all(torch.equal(value, again[name]) for name, value in got.items())


@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize("shape", [(56, 2, 3, 3), (6, 1, 4, 3)])
def test_emulated_tiles_on_networks_of_other_sizes(shape: tuple[int, int, int, int]) -> None:
    torch.manual_seed(1)
    form = randomised(LKDN(*shape))
    lr, hr = patches(form, 2, 7, 13)
    kernels = NativeGradients(plain_like(form), "amx_bf16 emulated")
    _, got = gradients(form, kernels, lr, hr, "l2")
    _, exact = torch_gradients(form, lr, hr, "l2")
    assert not {name: e for name, e in errors(got, exact).items() if not e < BF16}


# Channels, blocks, scale, image channels: registers filled to the last lane, and not.
@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize("shape", [(56, 2, 3, 3), (48, 1, 2, 1), (6, 1, 4, 3)])
def test_networks_of_other_sizes(shape: tuple[int, int, int, int]) -> None:
    torch.manual_seed(1)
    form = randomised(LKDN(*shape))
    lr, hr = patches(form, 2, 7, 13)
    value, got = gradients(form, NativeGradients(plain_like(form)), lr, hr, "l2")
    expected, exact = torch_gradients(form, lr, hr, "l2")
    assert value == pytest.approx(expected, rel=1e-5)
    assert not {name: e for name, e in errors(got, exact).items() if not e < 2e-5}


@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize("flags", [("-mno-avx512f",), ("-mno-avx512f", "-mno-avx")])
def test_a_cpu_with_narrower_registers(
    flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if native_library.platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("flags of x86-64")
    monkeypatch.setattr(native_library, "FLAGS", (*native_library.FLAGS, *flags))
    torch.manual_seed(2)
    form = randomised(LKDN(42, 1))
    lr, hr = patches(form, 1, 6, 11)
    _, got = gradients(form, NativeGradients(plain_like(form)), lr, hr, "l1")
    _, exact = torch_gradients(form, lr, hr, "l1")
    assert not {name: e for name, e in errors(got, exact).items() if not e < 2e-5}


def test_the_same_bits_whatever_ran_before_and_by_however_many_threads() -> None:
    torch.manual_seed(3)
    form = randomised(LKDN())
    batches = [patches(form, 5, 16, 16), patches(form, 3, 9, 20)]
    results: list[dict[str, Tensor]] = []
    for threads in (1, 2, 7):
        kernels = kernels_of(form, threads)
        for lr, hr in (*batches, batches[0]):
            _, got = gradients(form, kernels, lr, hr, "l1")
            results.append({name: value.clone() for name, value in got.items()})
    for i, result in enumerate(results):
        expected = results[i % 3 % 2]
        assert all(torch.equal(value, expected[name]) for name, value in result.items())


def test_memory_of_a_step_is_bounded() -> None:
    kernels = kernels_of(LKDN(), 2)
    lr, hr = patches(LKDN(), 12, 64, 64)
    kernels(dict(LKDN().named_parameters()), lr, hr, "l1", 1.0)
    assert 4 * (len(kernels.memory) + len(kernels.gradients)) < 200e6  # bytes


@pytest.mark.usefixtures("compiled_quickly")
def test_memory_that_was_not_to_be_had_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = NativeGradients(LKDN(6, 1))

    def none_left(floats: int) -> Tensor:
        raise MemoryError

    with monkeypatch.context() as patched, pytest.raises(MemoryError):
        patched.setattr(native_training, "zeros", none_left)
        kernels._take_memory(2, 5, 4)
    kernels._take_memory(2, 5, 4)
    assert len(kernels.memory) == kernels.threads * kernels.library.lkdn_memory(5, 4) > 0


@pytest.mark.usefixtures("compiled_quickly")
def test_strides_are_followed_and_wrong_patches_refused() -> None:
    torch.manual_seed(4)
    net = LKDN(6, 1)
    kernels, values = NativeGradients(net), dict(net.named_parameters())
    lr, hr = patches(net, 2, 5, 4)
    expected, _ = kernels(values, lr, hr, "l1", 1.0)
    strided = lr.to(memory_format=torch.channels_last)
    assert kernels(values, strided, hr, "l1", 1.0)[0] == expected
    output = net(lr / 255)
    assert float(expected) == pytest.approx(
        float(F.l1_loss(output, hr / 255, reduction="sum").detach()), rel=1e-5
    )
    with pytest.raises(ValueError, match="expected uint8 patches"):
        kernels(values, lr, hr[..., 1:], "l1", 1.0)
    with pytest.raises(ValueError, match="expected uint8 patches"):
        kernels(values, lr.float(), hr, "l1", 1.0)


def test_matrices_are_orthogonalised_as_by_torch() -> None:
    torch.manual_seed(6)
    shapes = [(42, 42), (21, 42), (42, 210), (84, 42), (42, 12), (1, 5), (7, 1), (64, 65)]
    matrices = [torch.randn(shape) * 10.0**i for i, shape in enumerate(shapes, -4)]
    matrices.append(torch.zeros(3, 4))
    exact = orthogonalise_all([m.double() for m in matrices])
    for threads in (1, 3):
        with torch_threads(threads):
            got = NativeOrthogonaliser()(matrices)
        for one, other in zip(got, exact, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=0, atol=5e-6)
    with pytest.raises(ValueError, match="at most 64"):
        NativeOrthogonaliser()([torch.zeros(65, 70)])
