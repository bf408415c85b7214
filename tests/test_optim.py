"""Optimisers, learning rate and average against plain re-implementations in numpy."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.team23_LKDN import LKDN
from train.optim import (
    Muon,
    learning_rate,
    make_optimizers,
    orthogonalise,
    set_learning_rate,
    update_ema,
)
from train.options import parse, stages_of
from train.recipes import RECIPES, STAGES, Stage
from train.reparam import training_form
from train.updates import kept

Array = NDArray[np.float64]

# (out, in*k*k) of the kernels that mix channels, in both forms, as matrices.
SHAPES = [
    (42, 12),
    (42, 42),
    (21, 42),
    (42, 84),
    (42, 210),
    (48, 42),
    (84, 42),
    (48, 378),
    (48, 756),
]


def newton_schulz(matrix: Array) -> Array:
    """Keller Jordan's iteration on one matrix, in float64."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / np.sqrt((x**2).sum())
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if tall else x


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalise_brings_singular_values_near_one_and_keeps_the_vectors(
    shape: tuple[int, int],
) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape, dtype=torch.float64)
    u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
    values = torch.logspace(-2, 0, min(shape), dtype=torch.float64)
    # A spread of 100, in three magnitudes: the scale of a gradient must not matter.
    sizes = torch.tensor([1e-4, 1.0, 1e3], dtype=torch.float64)[:, None, None]
    out = orthogonalise(sizes * ((u * values) @ vt))
    inner = u.mT @ out @ vt.mT
    got = inner.diagonal(dim1=1, dim2=2)
    assert got.min() > 0.6 and got.max() < 1.3
    # No part outside the given vectors: float64 rounding, amplified by up to 3.4445**5.
    assert (inner - torch.diag_embed(got)).abs().max() < 1e-10
    torch.testing.assert_close((u * got[:, None]) @ vt, out, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalise_of_random_gradients_in_float32(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    matrices = torch.randn(4, *shape)
    values = torch.linalg.svdvals(orthogonalise(matrices).double())
    assert values.max() < 1.3
    if shape[0] != shape[1]:  # square Gaussian matrices have values next to zero
        assert values.min() > 0.6


def test_orthogonalise_of_zero_is_zero() -> None:
    assert not orthogonalise(torch.zeros(1, 42, 42)).any()


def test_muon_steps_are_those_of_the_plain_method_on_each_matrix() -> None:
    torch.manual_seed(2)
    shapes = [(42, 12, 1, 1), (42, 42, 1, 1), (42, 42, 1, 1), (48, 42, 1, 1), (48, 42, 3, 3)]
    params = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    weights = [p.detach().numpy().copy() for p in params]
    buffers = [np.zeros(shape) for shape in shapes]
    optimizer = Muon(params, lr=0.02, momentum=0.95, weight_decay=0.5)
    for _ in range(3):
        for i, p in enumerate(params):
            grad = torch.randn(p.shape, dtype=torch.float64)
            p.grad = grad.clone()
            g = grad.numpy()
            buffers[i] = 0.95 * buffers[i] + 0.05 * g
            nesterov = 0.95 * buffers[i] + 0.05 * g
            rows, columns = len(g), g[0].size
            update = newton_schulz(nesterov.reshape(rows, columns)).reshape(g.shape)
            update *= math.sqrt(max(1, rows / columns))
            weights[i] = weights[i] * (1 - 0.02 * 0.5) - 0.02 * update
        optimizer.step()
        for p, expected in zip(params, weights, strict=True):
            # Float64; the guard of 1e-7 against a zero norm shifts an update by 1e-8 of itself.
            np.testing.assert_allclose(p.detach().numpy(), expected, rtol=0, atol=1e-8)


def test_adam_is_the_factsheets() -> None:
    net = training_form(LKDN(channels=8, blocks=1))
    (adam,) = make_optimizers(net, STAGES[1])
    assert type(adam) is torch.optim.Adam
    (group,) = adam.param_groups
    assert group["params"] == list(net.parameters())
    assert (group["lr"], group["betas"], group["eps"]) == (1e-3, (0.9, 0.99), 1e-8)
    assert group["weight_decay"] == 0 and not group["amsgrad"]


def test_muon_takes_the_kernels_that_mix_channels_and_adam_the_rest() -> None:
    net = training_form(LKDN(channels=8, blocks=2))
    muon, adam = make_optimizers(net, replace(STAGES[1], optimizer="muon", lr=0.02))
    assert isinstance(muon, Muon) and type(adam) is torch.optim.Adam
    convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    mixing = {id(m.weight) for m in convolutions if m.in_channels // m.groups > 1}
    assert {id(p) for p in muon.param_groups[0]["params"]} == mixing
    rest = {id(p) for p in net.parameters()} - mixing
    assert {id(p) for p in adam.param_groups[0]["params"]} == rest
    assert adam.param_groups[0]["betas"] == (0.9, 0.99)
    assert adam.param_groups[0]["weight_decay"] == 0
    set_learning_rate([muon, adam], 0.01)
    assert muon.param_groups[0]["lr"] == 0.01
    assert adam.param_groups[0]["lr"] == pytest.approx(0.002)  # a fifth
    other = replace(STAGES[1], optimizer="muon", momentum=0.5, adam_share=0.1)
    muon, adam = make_optimizers(net, other)
    set_learning_rate([muon, adam], 0.01)
    assert (muon.param_groups[0]["momentum"], adam.param_groups[0]["lr"]) == (0.5, 0.001)


def rates(**numbers: object) -> list[float]:
    stage = replace(Stage("s", 4, 1, 4, "l1", lr=8.0), **numbers)  # type: ignore[arg-type]
    return [learning_rate(stage, step) for step in range(stage.steps)]


def test_learning_rate_of_each_step() -> None:
    half = math.sqrt(0.5)
    assert rates() == [8, 8, 8, 8]
    assert rates(schedule="cosine") == pytest.approx([8, 4 + 4 * half, 4, 4 - 4 * half])
    stage = Stage("s", steps=9, batch=1, patch=4, loss="l1", lr=8, schedule="inverse_sqrt")
    assert [learning_rate(stage, step) for step in (0, 5000, 15000)] == pytest.approx(
        [8, 8 / math.sqrt(2), 4]
    )
    assert rates(schedule="trapezoid", steps=10) == pytest.approx([8] * 8 + [16 / 3, 8 / 3])
    assert rates(warmup=3) == pytest.approx([2, 4, 6, 8])
    assert rates(warmup=1, steps=6) == pytest.approx([4, 8, 8, 8, 8, 8])
    assert rates(schedule="cosine", warmup=1) == pytest.approx([4, 4 + 4 * half, 4, 4 - 4 * half])


def test_factsheet_learning_rate_is_constant_without_warmup() -> None:
    for stage, rate in ((STAGES[1], 1e-3), (STAGES[2], 2e-5)):
        for step in (0, stage.steps // 2, stage.steps - 1):
            assert learning_rate(stage, step) == rate


def test_average_follows_the_weights_with_the_asked_decay_after_a_warm_start() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(3, 2))
    average = {"w": torch.from_numpy(first.copy())}
    expected = first
    for step in range(200):
        weights = rng.normal(size=(3, 2))
        keep = min(0.9, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * weights
        update_ema(average, {"w": torch.from_numpy(weights)}, 1 - kept(0.9, step))
        np.testing.assert_allclose(average["w"].numpy(), expected, rtol=0, atol=1e-12)
    # Far from the start the asked decay holds: 0.999 keeps all but a thousandth.
    update_ema(average, {"w": average["w"] + 1}, 1 - kept(0.999, 10**6))
    np.testing.assert_allclose(average["w"].numpy(), expected + 1e-3, rtol=0, atol=1e-12)


def test_the_two_stages_are_the_factsheets_and_the_default() -> None:
    args = parse(["--data", "d", "--out", "o"])
    assert stages_of(args) == STAGES == RECIPES["factsheet"].stages
    assert sorted(STAGES) == [1, 2]
    first, second = STAGES[1], STAGES[2]
    assert (first.name, second.name) == ("stage1", "stage2")
    assert (first.steps, first.batch, first.patch) == (950_000, 128, 256)
    assert (second.steps, second.batch, second.patch) == (50_000, 64, 480)
    assert (first.loss, second.loss) == ("l1", "l2")
    assert (first.lr, second.lr) == (1e-3, 2e-5)
    for stage in (first, second):
        assert (stage.optimizer, stage.schedule, stage.warmup) == ("adam", "constant", 0)
        assert (stage.ema, stage.norm_start, stage.precision) == (0.999, 1.0, "fp32")
        assert stage.form == "training"
