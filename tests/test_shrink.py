"""Patches of shrunk images, against Pillow's resizing and the images that they are made of."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage
from scipy.stats import chisquare, kstest
from torch import Tensor

from train.crops import Sampler
from train.detail import measure_detail
from train.packing import pack
from train.packs import Pack
from train.patches import sample, sampler
from train.shrink import (
    MARGIN,
    ZOOM_FACTORS,
    round_pixels,
    shrink_squares,
    sides_of,
    zoom_sides_of,
    zoom_squares,
)
from utils.bicubic import downscale

Image = NDArray[np.uint8]
MakeImage = Callable[..., Image]
Save = Callable[[Path, Image], Path]

PATCH = 5
SIZES = {"wide.png": (9, 31), "square.png": (23, 22), "tall.png": (40, 12), "least.png": (5, 6)}


@pytest.fixture()
def images(photo: MakeImage) -> list[Image]:
    return [photo(4 * h, 4 * w, ident) for ident, (h, w) in enumerate(SIZES.values())]


@pytest.fixture()
def photo(noise: MakeImage) -> MakeImage:
    """Noise of few and of many pixels: unlike noise alone, it is still there when it was shrunk."""

    def make(height: int, width: int, seed: int) -> Image:
        coarse = PillowImage.fromarray(noise(height // 5 + 2, width // 5 + 2, seed))
        smooth = np.asarray(coarse.resize((width, height), PillowImage.Resampling.BICUBIC))
        return (smooth * 0.7 + noise(height, width, seed + 50) * 0.3).astype(np.uint8)

    return make


@pytest.fixture()
def packed(tmp_path: Path, images: list[Image], save: Save) -> Pack:
    for name, image in zip(SIZES, images, strict=True):
        save(tmp_path / "set" / name, image)
    return pack([tmp_path / "set"], tmp_path / "cache")


@pytest.fixture(params=["uniform", "detail"])
def source(packed: Pack, request: pytest.FixtureRequest) -> Sampler:
    detail = measure_detail(packed) if request.param == "detail" else None
    return sampler(packed, PATCH, detail, shrink=2.0, zoom=0.3, mixup=0.4)


def as_images(patches: Tensor) -> list[Image]:
    return list(patches.permute(0, 2, 3, 1).numpy())


def resize(square: Image, rows: int) -> NDArray[np.float32]:
    """By Pillow's bicubic, which is MATLAB's away from the edges, without rounding."""
    channels = [PillowImage.fromarray(square[..., c].astype(np.float32)) for c in range(3)]
    size, method = (rows, rows), PillowImage.Resampling.BICUBIC
    return np.dstack([np.asarray(channel.resize(size, method)) for channel in channels])


@pytest.mark.parametrize("patch", [5, 16, 31])
@pytest.mark.parametrize("shrink", [1.3, 2.5, 4])
def test_pairs_are_the_middle_of_what_pillow_and_matlab_shrink(
    patch: int, shrink: float, photo: MakeImage
) -> None:
    sides = sides_of(patch, shrink)
    rows = 4 * patch + 2 * MARGIN
    assert sides[0] == rows and sides[-1] == round(rows * shrink) and (np.diff(sides) >= 0).all()
    for side in sides:
        squares = [photo(side, side, seed) for seed in range(2)]
        lr, hr = shrink_squares(torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2), patch)
        for square, small, large in zip(squares, as_images(lr), as_images(hr), strict=True):
            resized = resize(square, rows)
            middle = resized[MARGIN:-MARGIN, MARGIN:-MARGIN].clip(0, 255)
            assert np.abs(middle - large).max() < 0.501  # large is rounded, once
            whole = resized.clip(0, 255)
            whole[MARGIN:-MARGIN, MARGIN:-MARGIN] = large
            edge = downscale((whole + 0.5).astype(np.uint8))[2:-2, 2:-2]
            assert np.abs(edge.astype(int) - small).max() <= 1  # around large: Pillow's rounding
            assert np.array_equal(edge[2:-2, 2:-2], small[2:-2, 2:-2])


def test_halves_are_rounded_up_and_what_lies_beyond_is_cut() -> None:
    values = torch.tensor([-3, -0.4, 0.4999, 0.5, 1.5, 2.5, 254.5, 255.4, 300])
    assert round_pixels(values).tolist() == [0, 0, 0, 1, 2, 3, 255, 255, 255]


def test_unshrunk_pairs_begin_at_every_pixel_and_are_the_images(
    packed: Pack, images: list[Image]
) -> None:
    """With one factor, 1, a HR patch is a part of its image, turned, and the LR patch its own."""
    source = replace(sampler(packed, PATCH, shrink=2), sides=sides_of(PATCH, 2)[:1])
    places: set[tuple[int, int, int]] = set()
    lr, hr = sample(source, seed=1, step=0, batch=600)
    for small, large in zip(as_images(lr), as_images(hr), strict=True):
        places.add(place_of(large, images))
        assert np.array_equal(downscale(large)[2:-2, 2:-2], small[2:-2, 2:-2])
    assert {top % 4 for _, top, _ in places} == {left % 4 for *_, left in places} == {0, 1, 2, 3}
    assert {ident for ident, *_ in places} == set(range(len(images)))  # the least one, as packed


@pytest.mark.parametrize("patch", [16, 31])
def test_patches_without_hr_are_the_middle_of_what_pillow_shrinks(
    patch: int, photo: MakeImage
) -> None:
    rows = patch + 4
    sides = zoom_sides_of(patch)
    assert list(sides) == [round(rows * factor) for factor in ZOOM_FACTORS]
    assert max(zoom_sides_of(PATCH)) == 4 * PATCH  # the least image has no more
    for side in sides:
        squares = [photo(side, side, seed) for seed in range(2)]
        lr = zoom_squares(torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2), patch)
        for square, small in zip(squares, as_images(lr), strict=True):
            middle = resize(square, rows)[2:-2, 2:-2].clip(0, 255)
            assert small.shape == (patch, patch, 3) and np.abs(middle - small).max() < 0.501


@pytest.mark.parametrize("shrink", [1.0, 2.0])
def test_the_last_of_a_step_are_parts_of_images_shrunk_less_and_have_no_hr(
    packed: Pack, images: list[Image], monkeypatch: pytest.MonkeyPatch, shrink: float
) -> None:
    squares: list[Tensor] = []

    def note(given: Tensor, patch: int) -> Tensor:
        squares.append(given)
        return zoom_squares(given, patch)

    monkeypatch.setattr("train.crops.zoom_squares", note)
    monkeypatch.setattr("train.crops.zoom_sides_of", lambda patch: np.array([10, 14, 20]))
    source = sampler(packed, PATCH, shrink=shrink, zoom=0.3)
    lr, hr = sample(source, seed=1, step=0, batch=1500)
    assert (len(lr), len(hr)) == (1500, 1050)
    counts = [len(of_one_side) for of_one_side in squares]
    assert sum(counts) == 450 and chisquare(counts).pvalue > 1e-3
    places = [place_of(square, images) for some in squares for square in as_images(some[:40])]
    assert len(set(places)) > 100 and {ident for ident, *_ in places} >= {0, 1, 2}
    made = torch.cat([zoom_squares(of_one_side, PATCH) for of_one_side in squares])
    rows = [sorted(x.flatten(1).tolist()) for x in (made, lr[1050:])]
    assert rows[0] == rows[1]
    pairs = sample(replace(source, zoom=0), seed=1, step=0, batch=1500)
    assert torch.equal(lr[:1050], pairs[0][:1050]) and torch.equal(hr, pairs[1][:1050])


def place_of(patch: Image, images: list[Image]) -> tuple[int, int, int]:
    """(image, top, left) of a HR patch, turned in whatever way."""
    for ident, image in enumerate(images):
        windows = np.lib.stride_tricks.sliding_window_view(image, patch.shape).squeeze(2)
        for turns in range(4):
            for flipped in (False, True):
                turned = np.rot90(patch, turns)
                turned = turned[:, ::-1] if flipped else turned
                found = np.argwhere((windows[:, :, ::5, ::5] == turned[::5, ::5]).all((2, 3, 4)))
                for top, left in found:
                    if np.array_equal(windows[top, left], turned):
                        return ident, int(top), int(left)
    raise AssertionError("in none of the images")


def test_the_factors_that_an_image_has_room_for_are_equally_likely(
    packed: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """.. and a quarter of the pairs, and all of an image without room, are as packed."""
    drawn: list[int] = []

    def note(squares: Tensor, patch: int) -> tuple[Tensor, Tensor]:
        drawn.extend([squares.shape[-1]] * len(squares))
        return shrink_squares(squares, patch)

    monkeypatch.setattr("train.crops.shrink_squares", note)
    source = sampler(packed, PATCH, shrink=2.0)
    assert source.sides is not None
    count, expected = 4000, dict.fromkeys(source.sides.tolist(), 0.0)
    positions = [(h - PATCH + 1) * (w - PATCH + 1) for h, w in SIZES.values()]
    for (height, width), share in zip(SIZES.values(), positions, strict=True):
        room = [side for side in expected if side <= 4 * min(height, width)]
        for side in room:
            expected[side] += 0.75 * share / sum(positions) / len(room)
    sample(source, seed=4, step=1, batch=count)
    observed = [drawn.count(side) for side in expected]
    wanted = np.array(list(expected.values())) * count
    rest = count - len(drawn), count - wanted.sum()
    assert chisquare([*observed, rest[0]], [*wanted, rest[1]]).pvalue > 1e-3
    assert min(wanted) > 100 and min(rest) > 900


def test_squares_lie_everywhere_in_an_image_alike(tmp_path: Path, save: Save) -> None:
    """Also those that are nearly as large as it, of an image that brightens to one side."""
    ramp = np.broadcast_to(np.arange(80, dtype=np.uint8)[None, :, None] * 3, (80, 80, 3))
    save(tmp_path / "set" / "ramp.png", ramp)
    source = sampler(pack([tmp_path / "set"], tmp_path / "cache"), PATCH, shrink=2.0)
    assert source.sides is not None
    source = replace(source, sides=source.sides[-1:])
    _, hr = sample(source, seed=3, step=1, batch=3000)
    _, packed_pairs = sample(replace(source, sides=None), seed=3, step=1, batch=3000)
    made = ~(hr == packed_pairs).flatten(1).all(1)
    first = (hr[made].flatten(2).float().mean((1, 2)) / 3).numpy()
    room = 80 - int(source.sides[0])  # the middles of squares are so many pixels apart
    counts, _ = np.histogram(
        first, bins=room + 1, range=(39.5 - room / 2 - 0.5, 39.5 + room / 2 + 0.5)
    )
    assert counts.sum() == len(first) > 2000
    assert chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("mixup", [0.3, 1.0])
def test_blended_patches_keep_half_of_themselves_or_more(
    tmp_path: Path, save: Save, mixup: float
) -> None:
    """Of two images, each of one value."""
    for value in (0, 200):
        save(tmp_path / "set" / f"{value}.png", np.full((80, 80, 3), value, np.uint8))
    source = sampler(pack([tmp_path / "set"], tmp_path / "cache"), PATCH, shrink=2.0, zoom=0.25)
    alone = sample(source, seed=3, step=1, batch=8000)
    lr, hr = sample(replace(source, mixup=mixup), seed=3, step=1, batch=8000)
    small, large = (x.flatten(1) for x in (lr, hr))
    assert (small == small[:, :1]).all() and (large == small[:6000, :1]).all()
    own, blended = (x[:, 0, 0, 0].numpy().astype(float) for x in (alone[0], lr))
    kept = 1 - np.abs(own - blended) / 200  # 1, too, where the other is of the same image
    assert (kept >= 0.5).all()
    for part in (slice(6000), slice(6000, None)):
        assert abs((kept[part] < 1).mean() - mixup / 2) < 0.03
    assert kstest(kept[kept < 1], "uniform", (0.5, 0.5)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("batch", "mixup", "steps"), [(1, 0.5, 40), (3, 0.3, 40), (24, 0.04, 25), (5, 1.0, 4)]
)
def test_small_batches_are_blended_as_often(
    packed: Pack, batch: int, mixup: float, steps: int
) -> None:
    """Counted through the steps, by one process as by two."""
    source = sampler(packed, PATCH, mixup=mixup)
    blended = 0
    for step in range(steps):
        both = [sample(s, 1, step, batch)[1] for s in (source, replace(source, mixup=0))]
        blended += int((both[0] != both[1]).flatten(1).any(1).sum())
        parts = [sample(source, 1, step, batch, slice(rank, None, 2)) for rank in range(2)]
        for rank, (_, hr) in enumerate(parts):
            assert torch.equal(hr, both[0][rank::2])
    assert abs(blended - steps * batch * mixup) <= 1


def test_the_lr_patch_of_a_blend_is_that_of_the_blended_hr_patch(packed: Pack) -> None:
    source = sampler(packed, PATCH, mixup=0.5)
    lr, hr = sample(source, seed=1, step=0, batch=200)
    alone = sample(replace(source, mixup=0), seed=1, step=0, batch=200)
    same = (hr == alone[1]).flatten(1).all(1)
    assert 100 <= same.sum() < 105 and same[::2].all()  # every second is blended
    assert torch.equal(lr[same], alone[0][same])
    for small, large in zip(as_images(lr), as_images(hr), strict=True):
        inner = downscale(large)[2:-2, 2:-2].astype(int) - small[2:-2, 2:-2]
        assert np.abs(inner).max() <= 1


@pytest.mark.parametrize(("batch", "processes"), [(12, 2), (13, 3)])
def test_parts_of_a_step_interleave_to_the_whole(
    source: Sampler, batch: int, processes: int
) -> None:
    whole = sample(source, seed=2, step=5, batch=batch)
    again = sample(source, seed=2, step=5, batch=batch)
    assert torch.equal(whole[0], again[0]) and torch.equal(whole[1], again[1])
    for rank in range(processes):
        part = slice(rank, None, processes)
        lr, hr = sample(source, seed=2, step=5, batch=batch, part=part)
        assert torch.equal(lr, whole[0][part]) and torch.equal(hr, whole[1][part])
    assert len(whole[1]) == batch - round(0.3 * batch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_makes_the_same_pairs_but_for_the_last_digit(source: Sampler) -> None:
    there = replace(source, pixels=source.pixels.cuda())
    for here, other in zip(sample(source, 5, 3, 64), sample(there, 5, 3, 64), strict=True):
        assert other.is_cuda and (here.int() - other.cpu().int()).abs().max() <= 1
