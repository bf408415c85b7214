"""The authors' published weights, where they are at hand: their fuse and their figures are ours."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.team23_LKDN import LKDN
from train.checkpoint import load_form
from train.export import export
from utils import evaluate
from utils.datasets import find
from utils.files import ROOT
from utils.metrics import psnr, ssim, to_y
from utils.weights import CheckpointError, load_weights

REFERENCE = ROOT.parent / "shared" / "reference"
BENCH = ROOT.parent / "shared" / "data" / "bench"
pytestmark = pytest.mark.skipif(
    not (REFERENCE.is_dir() and BENCH.is_dir()),
    reason=f"the authors' weights and the benchmark images are not in {REFERENCE.parent}",
)


def test_the_authors_training_form_fuses_to_their_inference_form(tmp_path: Path) -> None:
    export(REFERENCE / "LKDN-S_x4_training.pth", tmp_path / "fused.pth")
    ours = torch.load(tmp_path / "fused.pth", weights_only=True)
    theirs = torch.load(REFERENCE / "LKDN-S_x4_fused.pth", weights_only=True)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():  # they fused in float32
        torch.testing.assert_close(ours[name], value, rtol=0, atol=2e-6)
    with pytest.raises(CheckpointError, match="training form"):
        load_form(theirs, tmp_path)


@pytest.mark.parametrize(
    ("net", "file", "name", "convention", "expected_psnr", "expected_ssim"),
    [
        (LKDN(), "LKDN-S_x4_fused.pth", "Set5", "double", 32.101, 0.8938),
        (LKDN(), "LKDN-S_x4_fused.pth", "Set5", "uint8", 32.106, 0.8938),
        (LKDN(), "LKDN-S_x4_fused.pth", "Set14", "double", 28.616, 0.7821),
        (LKDN(56, 8), "LKDN_x4.pth", "Set5", "uint8", 32.395, None),
    ],
)
def test_the_authors_weights_give_the_authors_figures(
    net: LKDN,
    file: str,
    name: str,
    convention: evaluate.Convention,
    expected_psnr: float,
    expected_ssim: float | None,
) -> None:
    load_weights(net, REFERENCE / file)
    scores = []
    for pair in find(name, BENCH).pairs:
        sample = evaluate.load(pair, convention)
        sr, _ = evaluate.restore(net.eval(), sample.lr, torch.device("cpu"))
        assert sample.hr is not None
        scores.append((psnr(to_y(sr), to_y(sample.hr)), ssim(to_y(sr), to_y(sample.hr))))
    assert np.mean([s[0] for s in scores]) == pytest.approx(expected_psnr, abs=0.002)
    if expected_ssim is not None:
        assert np.mean([s[1] for s in scores]) == pytest.approx(expected_ssim, abs=0.0002)
