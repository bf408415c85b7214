"""SOAP: Adam in the basis in which Shampoo preconditions, for convolution kernels."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

# How much of a step the averages of squares, and those of products, keep. Vyas et al. have 0.95.
SQUARES, PRODUCTS = 0.98, 0.95
# Steps from one basis to the next; the first so many steps have one each.
EVERY, EARLY = 10, 20
# An update's size, as a multiple of Muon's at the same rate: its entries are 1 / sqrt(columns).
SIZE = 2.0
# The least divisor, as a part of a matrix's largest: rounding of what has no gradient, such as the
# difference between the copies of the input, is not to become a step.
LEAST = 1e-5
NOTHING = 1e-16  # a gradient's numbers below this are none: float32 cannot square them


class Soap(torch.optim.Optimizer):
    """Adam with Nesterov momentum in the eigenvectors of each kernel's averaged gradient products.

    Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam", 2024: the gradient G of a
    kernel, seen as a (out, in*k*k) matrix, is turned into the eigenvectors of the averages of
    G G^T and G^T G, which follow these averages by one step of orthogonal iteration every ten
    steps; Adam divides there, and the update is turned back. The update is scaled by
    2 / sqrt(in*k*k), so that a rate means what it does for Muon, and decay is as there. Kernels of
    equal shape are worked on as one batch.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @staticmethod
    def shapes(parameter: Tensor) -> dict[str, tuple[int, ...]]:
        """What is gathered of a parameter (out, in, k, k), as float matrices, and their shapes."""
        out, columns = parameter.flatten(1).shape
        return {
            "step": (),
            "mean": (out, columns),
            "square": (out, columns),
            "left": (out, out),
            "right": (columns, columns),
            "left_basis": (out, out),
            "right_basis": (columns, columns),
        }

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Change the parameters by their gradients, once."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for alike in by_shape([p.flatten(1) for p in params]):
                self._step(
                    [params[i] for i in alike],
                    group["lr"],
                    group["momentum"],
                    group["weight_decay"],
                )

    def _step(self, params: list[Tensor], lr: float, momentum: float, decay: float) -> None:
        """Change parameters of equal shape."""
        gradients = torch.stack([p.grad.flatten(1) for p in params if p.grad is not None])
        names = list(self.shapes(params[0]))
        for p in params:
            if not self.state[p]:
                self.state[p] = {n: p.new_zeros(shape) for n, shape in self.shapes(p).items()}
                self.state[p]["step"] = torch.zeros(())  # on the CPU: who reads it waits for none
        step, mean, square, left, right, left_basis, right_basis = (
            torch.stack([self.state[p][name] for p in params]) for name in names
        )
        step += 1
        count = int(step[0])
        keep = min(PRODUCTS, (count - 1) / count)
        left.lerp_(gradients @ gradients.mT, 1 - keep)
        right.lerp_(gradients.mT @ gradients, 1 - keep)
        if count == 1:
            # The largest first, as orthogonal iteration keeps them.
            left_basis, right_basis = (torch.linalg.eigh(x)[1].flip(-1) for x in (left, right))
        turned = left_basis.mT @ gradients @ right_basis
        square.lerp_(turned.square(), 1 - SQUARES)
        mean.lerp_(gradients, 1 - momentum)
        ahead = left_basis.mT @ mean.lerp(gradients, 1 - momentum) @ right_basis
        ahead /= 1 - momentum ** (count + 1)
        divisor = (square / (1 - SQUARES**count)).sqrt()
        least = LEAST * divisor.amax((1, 2), keepdim=True) + NOTHING
        update = ahead / (divisor + least)
        update = left_basis @ update @ right_basis.mT
        update *= -lr * SIZE / math.sqrt(update.shape[-1])
        torch._foreach_mul_(params, 1 - lr * decay)
        torch._foreach_add_(params, [u.view_as(p) for u, p in zip(update, params, strict=True)])
        if count % EVERY == 0 or count < EARLY:
            left_basis = torch.linalg.qr(left @ left_basis)[0]
            right_basis = torch.linalg.qr(right @ right_basis)[0]
        after = (step, mean, square, left, right, left_basis, right_basis)
        for p, *values in zip(params, *after, strict=True):
            self.state[p] = dict(zip(names, values, strict=True))


def by_shape(tensors: Sequence[Tensor]) -> list[list[int]]:
    """The indices of tensors of one shape, for each shape."""
    indices: dict[torch.Size, list[int]] = {}
    for index, tensor in enumerate(tensors):
        indices.setdefault(tensor.shape, []).append(index)
    return list(indices.values())
