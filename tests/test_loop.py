"""The training loop on a device whose losses are looked at now and then, as on a GPU."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.team23_LKDN import LKDN
from train import loop
from train.checkpoint import State
from train.optim import make_optimizers
from train.recipes import STAGES, Engine
from utils.weights import read_checkpoint


def test_nothing_is_saved_before_its_weights_gave_a_finite_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, stage = LKDN(6, 1), replace(STAGES[1], steps=9, channels=6, blocks=1)
    losses = itertools.chain([1.0] * 4, itertools.repeat(math.nan))  # of the weights of 0, 1, ..

    def gradients(*_: object) -> Tensor:
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        return torch.tensor(next(losses))

    monkeypatch.setattr(loop, "make_gradients", lambda *_: gradients)
    monkeypatch.setattr(loop, "cut_patches", lambda *_: itertools.repeat(()))
    monkeypatch.setattr(loop, "environment", lambda _: {})
    run = loop.Run(
        stage,
        Engine(),
        seed=0,
        file=tmp_path / "stage1.pt",
        source=None,  # type: ignore[arg-type]
        teacher=None,
        fingerprint="",
        samples={},
        world=loop.World(0, 1, torch.device("meta")),  # what computes is replaced
        log_every=100,
        val_every=100,
        save_every=2,
        stop_at=math.inf,
        failed=[],
    )
    ema = {name: p.detach().clone() for name, p in net.named_parameters()}
    with pytest.raises(loop.Diverged, match="at step 4,"):
        loop.train(run, State(net, ema, make_optimizers(net, stage)))
    assert read_checkpoint(run.file)["step"] == 2
