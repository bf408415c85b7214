"""Optimisers, learning rate and weight averaging."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from train.recipes import Stage
from train.soap import Soap, by_shape

Orthogonalise = Callable[[Sequence[Tensor]], list[Tensor]]

# Part of the steps over which a trapezoid falls to zero.
COOLDOWN = 0.3
# Steps after which a rate of schedule inverse_sqrt has fallen to 0.71 of what it was.
HELD = 5000


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by Newton-Schulz steps, for convolution kernels.

    Keller Jordan's Muon (https://github.com/KellerJordan/Muon): Nesterov momentum, then each
    kernel's update, seen as a (out, in*k*k) matrix, is replaced by one near U V^T of its singular
    value decomposition and scaled by sqrt(max(1, out / (in*k*k))). Decay is apart from the
    gradient: a step takes the share lr * weight_decay from each kernel (Loshchilov and Hutter,
    2019).
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        orthogonalise: Orthogonalise | None = None,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.orthogonalise = orthogonalise or orthogonalise_all

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Change the parameters by their gradients, once."""
        for group in self.param_groups:
            params, momentum = group["params"], group["momentum"]
            for p in params:
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            grads = [p.grad for p in params]
            buffers = [self.state[p]["momentum_buffer"] for p in params]
            torch._foreach_lerp_(buffers, grads, 1 - momentum)
            nesterov = torch._foreach_lerp(grads, buffers, momentum)
            updates = self.orthogonalise([u.flatten(1) for u in nesterov])
            torch._foreach_mul_(updates, [math.sqrt(max(1, len(u) / u.shape[1])) for u in updates])
            torch._foreach_mul_(updates, -group["lr"])
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            shaped = [u.view_as(p) for p, u in zip(params, updates, strict=True)]
            torch._foreach_add_(params, shaped)


def orthogonalise_all(matrices: Sequence[Tensor]) -> list[Tensor]:
    """`orthogonalise` for matrices (rows, columns) of any shapes: those of equal shape at once."""
    results = list(matrices)
    for indices in by_shape(matrices):
        batch = orthogonalise(torch.stack([matrices[i] for i in indices]))
        for i, result in zip(indices, batch, strict=True):
            results[i] = result
    return results


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of (B, rows, columns) near 1 by a quintic Newton-Schulz iteration.

    The coefficients are Keller Jordan's: values from about 0.01 of the largest up come out
    between 0.7 and 1.2, which is near enough for an update.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def make_optimizers(
    net: nn.Module, stage: Stage, orthogonalise: Orthogonalise | None = None
) -> list[torch.optim.Optimizer]:
    """The factsheet's Adam for everything; or Muon for the kernels that mix channels, or SOAP for
    all kernels, and Adam for the rest, which does not decay."""
    params = list(net.parameters())
    fused = params[0].device.type in ("cpu", "cuda")  # one kernel for all parameters
    if stage.optimizer == "adam":
        return [torch.optim.Adam(params, stage.lr, betas=(0.9, 0.99), eps=1e-8, fused=fused)]
    fewest = 2 if stage.optimizer == "muon" else 1  # inputs of what is no depthwise kernel
    kernels = [p for p in params if p.ndim == 4 and p.shape[1] >= fewest]
    others = [p for p in params if not (p.ndim == 4 and p.shape[1] >= fewest)]
    group = {"params": others, "lr": stage.lr * stage.adam_share, "share": stage.adam_share}
    adam = torch.optim.Adam([group], betas=(0.9, 0.99), eps=1e-8, fused=fused)
    if stage.optimizer == "soap":
        return [Soap(kernels, stage.lr, stage.momentum, stage.weight_decay), adam]
    return [Muon(kernels, stage.lr, stage.momentum, orthogonalise, stage.weight_decay), adam]


def learning_rate(stage: Stage, step: int) -> float:
    """Learning rate of step 0, 1, .., stage.steps - 1."""
    rate = stage.lr * min(1.0, (step + 1) / (stage.warmup + 1))
    if stage.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * step / stage.steps))
    if stage.schedule == "inverse_sqrt":
        rate /= math.sqrt(1 + step / HELD)
    if stage.schedule == "trapezoid":
        rate *= min(1.0, (stage.steps - step) / (COOLDOWN * stage.steps))
    return rate


def set_learning_rate(optimizers: Sequence[torch.optim.Optimizer], rate: float) -> None:
    """Give each group of parameters the rate, times its own `share` if it has one."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("share", 1.0)


@torch.no_grad()
def update_ema(
    average: Mapping[str, Tensor], weights: Mapping[str, Tensor], share: float | Tensor
) -> None:
    """Move `average` toward `weights` by a share of what lies between, in place."""
    names = list(average)
    averages, goals = [average[n] for n in names], [weights[n] for n in names]
    if isinstance(share, float):
        torch._foreach_lerp_(averages, goals, share)
    else:  # which lerp takes one by one
        between = torch._foreach_sub(goals, averages)
        torch._foreach_mul_(between, share)
        torch._foreach_add_(averages, between)
