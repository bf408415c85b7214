"""Pairs are read, restored and scored as the challenge and the papers do."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.bicubic import Convention, downscale, upscale
from utils.datasets import Pair, find
from utils.evaluate import Sample, load, measured, restore, score, validate
from utils.imaging.images import ImageError
from utils.metrics import psnr, ssim, to_y

Image = NDArray[np.uint8]
MakeImage = Callable[..., Image]
Save = Callable[[Path, Image], Path]
CPU = torch.device("cpu")


def enlarge(x: Tensor) -> Tensor:
    """The simplest x4 network: each pixel four by four times."""
    return x.repeat_interleave(4, 2).repeat_interleave(4, 3)


@pytest.mark.parametrize("convention", ["double", "uint8"])
def test_lr_is_made_from_the_mod_cropped_image(
    tmp_path: Path, noise: MakeImage, save: Save, convention: Convention
) -> None:
    hr = noise(43, 38)
    sample = load(Pair("a", save(tmp_path / "a.png", hr), None), convention)
    np.testing.assert_array_equal(sample.hr, hr[:40, :36])
    np.testing.assert_array_equal(sample.lr, downscale(hr[:40, :36], 4, convention))


def test_lr_file_is_preferred_and_hr_may_be_absent(
    tmp_path: Path, noise: MakeImage, save: Save
) -> None:
    lr, hr = noise(5, 6, seed=1), noise(22, 27, seed=2)
    lr_path, hr_path = save(tmp_path / "ax4.png", lr), save(tmp_path / "a.png", hr)
    sample = load(Pair("a", hr_path, lr_path))
    np.testing.assert_array_equal(sample.lr, lr)
    np.testing.assert_array_equal(sample.hr, hr[:20, :24])
    assert load(Pair("a", None, lr_path)).hr is None


def test_pairs_that_cannot_be_scored_are_errors_by_name(
    tmp_path: Path, noise: MakeImage, save: Save
) -> None:
    hr = save(tmp_path / "a.png", noise(40, 40))
    other = save(tmp_path / "ax4.png", noise(10, 9))
    small = save(tmp_path / "small.png", noise(40, 8))
    for pair, named in (
        (Pair("a", hr, other), ["40x40", "9x10", str(hr), str(other)]),
        (Pair("a", hr, tmp_path / "missing.png"), [str(tmp_path / "missing.png")]),
        (Pair("small", small, None), ["8x40", str(small)]),
        (Pair("nothing", None, None), ["nothing"]),
    ):
        with pytest.raises(ImageError) as caught:
            load(pair)
        assert all(name in str(caught.value) for name in named)


@pytest.mark.parametrize("data_range", [1.0, 255.0])
def test_restore_gives_the_network_one_float_image_and_rounds_what_comes(
    noise: MakeImage, data_range: float
) -> None:
    lr = noise(5, 7)
    seen: list[Tensor] = []

    def net(x: Tensor) -> Tensor:
        assert torch.is_inference_mode_enabled()
        seen.append(x)
        return enlarge(x) + 0.4 / 255 * data_range

    sr, runtime_ms = restore(net, lr, CPU, data_range)
    (x,) = seen
    assert x.shape == (1, 3, 5, 7) and x.dtype == torch.float32
    levels = lr.transpose(2, 0, 1)[None].astype(np.float32)
    np.testing.assert_allclose(x, levels * (data_range / 255), rtol=1e-6)
    np.testing.assert_array_equal(sr, lr.repeat(4, 0).repeat(4, 1))
    assert runtime_ms >= 0


def test_network_that_gives_nan_is_an_error(noise: MakeImage) -> None:
    with pytest.raises(FloatingPointError):
        restore(lambda x: enlarge(x) / 0, noise(5, 5) * 0, CPU)


def test_score_is_challenge_psnr_and_luma_with_ssim_where_asked(noise: MakeImage) -> None:
    sr, hr = noise(28, 32, seed=1), noise(28, 32, seed=2)
    scores = score(sr, hr, rgb_ssim=True, y_ssim=True)
    assert scores.psnr == psnr(sr, hr, 4)
    assert scores.psnr_y == psnr(to_y(sr), to_y(hr), 4)
    assert scores.ssim == ssim(sr, hr, 4)
    assert scores.ssim_y == ssim(to_y(sr), to_y(hr), 4)
    assert score(sr, hr).ssim is None and score(sr, hr).ssim_y is None
    with pytest.raises(ValueError):
        score(sr, hr[:-1])


def test_bicubic_is_scored_beside_the_network(noise: MakeImage) -> None:
    sr, hr, lr = noise(28, 32, seed=1), noise(28, 32, seed=2), noise(7, 8)
    image = measured(Sample("a", lr, hr), sr, 1.0, False, False)
    bicubic = upscale(lr)
    assert (image["psnr"], image["psnr_y"]) == (psnr(sr, hr, 4), psnr(to_y(sr), to_y(hr), 4))
    assert image["psnr_bicubic"] == psnr(bicubic, hr, 4)
    assert image["psnr_y_bicubic"] == psnr(to_y(bicubic), to_y(hr), 4)


def test_border_of_four_pixels_is_left_out(noise: MakeImage) -> None:
    hr = noise(20, 24)
    sr = hr + np.uint8(1)
    broken = hr.copy()
    broken[4:-4, 4:-4] = sr[4:-4, 4:-4]
    assert score(broken, hr).psnr == score(sr, hr).psnr
    sr[3], sr[:, -4] = 0, 0
    assert score(broken, hr).psnr == score(sr, hr).psnr


def test_validation_is_the_mean_of_the_images_scores(noise: MakeImage) -> None:
    samples = [
        Sample(str(seed), noise(6, 5 + seed, seed), noise(24, 20 + 4 * seed, seed + 9))
        for seed in range(3)
    ]
    each = [score(restore(enlarge, s.lr, CPU)[0], s.hr) for s in samples if s.hr is not None]
    mean = validate(enlarge, samples, CPU)
    assert mean.psnr == pytest.approx(np.mean([s.psnr for s in each]), abs=1e-12)
    assert mean.psnr_y == pytest.approx(np.mean([s.psnr_y for s in each]), abs=1e-12)
    with pytest.raises(ImageError, match="hidden"):
        validate(enlarge, [*samples, Sample("hidden", noise(6, 6), None)], CPU)


def test_bicubic_scores_on_set5_what_was_measured_elsewhere(shared: Path) -> None:
    samples = [load(pair) for pair in find("Set5", shared / "data" / "bench").pairs]
    scores = [score(upscale(s.lr), s.hr, y_ssim=True) for s in samples if s.hr is not None]
    assert np.mean([s.psnr_y for s in scores]) == pytest.approx(28.43, abs=6e-3)
    assert np.mean([s.ssim_y for s in scores]) == pytest.approx(0.8113, abs=1e-4)
