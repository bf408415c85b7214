"""RFDN against its description in float64, its counts, and the scores it is the measure of."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.team00_RFDN import RFDN
from utils import evaluate
from utils.datasets import find
from utils.efficiency import count
from utils.report import comparison
from utils.report.comparison import YEARS, terms
from utils.weights import load_weights


def described(w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """RFDN as the challenge describes it, without a module."""

    def conv(name: str, x: Tensor, **options: int) -> Tensor:
        options.setdefault("padding", w[f"{name}.weight"].shape[-1] // 2)
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **options)

    def act(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.05 * x)

    def esa(name: str, x: Tensor) -> Tensor:
        inner = conv(f"{name}.conv1", x)
        y = F.max_pool2d(conv(f"{name}.conv2", inner, stride=2, padding=0), 7, 3)
        y = conv(f"{name}.conv3", conv(f"{name}.conv_max", y).clamp(min=0)).clamp(min=0)
        y = F.interpolate(conv(f"{name}.conv3_", y), x.shape[-2:], mode="bilinear")
        return x / (1 + (-conv(f"{name}.conv4", y + conv(f"{name}.conv_f", inner))).exp())

    outputs = [first := conv("fea_conv", x)]
    for block in ("B1", "B2", "B3", "B4"):
        r, parts = outputs[-1], []
        for k in "123":
            parts.append(act(conv(f"{block}.c{k}_d", r)))
            r = act(conv(f"{block}.c{k}_r", r) + r)
        parts.append(act(conv(f"{block}.c4", r)))
        outputs.append(esa(f"{block}.esa", conv(f"{block}.c5", torch.cat(parts, 1))))
    y = act(conv("c.0", torch.cat(outputs[1:], 1)))
    return F.pixel_shuffle(conv("upsampler.0", conv("LR_conv", y) + first), 4)


@pytest.mark.parametrize("size", [(15, 15), (23, 40), (64, 37)])
def test_network_is_the_described_one(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net = RFDN().double()
    x = 255 * torch.rand(2, 3, *size).double()
    with torch.no_grad():
        y = net(x)
        assert y.shape == (2, 3, 4 * size[0], 4 * size[1])
        assert (y - described(net.state_dict(), x)).abs().max() < 1e-11 * y.abs().max()


def test_counts_are_the_challenge_s() -> None:
    counts = count(RFDN())
    assert (counts.num_parameters, counts.num_conv) == (433448, 64)
    assert (counts.flops, counts.activations) == (27102622560, 112034240)
    assert counts.flops_fvcore == 27046231296


def test_published_weights_give_the_published_score(shared: Path) -> None:
    net = RFDN().eval()
    load_weights(net, shared / "reference" / "RFDN_x4.pth")
    samples = [evaluate.load(pair, "uint8") for pair in find("Set5", shared / "data/bench").pairs]
    cpu = torch.device("cpu")
    scores = [
        evaluate.score(evaluate.restore(net, s.lr, cpu, 255.0)[0], s.hr).psnr_y
        for s in samples
        if s.hr is not None
    ]
    assert len(scores) == 5 and sum(scores) / 5 == pytest.approx(32.161, abs=2e-3)


def test_terms_are_the_formula() -> None:
    by_year = {year.year: year for year in YEARS}
    got = terms(by_year[2025], flops=8_350_000_000, parameters=276_000, runtime_ms=16.69)
    assert got.flops == pytest.approx(0.15 * math.e)  # half of the baseline's 16.70 G
    assert got.parameters == pytest.approx(0.15 * math.e**2)
    assert got.runtime == pytest.approx(0.7 * math.e**2)
    assert got.total == pytest.approx(0.7 * math.e**2 + 0.15 * math.e**2 + 0.15 * math.e)
    slow = terms(by_year[2026], 9_830_000_000, 151_000, None)
    assert slow.total is None and slow.flops == pytest.approx(0.1 * math.e**2)
    assert terms(by_year[2026], 9_830_000_000, 151_000, 2_800.0).total == math.inf


@pytest.mark.parametrize(
    ("name", "flops", "parameters", "scores"),
    [
        ("23_LKDN", 8358002688, 129177, ["0.690", "0.791", "1.101"]),
        ("00_RFDN", 27046231296, 433448, ["4.657", "7.295", "55.676"]),
        ("before it was counted", None, 129177, ["not measured"] * 3),
    ],
)
def test_scores_without_runtime(
    name: str, flops: int | None, parameters: int, scores: list[str]
) -> None:
    counted = {} if flops is None else {"flops_fvcore": flops}
    measured = run(name, parameters, 1.0, "cpu", activations=1, num_conv=1, **counted)
    header, row = comparison.costs([measured])
    assert len(header) == len(row)
    assert [row[header.index(f"{year.year}'s score without runtime")] for year in YEARS] == scores
    other = run("another", 7, 1.0, "cpu")  # two networks, or there is nothing to compare
    printed = comparison.text([measured, other]).splitlines()
    rows = [re.split(r"  +", line.strip()) for line in printed if f": {name} " in line]
    assert [cells[3] if flops is None else f"{float(cells[3]):.3f}" for cells in rows] == scores


def run(model: str, parameters: int, ms: float, device: str, **more: float) -> dict[str, Any]:
    return {
        "model": model,
        "dataset": "Set5",
        "num_parameters": parameters,
        "flops": 10 * parameters,
        "ave_runtime_ms": ms + 5,
        "median_runtime_ms": ms,
        "ave_psnr_y": None,
        "ave_ssim_y": None,
        "images": [{}] * 5,
        "environment": {"device": "a chip", "device_type": device},
        **more,
    }


def test_scores_and_estimate_are_told() -> None:
    runs = [run("00_RFDN@w", 433448, 20.0, "cuda"), run("23_LKDN", 129177, 30.0, "cuda")]
    text = comparison.text(runs)
    assert "23_LKDN takes 1.50 times as long as 00_RFDN@w here" in text
    assert "is 53.3 ms, where the organisers measured 99.79 ms" in text  # 1.5 * 35.54
    assert "of this a chip, while" in text and "no CUDA" not in text
    for one in runs:
        one["environment"]["device_type"] = "cpu"
    text = comparison.text(runs)
    assert "makes no runtime term" in text
    assert text.count("no CUDA") == 2 * len(YEARS) * len(runs)  # nor a sum
    assert comparison.text(runs[1:]) == ""


def test_table_1_has_the_difference_to_the_factsheet() -> None:
    runs = [
        run("23_LKDN", 1, 1.0, "cpu", ave_psnr_y=32.05, ave_ssim_y=0.8940),
        run("23_LKDN@x", 1, 1.0, "cpu") | {"dataset": "Set14"},
        run("23_LKDN@x", 1, 1.0, "cpu", ave_psnr_y=32.2, ave_ssim_y=0.9),
        run("23_LKDN@y", 1, 1.0, "cpu", ave_psnr_y=40.0, ave_ssim_y=0.9) | {"images": [{}] * 4},
    ]
    assert comparison.table1(runs) == [
        ["", "Set5", "difference"],
        ["factsheet", "32.10 / 0.8938", ""],
        ["23_LKDN", "32.050 / 0.8940", "-0.050 / +0.0002"],
        ["23_LKDN@x", "32.200 / 0.9000", "+0.100 / +0.0062"],
        ["23_LKDN@y", "not measured", ""],  # of four of the five images
    ]


def test_costs_are_told_once_a_network() -> None:
    ours = run(
        "23_LKDN", 151_000, 1.0, "cpu", flops=4_915_000_000, activations=2_500_000, num_conv=7
    )
    ours["flops_fvcore"] = 9_830_000_000
    older = ours | {"model": "23_LKDN@x", "flops_fvcore": None}
    header, row = comparison.costs([ours, older])
    assert len(header) == len(row)
    assert row[:6] == ["23_LKDN", "151,000", "4.92", "9.83", "2.50", "7"]
    score = 0.2 * math.e**2  # all of SPAN's parameters and FLOPs
    assert row[header.index("2026's score without runtime")] == f"{score:.3f}"
    assert row[-1] == "99.79"
