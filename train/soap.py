"""SOAP: Adam in the basis in which Shampoo preconditions, for convolution kernels."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# How much of a step the averages of squares, and those of products, keep. Vyas et al. have 0.95.
SQUARES, PRODUCTS = 0.98, 0.95
# Steps from one basis to the next; the first so many steps have one each.
EVERY, EARLY = 40, 20
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
    G G^T and G^T G, which follow these averages by one step of orthogonal iteration every
    forty steps; Adam divides there, and the update is turned back. The update is scaled by
    2 / sqrt(in*k*k), so that a rate means what it does for Muon, and decay is as there. Kernels of
    equal shape are worked on as one batch.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._batches: list[_Batch] = []

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a state, which is gathered into batches at the next step."""
        super().__setstate__(state)
        self._batches = []

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
        self.launch(iter(self.count()))
        self.turn()

    @torch.no_grad()
    def count(self) -> list[float]:
        """Begin a step: what is new in it but the gradients, five numbers for each shape."""
        self._batches = self._batches or [
            self._batch(group, [group["params"][i] for i in alike])
            for group in self.param_groups
            for alike in by_shape([p.flatten(1) for p in group["params"]])
        ]
        numbers = []
        for batch in self._batches:
            batch.values["step"] += 1
            batch.count = count = int(batch.values["step"][0])
            rate, momentum = float(batch.group["lr"]), batch.group["momentum"]
            numbers += [
                1 - min(PRODUCTS, (count - 1) / count),
                1 - momentum ** (count + 1),
                1 - SQUARES**count,
                -rate * SIZE,
                1 - rate * batch.group["weight_decay"],
            ]
        return numbers

    @torch.no_grad()
    def launch(self, numbers: Iterator[float | Tensor]) -> None:
        """Do a step with the numbers of `count`, which may be on the device. From the second one
        on this asks for nothing but the same kernels on the same memory."""
        for batch in self._batches:
            share, unbias, unbias_square, size, shrink = itertools.islice(numbers, 5)
            params, momentum = batch.params, batch.group["momentum"]
            gradients = torch.stack([p.grad.flatten(1) for p in params])  # type: ignore[union-attr]
            left, right, mean, square = (
                batch.values[n] for n in ("left", "right", "mean", "square")
            )
            left_basis, right_basis = batch.values["left_basis"], batch.values["right_basis"]
            left.lerp_(gradients @ gradients.mT, share)
            right.lerp_(gradients.mT @ gradients, share)
            if batch.count == 1:
                # The largest first, as orthogonal iteration keeps them.
                left_basis.copy_(torch.linalg.eigh(left)[1].flip(-1))
                right_basis.copy_(torch.linalg.eigh(right)[1].flip(-1))
            turned = left_basis.mT @ gradients @ right_basis
            square.lerp_(turned.square(), 1 - SQUARES)
            mean.lerp_(gradients, 1 - momentum)
            ahead = left_basis.mT @ mean.lerp(gradients, 1 - momentum) @ right_basis
            ahead /= unbias
            divisor = (square / unbias_square).sqrt()
            least = LEAST * divisor.amax((1, 2), keepdim=True) + NOTHING
            update = ahead / (divisor + least)
            update = left_basis @ update @ right_basis.mT
            update *= size / math.sqrt(update.shape[-1])
            torch._foreach_mul_(params, shrink)
            torch._foreach_add_(params, [u.view_as(p) for u, p in zip(update, params, strict=True)])

    @torch.no_grad()
    def turn(self) -> None:
        """End a step: bring the bases up to date, if it is time."""
        for batch in self._batches:
            if batch.count % EVERY == 0 or batch.count < EARLY:
                for side in ("left", "right"):
                    basis = batch.values[f"{side}_basis"]
                    basis.copy_(torch.linalg.qr(batch.values[side] @ basis)[0])

    def _batch(self, group: dict[str, Any], params: list[Tensor]) -> "_Batch":
        """Parameters of one shape, with common tensors of which the state of each is a part."""
        for p in params:
            if not self.state[p]:
                self.state[p] = {n: p.new_zeros(shape) for n, shape in self.shapes(p).items()}
                self.state[p]["step"] = torch.zeros(())  # on the CPU: who reads it waits for none
        names = self.shapes(params[0])
        values = {name: torch.stack([self.state[p][name] for p in params]) for name in names}
        for i, p in enumerate(params):
            self.state[p] = {name: value[i] for name, value in values.items()}
        return _Batch(group, params, values)


@dataclass
class _Batch:
    """Parameters of one shape in one group, what is gathered of them, and the steps done."""

    group: dict[str, Any]
    params: list[Tensor]
    values: dict[str, Tensor]
    count: int = 0


def by_shape(tensors: Sequence[Tensor]) -> list[list[int]]:
    """The indices of tensors of one shape, for each shape."""
    indices: dict[torch.Size, list[int]] = {}
    for index, tensor in enumerate(tensors):
        indices.setdefault(tensor.shape, []).append(index)
    return list(indices.values())
