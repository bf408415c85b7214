"""Loss and gradients of a batch of patches, by torch or by the CPU kernels."""

import logging
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from kernels.fold import dense
from kernels.native import NativeLKDN
from kernels.native_library import CompileError, choose_arithmetic
from kernels.native_training import NativeGradients
from models.team23_LKDN import LKDN, BSConv
from train.aligned import align_parameters, aligned_like
from train.recipes import Engine, Stage
from train.recording import Recorder, recorded
from train.reparam import fuse_parameters, plain_like
from utils.command import UserError

logger = logging.getLogger(__name__)


def _layout(engine: Engine) -> torch.memory_format:
    return torch.channels_last if engine.channels_last else torch.contiguous_format


def psnr_loss(x: Tensor, target: Tensor) -> Tensor:
    """Minus the mean PSNR of (B, C, H, W) in 0..1, in dB: easy and hard patches count alike.

    As in Chen et al., "Simple Baselines for Image Restoration", 2022 (NAFNet).
    """
    errors = (x - target).square().mean((1, 2, 3))
    return 10 / math.log(10) * (errors + 1e-8).log().mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "l2": F.mse_loss,
    "psnr": psnr_loss,
}

# Leaves the gradients of (B, 3, H, W) and (K, 3, 4H, 4W), uint8, in the parameters; the loss.
# Only with a teacher K may be less than B.
Gradients = Callable[[Tensor, Tensor], Tensor]


def make_gradients(
    form: LKDN,
    stage: Stage,
    device: torch.device,
    engine: Engine,
    recorder: Recorder | None = None,
    teacher: LKDN | None = None,
) -> Gradients:
    """What computes the loss of a step's patches, or of a process's share of them, and leaves its
    gradients in the parameters of `form`; as one CUDA graph, where a recorder is given.

    With a teacher, `stage.truth` of what is learned is the HR patch and the rest the teacher's SR
    of the LR patch, both together rounded to whole pixel values; of the last LR patches, where
    there are fewer HR ones, it is all. The teacher is computed as the network that learns is.

    Raises:
        kernels.native_library.CompileError: the engine's kernels cannot be compiled.
    """
    if engine.kernels == "native":
        return _native_gradients(form, stage, engine, teacher)
    dtype = torch.float64 if stage.precision == "fp64" else torch.float32
    forward = make_forward(form, stage, device, engine)
    teach = make_forward(teacher.to(device, dtype), stage, device, engine) if teacher else None
    layout = _layout(engine)

    def gradients(lr: Tensor, hr: Tensor) -> Tensor:
        form.zero_grad()
        share = len(lr) / stage.batch
        lr, hr = (x.to(device).to(dtype, memory_format=layout) for x in (lr, hr))
        lr = lr / 255
        if teach:
            with torch.no_grad():
                hr = _mix(stage.truth, hr, teach(lr))
        loss = LOSSES[stage.loss](forward(lr).to(dtype), hr / 255) * share
        loss.backward()
        return loss.detach()

    return _replayed(gradients, device, recorder) if recorder else gradients


def _mix(truth: float, hr: Tensor, sr: Tensor) -> Tensor:
    """Targets of HR in 0..255 and a teacher's SR in 0..1: in 0..255, whole numbers."""
    sr = sr.to(hr.dtype).clamp(0, 1)
    mixed = truth * hr + (1 - truth) * 255 * sr[: len(hr)]
    return torch.cat((mixed, 255 * sr[len(hr) :])).round()


def _replayed(gradients: Gradients, device: torch.device, recorder: Recorder) -> Gradients:
    """The same by a CUDA graph, which has its patches always in the same place."""
    places: list[Tensor] = []
    run = recorded(lambda: gradients(*places), recorder)

    def replay(lr: Tensor, hr: Tensor) -> Tensor:
        if not places:
            places[:] = [torch.empty(x.shape, dtype=x.dtype, device=device) for x in (lr, hr)]
        for place, patches in zip(places, (lr, hr), strict=True):
            place.copy_(patches, non_blocking=True)
        return run()

    return replay


def arithmetic_of(engine: Engine, stage: Stage) -> str:
    """What the compiled kernels multiply in: the engine's choice, or the fastest on this CPU."""
    if engine.arithmetic == "auto":
        return choose_arithmetic(stage.precision)
    return engine.arithmetic if stage.precision == "bf16" else "float32"


def _native_gradients(form: LKDN, stage: Stage, engine: Engine, teacher: LKDN | None) -> Gradients:
    kernels = NativeGradients(plain_like(form), arithmetic_of(engine, stage))
    teach = _native_forward(teacher, arithmetic_of(engine, stage)) if teacher else None

    def gradients(lr: Tensor, hr: Tensor) -> Tensor:
        if teach:
            with torch.no_grad():
                hr = _mix(stage.truth, hr.float(), teach(lr.float() / 255)).to(torch.uint8)
        plain = fuse_parameters(dict(form.named_parameters()))
        loss, by_name = kernels(plain, lr, hr, stage.loss, len(lr) / (stage.batch * hr.numel()))
        form.zero_grad()
        # Into `grad` in each parameter's layout: torch's fused Adam reads no strides.
        torch.autograd.backward(list(plain.values()), [by_name[name] for name in plain])
        return loss.float()

    return gradients


def _native_forward(net: LKDN, arithmetic: str) -> Callable[[Tensor], Tensor]:
    """The SR of (B, 3, H, W), the same bits for any number of threads. By torch, with a message,
    where the kernels cannot be compiled for this network. Raises UserError for weights that are
    not usable."""
    try:
        return NativeLKDN(net, arithmetic, whole=True)
    except CompileError as error:
        logger.warning("the teacher runs in torch, not on compiled kernels: %s", error)
        return net
    except OverflowError as error:
        raise UserError(f"the teacher cannot run: {error}") from error


def make_forward(
    form: LKDN, stage: Stage, device: torch.device, engine: Engine
) -> Callable[[Tensor], Tensor]:
    """The network to train as a function of (B, 3, H, W), gradients reaching `form`'s parameters.

    Folding the branches into the plain network's kernels at every step is the same function with
    the same gradients as running the branches, at the inference form's cost. So is folding each
    blueprint pair, at more arithmetic in fewer launches.
    """
    layout = _layout(engine)
    network = form
    if engine.fold:
        plain = plain_like(form)
        network = (aligned_like(plain) if engine.aligned else plain).to(device)
    if engine.dense:
        for module in network.modules():
            if isinstance(module, BSConv):
                module.forward = _as_one(module, layout)  # type: ignore[assignment]
    if engine.depthwise == "triton":
        from kernels.triton_depthwise import depthwise  # Triton is not everywhere

        for module in network.modules():
            if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
                module.forward = _with_kernel(depthwise, module)  # type: ignore[assignment]
    # As the native kernels: on most CPUs bf16 takes longer than float32.
    in_bf16 = stage.precision == "bf16" and (
        device.type != "cpu" or choose_arithmetic("bf16") != "float32"
    )
    if in_bf16 and device.type == "cpu":
        # On a CPU torch 2.13 computes in bfloat16 garbage as the weight gradient of the dilated
        # depthwise in channels_last, and those of LayerNorm as sums that stall at eight bits.
        for name in network.blocks:
            _keep_float32(network.get_submodule(f"{name}.atten.depthwise_dilated"))
            _keep_float32(network.get_submodule(f"{name}.pixel_norm"))

    def forward(x: Tensor) -> Tensor:
        kernels: dict[str, Tensor] = dict(form.named_parameters())
        if engine.fold:
            kernels = fuse_parameters(kernels)
        if engine.aligned:
            kernels, x = align_parameters(kernels, network), F.pad(x, (0, 0, 0, 0, 0, 1))
        if layout is torch.channels_last:  # as cuDNN wants kernels, which it would turn itself
            kernels = {
                name: kernel.contiguous(memory_format=layout) if kernel.ndim == 4 else kernel
                for name, kernel in kernels.items()
            }
        with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16):
            return functional_call(network, kernels, (x,))

    return torch.compile(forward, dynamic=False) if engine.compile == "on" else forward


def _as_one(pair: BSConv, layout: torch.memory_format) -> Callable[[Tensor], Tensor]:
    """The forward of a blueprint pair as one dense convolution, folded in float32 or above."""

    def forward(x: Tensor) -> Tensor:
        kernel = dense(pair.pw.weight, pair.dw.weight).contiguous(memory_format=layout)
        return F.conv2d(x, kernel, pair.dw.bias, padding=1)

    return forward


def _with_kernel(depthwise: Callable[..., Tensor], conv: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    """The forward of a depthwise convolution by another kernel."""
    return lambda x: depthwise(x, conv.weight, conv.bias, conv.dilation[0])


def _keep_float32(module: nn.Module) -> None:
    """Take a module of (B, C, H, W) -> (B, C, H, W) out of autocast."""
    inner = module.forward

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return inner(x.float())

    module.forward = forward
