"""The network against a second implementation in numpy, written from its description alone."""

from collections.abc import Mapping
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import erf
from torch import nn

from models.team23_LKDN import LKDN

Array = NDArray[np.float64]
Arrays = Mapping[str, Array]


def conv(x: Array, kernel: Array, bias: Array | None = None) -> Array:
    """(B, I, H, W) * (O, I, k, k) -> (B, O, H, W), zero padding, one tap after the other."""
    height, width = x.shape[2:]
    reach = kernel.shape[-1] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    out = np.zeros((len(x), len(kernel), height, width))
    for i, j in np.ndindex(*kernel.shape[2:]):
        tap = padded[:, :, i : i + height, j : j + width]
        out += np.einsum("oc,bchw->bohw", kernel[:, :, i, j], tap)
    return out if bias is None else out + bias[:, None, None]


def depthwise(x: Array, kernel: Array, bias: Array, dilation: int = 1) -> Array:
    """(B, C, H, W) * (C, 1, k, k) -> (B, C, H, W), zero padding."""
    height, width = x.shape[2:]
    reach = dilation * (kernel.shape[-1] // 2)
    padded = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    out = np.zeros_like(x)
    for i, j in np.ndindex(*kernel.shape[2:]):
        top, left = i * dilation, j * dilation
        tap = padded[:, :, top : top + height, left : left + width]
        out += kernel[:, 0, i, j][:, None, None] * tap
    return out + bias[:, None, None]


def gelu(x: Array) -> Array:
    return x * (1 + erf(x / np.sqrt(2))) / 2


def forward(w: Arrays, x: Array, copies: int, scale: int) -> Array:
    """LKDN from a state dict of the released key names, in float64."""

    def conv_(name: str, x: Array) -> Array:
        return conv(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def depthwise_(name: str, x: Array, dilation: int = 1) -> Array:
        return depthwise(x, w[f"{name}.weight"], w[f"{name}.bias"], dilation)

    def bsconv(name: str, x: Array) -> Array:
        return depthwise_(f"{name}.dw", conv(x, w[f"{name}.pw.weight"]))

    def block(b: str, x: Array) -> Array:
        d1, r1 = gelu(conv_(f"{b}.c1_d", x)), gelu(bsconv(f"{b}.c1_r", x))
        d2, r2 = gelu(conv_(f"{b}.c2_d", r1)), gelu(bsconv(f"{b}.c2_r", r1))
        d3, r3 = gelu(conv_(f"{b}.c3_d", r2)), gelu(bsconv(f"{b}.c3_r", r2))
        r4 = gelu(bsconv(f"{b}.c4", r3))
        y = conv_(f"{b}.c5", np.concatenate((d1, d2, d3, r4), 1))
        a = depthwise_(f"{b}.atten.depthwise", conv_(f"{b}.atten.pointwise", y))
        y = conv_(f"{b}.c6", y * depthwise_(f"{b}.atten.depthwise_dilated", a, dilation=3))
        y = (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + 1e-5)
        gain, shift = w[f"{b}.pixel_norm.weight"], w[f"{b}.pixel_norm.bias"]
        return y * gain[:, None, None] + shift[:, None, None] + x

    shallow = bsconv("fea_conv", np.concatenate([x] * copies, 1))
    outputs = [shallow]
    while f"B{len(outputs)}.c5.weight" in w:
        outputs.append(block(f"B{len(outputs)}", outputs[-1]))
    fused = bsconv("c2", gelu(conv_("c1", np.concatenate(outputs[1:], 1)))) + shallow
    y = conv_("upsampler.0", fused)
    batch, channels, height, width = y.shape
    y = y.reshape(batch, channels // scale**2, scale, scale, height, width)
    return y.transpose(0, 1, 4, 2, 5, 3).reshape(batch, -1, scale * height, scale * width)


def random_weights(net: LKDN) -> LKDN:
    """Every parameter away from its default, features of order one."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in net.parameters():
            gain = p[0].numel() ** -0.5 if p.ndim == 4 else 0.5
            p.copy_(gain * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return net


def arrays(net: nn.Module) -> Arrays:
    return {name: value.numpy() for name, value in net.state_dict().items()}


def assert_same_function(net: LKDN, x: Array, copies: int, scale: int) -> None:
    expected = forward(arrays(net), x, copies, scale)
    with torch.no_grad():
        got = net(torch.from_numpy(x)).numpy()
    assert got.shape == expected.shape
    # Sums of up to 400 float64 terms in another order, some 40 layers deep: 1e-13 was met.
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-11 * np.abs(expected).max())


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 13), (16, 16)])
def test_default_network_is_the_described_function(size: tuple[int, int]) -> None:
    net = random_weights(LKDN().double())
    x = np.random.default_rng(0).random((2, 3, *size))
    assert_same_function(net, x, copies=4, scale=4)


def test_train_and_eval_are_the_same_function() -> None:
    net, x = random_weights(LKDN()), torch.rand(1, 3, 9, 8)
    with torch.no_grad():
        assert torch.equal(net.train()(x), net.eval()(x))


@pytest.mark.parametrize(
    "arguments",
    [
        {"channels": 8, "blocks": 2, "scale": 2},
        {"channels": 6, "blocks": 1, "scale": 3, "copies": 1},
        {"channels": 10, "blocks": 3, "scale": 1, "in_channels": 1, "copies": 2},
    ],
)
def test_every_constructor_argument_is_used(arguments: dict[str, int]) -> None:
    net = random_weights(LKDN(**arguments).double())
    x = np.random.default_rng(1).random((2, arguments.get("in_channels", 3), 5, 6))
    assert_same_function(net, x, arguments.get("copies", 4), arguments["scale"])


def test_size_is_the_published_one() -> None:
    net = LKDN()
    assert sum(p.numel() for p in net.parameters()) == 129_177
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == 86
    assert sum(p.numel() for p in LKDN(channels=56, blocks=8).parameters()) == 321_992


def test_default_weights_differ_between_instances_and_leave_the_norm_at_one() -> None:
    first, second = LKDN(), LKDN()
    assert not torch.equal(first.c1.weight, second.c1.weight)
    for name in first.blocks:
        norm = first.get_submodule(name).get_submodule("pixel_norm")
        assert isinstance(norm, nn.LayerNorm)
        assert torch.equal(norm.weight, torch.ones(42)) and not norm.bias.any()


@pytest.mark.parametrize(
    ("name", "value"),
    [("channels", 43), *product(("channels", "blocks", "scale", "in_channels", "copies"), (0, -1))],
)
def test_impossible_arguments_are_named(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"got .*{name}={value}"):
        LKDN(**{name: value})


@pytest.mark.parametrize(
    ("file", "nested", "arguments"),
    [
        ("LKDN-S_x4_fused.pth", None, {}),
        ("LKDN_x4.pth", "params_ema", {"channels": 56, "blocks": 8}),
    ],
)
def test_published_checkpoints_load_strictly_by_name(
    shared: Path, file: str, nested: str | None, arguments: dict[str, int]
) -> None:
    content = torch.load(shared / "reference" / file, weights_only=True)
    state = content if nested is None else content[nested]
    net = LKDN(**arguments)
    net.load_state_dict(state, strict=True)
    assert list(net.state_dict()) == list(state)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torch_jit_script_computes_the_same(random_net: LKDN, tmp_path: Path) -> None:
    x = torch.rand(2, 3, 9, 14, generator=torch.Generator().manual_seed(0))
    torch.jit.script(random_net).save(str(tmp_path / "scripted.pt"))
    assert torch.equal(torch.jit.load(str(tmp_path / "scripted.pt"))(x), random_net(x))
    assert torch.jit.script(LKDN(4, 2, scale=2))(x).shape == (2, 3, 18, 28)
