"""Gradients of a training form by the compiled kernels and by autograd, for tests to compare."""

import copy

import torch
from torch import Tensor

from kernels.native_training import NativeGradients
from models.team23_LKDN import LKDN
from train.forward import LOSSES
from train.reparam import fuse_parameters, training_form


def patches(net: LKDN, batch: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Random bytes (B, C, H, W), and (B, C, scale*H, scale*W) as large."""
    generator = torch.Generator().manual_seed(batch + height + 50 * width)
    channels = net.fea_conv.pw.in_channels // net.copies
    scale = next(m.upscale_factor for m in net.modules() if hasattr(m, "upscale_factor"))

    def pixels(factor: int) -> Tensor:
        shape = (batch, channels, factor * height, factor * width)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    return pixels(1), pixels(scale)


def randomised(net: LKDN) -> LKDN:
    """Its training form, with norms that do not start at one and zero."""
    for layer in net.modules():
        if isinstance(layer, torch.nn.LayerNorm):
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
            torch.nn.init.uniform_(layer.bias, -0.5, 0.5)
    return training_form(net)


def gradients(
    form: LKDN, kernels: NativeGradients, lr: Tensor, hr: Tensor, loss: str
) -> tuple[float, dict[str, Tensor]]:
    """The loss and the gradients of the branches by the compiled kernels."""
    plain = fuse_parameters(dict(form.named_parameters()))
    values = {name: value.detach() for name, value in plain.items()}
    result, by_name = kernels(values, lr, hr, loss, 1 / hr.numel())
    form.zero_grad()
    torch.autograd.backward(list(plain.values()), [by_name[name] for name in plain])
    return float(result), by_parameter(form)


def torch_gradients(
    form: LKDN, lr: Tensor, hr: Tensor, loss: str, dtype: torch.dtype = torch.float64
) -> tuple[float, dict[str, Tensor]]:
    """The same by autograd on the branches as they are."""
    form = copy.deepcopy(form).to(dtype)
    form.zero_grad()
    result = LOSSES[loss](form(lr.to(dtype) / 255), hr.to(dtype) / 255)
    result.backward()
    return float(result.detach()), by_parameter(form)


def by_parameter(form: LKDN) -> dict[str, Tensor]:
    return {name: p.grad for name, p in form.named_parameters() if p.grad is not None}


def errors(got: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """The largest error of each gradient as a share of its largest number."""
    assert got.keys() == expected.keys()
    return {
        name: float((got[name] - value).abs().max() / value.abs().max().clamp_min(1e-30))
        for name, value in expected.items()
    }
