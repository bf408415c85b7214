"""SOAP against a plain re-implementation in numpy, and what it is for."""

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from models.team23_LKDN import LKDN
from train.optim import make_optimizers
from train.recipes import STAGES
from train.soap import Soap

Array = NDArray[np.float64]


class PlainSoap:
    """SOAP on one matrix in float64: Vyas et al.'s algorithm 3, with Nesterov momentum."""

    def __init__(self, weight: Array) -> None:
        rows, columns = weight.shape
        self.weight, self.count = weight.copy(), 0
        self.mean, self.square = np.zeros((rows, columns)), np.zeros((rows, columns))
        self.left, self.right = np.zeros((rows, rows)), np.zeros((columns, columns))
        self.bases: tuple[Array, ...] = np.eye(rows), np.eye(columns)

    def step(self, g: Array, lr: float, momentum: float, decay: float) -> None:
        """Change the weight by a gradient."""
        self.count += 1
        share = max(0.05, 1 / self.count)  # the first averages are over what there is
        self.left = (1 - share) * self.left + share * g @ g.T
        self.right = (1 - share) * self.right + share * g.T @ g
        if self.count == 1:
            # In the order that orthogonal iteration settles on, the authors' too.
            self.bases = tuple(np.linalg.eigh(x)[1][:, ::-1] for x in (self.left, self.right))
        rows, columns = self.bases
        self.square = 0.98 * self.square + 0.02 * (rows.T @ g @ columns) ** 2
        self.mean = momentum * self.mean + (1 - momentum) * g
        nesterov = momentum * self.mean + (1 - momentum) * g
        unbiased = nesterov / (1 - momentum ** (self.count + 1))
        scale = np.sqrt(self.square / (1 - 0.98**self.count))
        turned = (rows.T @ unbiased @ columns) / (scale + 1e-5 * scale.max())
        update = rows @ turned @ columns.T
        self.weight = self.weight * (1 - lr * decay) - 2 * lr / math.sqrt(g.shape[1]) * update
        if self.count < 20 or self.count % 40 == 0:
            self.bases = np.linalg.qr(self.left @ rows)[0], np.linalg.qr(self.right @ columns)[0]


def test_soap_steps_are_those_of_the_plain_method_on_each_matrix() -> None:
    torch.manual_seed(4)
    shapes = [(6, 6, 1, 1), (4, 6, 1, 1), (9, 1, 3, 3), (6, 6, 1, 1), (5, 2, 3, 3)]
    params = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    plain = [PlainSoap(p.detach().flatten(1).numpy()) for p in params]
    optimizer = Soap(params, lr=0.02, momentum=0.9, weight_decay=0.5)
    for step in range(85):  # past the early steps, and two changes of the basis
        for p, oracle in zip(params, plain, strict=True):
            p.grad = torch.randn(p.shape, dtype=torch.float64)
            oracle.step(p.grad.flatten(1).numpy(), 0.02, 0.9, 0.5)
        optimizer.step()
        for p, oracle in zip(params, plain, strict=True):
            weight, state = p.detach().flatten(1).numpy(), optimizer.state[p]
            if step > 5 or p.shape[0] == weight.shape[1]:
                np.testing.assert_allclose(weight, oracle.weight, rtol=0, atol=1e-8)
            else:  # while products lack rank, rounding decides the basis of what has no gradient
                oracle.bases = state["left_basis"].numpy(), state["right_basis"].numpy()
                oracle.weight, oracle.square = weight.copy(), state["square"].numpy()


def test_soap_finds_the_least_of_a_square_that_adam_does_not() -> None:
    """Where the axes of a problem are not those of the numbers, as is the rule between channels."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = (
        torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
        @ torch.logspace(0, -2, 8).diag()
        @ torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
        for _ in range(2)
    )
    goal = torch.randn(8, 8, generator=generator)
    left = {}
    for name in ("soap", "adam"):
        weight = torch.zeros(8, 8, 1, 1, requires_grad=True)
        soap = Soap([weight], lr=0.05) if name == "soap" else torch.optim.Adam([weight], 0.05)
        for step in range(300):
            soap.zero_grad()
            loss = (rows @ (weight[:, :, 0, 0] - goal) @ columns).square().sum()
            loss.backward()
            for group in soap.param_groups:
                group["lr"] = 0.05 * (1 - step / 300)
            soap.step()
        left[name] = loss.item()
    assert left["soap"] < 0.5 * left["adam"], left


def test_soap_takes_no_step_where_there_is_no_gradient() -> None:
    """As between copies of the input, where there is only rounding."""
    torch.manual_seed(5)
    weight = torch.randn(42, 3, 1, 1).repeat(1, 4, 1, 1).requires_grad_()
    idle = torch.randn(6, 6, 1, 1).requires_grad_()
    soap, first, before = Soap([weight, idle], lr=0.02), idle.clone(), weight.detach().clone()
    for _ in range(300):
        weight.grad = (
            torch.randn(42, 3, 1, 1) * torch.tensor([1, 0.01, 1e-3])[:, None, None]
        ).repeat(1, 4, 1, 1)
        idle.grad = torch.zeros_like(idle)
        soap.step()
    copies = weight.detach().unflatten(1, (4, 3))
    assert (copies - copies[:, :1]).abs().max() < 0.05 * (weight - before).abs().max()
    assert torch.equal(idle, first)


def test_soap_takes_all_kernels_and_adam_the_rest() -> None:
    net = LKDN(channels=8, blocks=2)
    chosen = replace(STAGES[1], optimizer="soap", lr=0.02, momentum=0.8, weight_decay=0.1)
    soap, adam = make_optimizers(net, chosen)
    assert isinstance(soap, Soap) and type(adam) is torch.optim.Adam
    (group,) = soap.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.02, 0.8, 0.1)
    kernels = {id(m.weight) for m in net.modules() if isinstance(m, torch.nn.Conv2d)}
    assert {id(p) for p in group["params"]} == kernels
    rest = {id(p) for p in net.parameters()} - kernels
    assert {id(p) for p in adam.param_groups[0]["params"]} == rest
