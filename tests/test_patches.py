"""Every patch is the described region of the original images, LR and HR alike."""

import logging
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import chisquare

from train.crops import Sampler
from train.detail import measure_detail
from train.packing import pack
from train.patches import sample, sampler
from utils.imaging.images import ImageError

Image = NDArray[np.uint8]
MakeImage = Callable[..., Image]
Save = Callable[[Path, Image], Path]

SIZES = {"a.png": (6, 9), "b.png": (5, 7), "c.png": (11, 4), "small.png": (3, 20)}  # LR
PATCH = 4
FLIPS_AND_TURNS = list(product(range(4), (False, True)))


def transformed(image: Image, turns: int, flip: bool) -> Image:
    image = np.rot90(image, turns)
    return image[:, ::-1] if flip else image


@pytest.fixture()
def originals(positions: MakeImage, noise: MakeImage) -> list[tuple[Image, Image]]:
    """(LR, HR): LR pixels tell their place, HR pixels are all different."""
    return [
        (positions(h, w, ident), noise(4 * h, 4 * w, ident))
        for ident, (h, w) in enumerate(SIZES.values())
    ]


@pytest.fixture()
def sources(
    tmp_path: Path,
    originals: list[tuple[Image, Image]],
    save: Save,
    caplog: pytest.LogCaptureFixture,
) -> dict[str, Sampler]:
    for name, (lr, hr) in zip(SIZES, originals, strict=True):
        save(tmp_path / "set" / name, hr)
        save(tmp_path / "set" / "LR" / f"{Path(name).stem}x4.png", lr)
    packed = pack([tmp_path / "set"], tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        made = {
            "uniform": sampler(packed, PATCH),
            "detail": sampler(packed, PATCH, measure_detail(packed)),
        }
    assert "small.png is 20x3" in caplog.text
    return made


@pytest.fixture()
def source(sources: dict[str, Sampler]) -> Sampler:
    return sources["uniform"]


def found(
    lr: Image, original: list[tuple[Image, Image]]
) -> Iterator[tuple[int, int, int, int, bool]]:
    """(image, top, left, turns, flip) of every region and transform that gives this LR patch."""
    ident, top, left = int(lr[0, 0, 2]), int(lr[..., 0].min()), int(lr[..., 1].min())
    region = original[ident][0][top : top + PATCH, left : left + PATCH]
    for turns, flip in FLIPS_AND_TURNS:
        if np.array_equal(transformed(region, turns, flip), lr):
            yield ident, top, left, turns, flip


def test_patches_are_aligned_transformed_regions_equally_often(
    source: Sampler, originals: list[tuple[Image, Image]]
) -> None:
    regions = {
        (i, top, left)
        for i, (h, w) in enumerate(SIZES.values())
        for top in range(h - PATCH + 1)
        for left in range(w - PATCH + 1)
    }
    counts = {(*r, *t): 0 for r in regions for t in FLIPS_AND_TURNS}
    for step in range(4):
        lr_batch, hr_batch = sample(source, seed=1, step=step, batch=4000)
        assert lr_batch.shape == (4000, 3, 4, 4) and hr_batch.shape == (4000, 3, 16, 16)
        assert lr_batch.dtype == hr_batch.dtype == torch.uint8
        lr_images = lr_batch.permute(0, 2, 3, 1).numpy()
        hr_images = hr_batch.permute(0, 2, 3, 1).numpy()
        for lr, hr in zip(lr_images, hr_images, strict=True):
            ((ident, top, left, turns, flip),) = found(lr, originals)
            region = originals[ident][1][4 * top :, 4 * left :][: 4 * PATCH, : 4 * PATCH]
            np.testing.assert_array_equal(hr, transformed(region, turns, flip))
            counts[ident, top, left, turns, flip] += 1
    assert len(counts) == 8 * (3 * 6 + 2 * 4 + 8 * 1)
    # 59 of each expected; the seed is fixed, so this either always or never holds.
    assert chisquare(list(counts.values())).pvalue > 1e-3


def likelihoods(lr: Image, hr: Image) -> NDArray[np.float64]:
    """Of each crop position of an image, drawn by detail, times the image's area; pixel by pixel,
    with torch's bicubic."""
    height, width = lr.shape[:2]
    image = torch.from_numpy(lr).permute(2, 0, 1)[None].double()
    enlarged = F.interpolate(image, scale_factor=4, mode="bicubic")[0].permute(1, 2, 0)
    error = (
        ((enlarged.clamp(0, 255).numpy() - hr) ** 2)
        .sum(2)
        .reshape(height, 4, width, 4)
        .mean((1, 3))
    )
    weight = np.zeros((-(-height // 8) * 8, -(-width // 8) * 8))
    weight[:height, :width] = 0.1 + 0.9 * error / error.mean()
    result = np.zeros((height - PATCH + 1, width - PATCH + 1))
    for y, x in product(range(weight.shape[0]), range(weight.shape[1])):
        corner = y // 8 * 8, x // 8 * 8
        share = weight[corner[0] : corner[0] + 8, corner[1] : corner[1] + 8].mean()
        for down, right in product(range(PATCH), range(PATCH)):
            top, left = (
                np.clip(at, 0, last - 1)
                for at, last in zip((y - down, x - right), result.shape, strict=True)
            )
            result[top, left] += share / PATCH**2
    return result


def test_patches_drawn_by_detail_are_as_often_as_their_detail_says(
    tmp_path: Path, positions: MakeImage, noise: MakeImage, save: Save
) -> None:
    sizes = [(19, 8), (5, 26), (9, 9)]
    images = [
        (positions(h, w, ident), noise(4 * h, 4 * w, ident)) for ident, (h, w) in enumerate(sizes)
    ]
    images[0][1][40:] = 30  # half of it flat
    images[1][1][:, 12:] //= 4
    images[2][1][:] = np.repeat(np.repeat(images[2][0], 4, 0), 4, 1) * 20
    for name, (lr, hr) in zip("abc", images, strict=True):
        save(tmp_path / "set" / f"{name}.png", hr)
        save(tmp_path / "set" / "LR" / f"{name}x4.png", lr)
    packed = pack([tmp_path / "set"], tmp_path / "cache")
    source = sampler(packed, PATCH, measure_detail(packed))

    expected = [likelihoods(lr, hr) for lr, hr in images]
    counts = [np.zeros_like(each) for each in expected]
    for step in range(4):
        for patch in sample(source, seed=1, step=step, batch=5000)[0].permute(0, 2, 3, 1).numpy():
            counts[patch[0, 0, 2]][patch[..., 0].min(), patch[..., 1].min()] += 1
    observed, wanted = (
        np.concatenate([each.flatten() for each in lists]) for lists in (counts, expected)
    )
    assert wanted.sum() == pytest.approx(sum(h * w for h, w in sizes))
    assert chisquare(observed, wanted * (observed.sum() / wanted.sum())).pvalue > 1e-3
    assert chisquare(observed).pvalue < 1e-9  # else it could not tell from everywhere alike


def test_an_image_without_detail_is_drawn_from_everywhere_alike(tmp_path: Path, save: Save) -> None:
    save(tmp_path / "set" / "flat.png", np.full((44, 76, 3), 77, np.uint8))
    (weights,) = measure_detail(pack([tmp_path / "set"], tmp_path / "cache"))
    np.testing.assert_allclose(weights, [[64, 64, 24], [24, 24, 9]])


@pytest.mark.parametrize("draw", ["uniform", "detail"])
@pytest.mark.parametrize(("batch", "processes"), [(12, 2), (13, 3)])
def test_parts_of_a_step_interleave_to_the_whole(
    sources: dict[str, Sampler], draw: str, batch: int, processes: int
) -> None:
    source = sources[draw]
    whole = sample(source, seed=2, step=5, batch=batch)
    for rank in range(processes):
        part = slice(rank, None, processes)
        lr, hr = sample(source, seed=2, step=5, batch=batch, part=part)
        assert torch.equal(lr, whole[0][part]) and torch.equal(hr, whole[1][part])


def test_seed_and_step_decide_the_patches(source: Sampler) -> None:
    lr, hr = sample(source, seed=3, step=7, batch=32)
    np.random.default_rng().random()  # no global state takes part
    torch.manual_seed(0)
    again = sample(source, seed=3, step=7, batch=32)
    assert torch.equal(lr, again[0]) and torch.equal(hr, again[1])
    others = [(3, 8), (4, 7), (7, 3), (3, 10**9)]
    assert not any(torch.equal(hr, sample(source, s, step, 32)[1]) for s, step in others)


def test_patch_of_the_whole_image_and_one_above_all(
    tmp_path: Path, noise: MakeImage, save: Save
) -> None:
    hr = noise(24, 24)
    save(tmp_path / "set" / "a.png", hr)
    packed = pack([tmp_path / "set"], tmp_path / "cache")
    _, patches = sample(sampler(packed, 6), seed=0, step=0, batch=8)
    images = [transformed(hr, turns, flip) for turns, flip in FLIPS_AND_TURNS]
    for patch in patches.permute(0, 2, 3, 1).numpy():
        assert any(np.array_equal(patch, image) for image in images)
    with pytest.raises(ImageError, match="28"):
        sampler(packed, 7)
