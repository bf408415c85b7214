"""Squares turned by any angle, against the functions that they are samples of."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import chisquare, kstest
from torch import Tensor

from train.crops import AS_PACKED
from train.packing import pack
from train.patches import sample, sampler
from train.shrink import around, rotate_squares, shrink_squares

Image = NDArray[np.uint8]
MakeImage = Callable[..., Image]
Save = Callable[[Path, Image], Path]

PATCH = 5


def waves(down: Tensor, right: Tensor) -> Tensor:
    """(3, ..) in 0..255 of places in pixels: three smooth functions without symmetry."""
    first = torch.sin(down / 16 + right / 23)
    second = torch.cos(down / 19 - right / 14 + 1)
    third = torch.sin(down / 25) * torch.cos(right / 15 + 0.5)
    return 127 + 120 * torch.stack((first, second, third))


def grid(side: int) -> tuple[Tensor, Tensor]:
    """(down, right) of pixels from the middle of a square."""
    places = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    down, right = torch.meshgrid(places, places, indexing="ij")
    return down, right


@pytest.mark.parametrize("side", [37, 52])
def test_a_turned_square_is_the_function_at_turned_places(side: int) -> None:
    angles = torch.tensor([0.0, 0.3, -math.pi / 4, math.pi / 4, -0.7, math.pi / 2])
    square = (waves(*grid(around(side))) + 0.5).to(torch.uint8)
    turned = rotate_squares(square.expand(len(angles), -1, -1, -1), angles, side)
    assert turned.shape == (len(angles), 3, side, side) and turned.dtype == torch.uint8
    down, right = grid(side)
    for angle, one in zip(angles.double(), turned, strict=True):
        cos, sin = angle.cos(), angle.sin()
        expected = waves(cos * down + sin * right, cos * right - sin * down)
        assert (one - expected).abs().max() < 2  # of 240: rounded twice, and bicubic is not exact


def test_no_turn_is_the_middle_to_the_bit(noise: MakeImage) -> None:
    square = torch.from_numpy(noise(56, 56)).permute(2, 0, 1)[None]
    turned = rotate_squares(square, torch.zeros(1), 36)
    assert torch.equal(turned, square[..., 10:46, 10:46])


@pytest.mark.parametrize("rotate", [0.4, 1.0])
def test_a_share_of_what_is_clearly_shrunk_is_turned_by_angles_alike(
    tmp_path: Path, save: Save, monkeypatch: pytest.MonkeyPatch, rotate: float
) -> None:
    """Of an image that brightens to one side; where there is room, and only there."""
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (200, 200, 3))
    save(tmp_path / "set" / "ramp.png", ramp)
    save(tmp_path / "set" / "low.png", np.full((72, 90, 3), 7, np.uint8))  # has room for few
    source = sampler(pack([tmp_path / "set"], tmp_path / "cache"), PATCH, shrink=2.0, rotate=rotate)
    sides = source.sides
    assert sides is not None and list(sides) == [36, 40, 44, 48, 53, 59, 65, 72]
    made: dict[str, list[int]] = {"low": [], "ramp": []}
    turned: dict[str, list[int]] = {"low": [], "ramp": []}

    def note(where: dict[str, list[int]], squares: Tensor, side: int) -> None:
        of_low = (squares == 7).flatten(1).all(1)
        where["low"] += [side] * int(of_low.sum())
        where["ramp"] += [side] * int((~of_low).sum())

    def note_turned(squares: Tensor, angles: Tensor, side: int) -> Tensor:
        note(turned, squares, side)
        return rotate_squares(squares, angles, side)

    def note_made(squares: Tensor, patch: int) -> tuple[Tensor, Tensor]:
        note(made, squares, squares.shape[-1])
        return shrink_squares(squares, patch)

    monkeypatch.setattr("train.crops.rotate_squares", note_turned)
    monkeypatch.setattr("train.crops.shrink_squares", note_made)
    lr, hr = sample(source, seed=1, step=2, batch=6000)
    assert set(made["low"]) == set(made["ramp"]) == set(sides.tolist())
    assert not turned["low"]  # 53 and more need 79 pixels, it has 72
    assert set(turned["ramp"]) == {53, 59, 65, 72}
    clearly = sum(side >= 53 for side in made["ramp"])
    assert abs(len(turned["ramp"]) - rotate * clearly) < 4 * math.sqrt(clearly * rotate) * 0.8 + 1
    assert chisquare([turned["ramp"].count(side) for side in (53, 59, 65, 72)]).pvalue > 1e-3

    # Brightness rises along one line in each patch, which tells the angle.
    large = hr[(hr != 7).flatten(1).all(1)].double().mean(1)
    down = (large[:, -3:].mean((1, 2)) - large[:, :3].mean((1, 2))).numpy()
    right = (large[..., -3:].mean((1, 2)) - large[..., :3].mean((1, 2))).numpy()
    angles = np.arctan2(down, right)
    off = np.abs((angles + np.pi / 4) % (np.pi / 2) - np.pi / 4)  # from the nearest quarter turn
    some = off > 0.02
    share = len(turned["ramp"]) / len(off)
    assert abs(some.mean() - share * (1 - 0.02 / (np.pi / 4))) < 0.01
    assert kstest(angles[some] % (np.pi / 2), "uniform", (0.02, np.pi / 2 - 0.04)).pvalue > 1e-3
    assert min(np.histogram(angles[some], 8, (-np.pi, np.pi))[0]) > 0.08 * some.sum()


def test_without_a_share_no_patch_is_another(tmp_path: Path, save: Save, noise: MakeImage) -> None:
    save(tmp_path / "set" / "a.png", noise(130, 140))
    packed = pack([tmp_path / "set"], tmp_path / "cache")
    source = sampler(packed, PATCH, shrink=2.0, rotate=0.5)
    alone = sample(replace(source, rotate=0), seed=1, step=0, batch=800)
    both = sample(source, seed=1, step=0, batch=800)
    same = (alone[1] == both[1]).flatten(1).all(1)
    assert torch.equal(alone[0][same], both[0][same])
    turned = (~same).double().mean()
    assert abs(turned - (1 - AS_PACKED) * 0.5 * 4 / 8) < 0.04
