"""What a stage of training starts from where no file says."""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from train.checkpoint import State
from train.first_state import initial_state
from train.recipes import STAGES, Engine


def test_norms_start_where_the_stage_says_and_all_else_by_the_seed(tmp_path: Path) -> None:
    args = argparse.Namespace(seed=5, init=None, stage=1, out=tmp_path)

    def start(norm_start: float) -> State:
        stage = replace(STAGES[1], norm_start=norm_start, channels=6, blocks=2)
        return initial_state(args, 1, stage, Engine(), torch.device("cpu"), None)

    state, plain = start(0.1), dict(start(1.0).net.named_parameters())
    expected = {
        name: 0.1 * value if name.endswith("pixel_norm.weight") else value
        for name, value in plain.items()
    }
    assert sum(not torch.equal(expected[name], value) for name, value in plain.items()) == 2
    for name, value in state.net.named_parameters():
        assert torch.equal(value, expected[name]) and torch.equal(state.ema[name], value), name
