"""Which networks and sets the judge's command takes, and networks that take turns."""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from image_files import photo
from judging import STEM, judge, strict
from torch import nn

from models.team00_RFDN import RFDN
from utils.command import UserError
from utils.datasets import find
from utils.imaging.images import write_png
from utils.measure import Model, Options, measure_set, runs_locked
from utils.networks import Entry


def test_models_are_imported_when_chosen_and_ids_are_single(
    tmp_path: Path, random_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import test_demo
    from test_demo import MODELS, select_model

    cpu = torch.device("cpu")
    (tmp_path / "broken_net.py").write_text("import absent_dependency")
    monkeypatch.syspath_prepend(str(tmp_path))
    broken = Entry(41, "Broken", "broken_net:Net", "none.pth")
    monkeypatch.setattr(
        test_demo,
        "MODELS",
        (
            *MODELS,
            broken,
            *[Entry(8, name, "models.team00_RFDN:RFDN", "rfdn.pth") for name in "BC"],
        ),
    )
    assert select_model(23, cpu, f"{random_weights}").name == STEM  # whatever the others lack
    with pytest.raises(UserError, match="No module named 'absent_dependency'"):
        select_model(41, cpu)
    with pytest.raises(UserError, match="expected one model of ID 8, got B and C"):
        select_model(8, cpu)


@pytest.mark.parametrize("with_hr", [True, False])
@pytest.mark.parametrize(
    ("restore", "reason"),
    [
        (lambda x: nn.functional.interpolate(x, scale_factor=2), "got shape (1, 3, 20, 26)"),
        (lambda x: nn.functional.interpolate(x, (40, 56)), "got shape (1, 3, 40, 56)"),
        (lambda x: nn.functional.interpolate(x[0], scale_factor=4), "got shape (3, 10, 52)"),
        (lambda x: nn.functional.interpolate(x[:, :1], scale_factor=4), "got shape (1, 1, 40, 52)"),
        (lambda x: [nn.functional.interpolate(x, scale_factor=4)], "got list"),
        (lambda x: {}["sr"], "13x10 pixels, got KeyError: 'sr'"),
        (lambda x: x.size(5), "13x10 pixels, got IndexError: "),
        (lambda x: _fail(AssertionError(tuple(x.shape))), "AssertionError: (1, 3, 10, 13)"),
    ],
)
def test_a_network_that_fails_on_an_image_keeps_the_others_and_the_other_networks(
    tmp_path: Path, restore: Callable[[torch.Tensor], torch.Tensor], reason: str, with_hr: bool
) -> None:
    kind = "HR" if with_hr else "LR"
    for name, (height, width) in {"a": (8, 8), "b": (10, 13), "c": (9, 8)}.items():
        times = 4 if with_hr else 1
        write_png(tmp_path / "set" / kind / f"{name}.png", photo(times * height, times * width))

    class MostlyGood(nn.Upsample):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return restore(x) if x.shape[-1] == 13 else super().forward(x)

    weights = tmp_path / "weights"
    weights.touch()
    nets = {"mostly_good": MostlyGood(scale_factor=4), "good": nn.Upsample(scale_factor=4)}
    models = [Model(name, net, weights, net) for name, net in nets.items()]
    image_set = find("set", tmp_path)
    bad, whole = measure_set(models, image_set, torch.device("cpu"), Options(tmp_path, repeat=2))
    assert [image["name"] for image in bad["images"]] == ["a", "c"]
    (failure,) = bad["failed"]
    assert failure.startswith("b: expected a ") and reason in failure
    assert len(whole["images"]) == 3 and not whole["failed"]
    assert (whole["ave_psnr"] is not None) == with_hr


def _fail(error: Exception) -> NoReturn:
    raise error


def test_the_baselines_weights_are_used_where_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import test_demo

    monkeypatch.setattr(test_demo, "ROOT", tmp_path)
    assert test_demo.select_model(0, torch.device("cpu")).file is None
    weights = RFDN().state_dict()
    (tmp_path / "model_zoo").mkdir()
    torch.save(weights, tmp_path / "model_zoo" / "team00_rfdn.pth")
    model = test_demo.select_model(0, torch.device("cpu"))
    assert (model.name, model.file) == ("00_RFDN", tmp_path / "model_zoo" / "team00_rfdn.pth")
    assert torch.equal(model.net.state_dict()["B1.c5.weight"], weights["B1.c5.weight"])


@pytest.mark.parametrize(
    ("options", "there", "expected"),
    [
        ([], ["DIV2K_valid"], ["DIV2K_valid"]),
        (["--include_test"], ["DIV2K_valid", "DIV2K_test"], ["DIV2K_valid", "DIV2K_test"]),
        (["--hybrid_test"], ["DIV2K_valid", "LSDIR_DIV2K_test"], ["LSDIR_DIV2K_test"]),
        (["--hybrid_test"], ["LSDIR_DIV2K_test"], ["LSDIR_DIV2K_test"]),
        (
            ["--include_test"],
            ["DIV2K_LSDIR_valid", "DIV2K_LSDIR_test"],
            ["DIV2K_LSDIR_valid", "DIV2K_LSDIR_test"],
        ),
        (
            ["--dataset", "benchmarks", "demo", "benchmarks"],
            ["Set14", "B100"],
            ["Set14", "B100", "demo"],
        ),
    ],
)
def test_the_templates_flags_choose_its_sets(
    tmp_path: Path, options: list[str], there: list[str], expected: list[str]
) -> None:
    from test_demo import find_sets, parse

    for name in there:
        write_png(tmp_path / f"{name}_HR" / "0801.png", photo(16, 16))
    sets = find_sets(parse(["--data_dir", str(tmp_path), *options]))
    assert [image_set.name for image_set in sets] == expected


def test_the_hybrid_set_alone_needs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import test_demo

    def refuse(*arguments: object) -> NoReturn:
        raise UserError("cannot read the folder DIV2K_valid_HR")

    monkeypatch.setattr(test_demo, "is_there", refuse)
    write_png(tmp_path / "LSDIR_DIV2K_test_HR" / "a.png", photo(16, 16))
    args = test_demo.parse(["--data_dir", str(tmp_path), "--hybrid_test"])
    assert [s.name for s in test_demo.find_sets(args)] == ["LSDIR_DIV2K_test"]


def test_another_backend_gives_the_same_picture_and_both_runtimes(
    tmp_path: Path, random_weights: Path
) -> None:
    for seed in range(3):
        write_png(tmp_path / "set" / "HR" / f"{seed}.png", photo(40, 52 + 4 * seed, seed))
    common = ("--dataset", "set", "--checkpoint", random_weights, "--save_dir", "out")
    runs = []
    for options in ([], ["--backend", "channels_last"], ["--precision", "bf16"]):
        done = judge(tmp_path, *common, *options, CUDA_VISIBLE_DEVICES="")
        assert done.returncode == 0, done.stderr
        backend, precision = (
            options[1] if flag in options else default
            for flag, default in (("--backend", "eager"), ("--precision", "fp32"))
        )
        runs.append(strict(tmp_path / "out" / f"{STEM}_set_cpu_{backend}_{precision}.json"))
        assert ("Plain network" in done.stdout) == bool(options)
    plain, fast, half = runs
    assert "plain" not in plain and fast["plain"]["median"] > 0 < half["plain"]["median"]
    assert fast["ave_psnr"] == pytest.approx(plain["ave_psnr"], abs=1e-3)
    assert half["ave_psnr"] == pytest.approx(plain["ave_psnr"], abs=0.05)
    assert half["ave_psnr"] != plain["ave_psnr"]
    for key in ("num_parameters", "flops", "activations", "num_conv"):
        assert plain[key] == fast[key] == half[key]


def test_baseline_and_network_take_turns(tmp_path: Path, random_weights: Path) -> None:
    for seed in range(2):
        write_png(tmp_path / "set" / "HR" / f"{seed}.png", photo(64, 80 + 4 * seed, seed))
    done = judge(
        tmp_path,
        "--dataset",
        "set",
        "--model_id",
        "0",
        "23",
        "--checkpoint",
        f"23={random_weights}",
        "--save_dir",
        "out",
        "--repeat",
        "2",
        "--verbose",
        "--report",
        CUDA_VISIBLE_DEVICES="",
    )
    assert done.returncode == 0, done.stderr
    lines = re.findall(rf"(00_RFDN|{STEM}) (\d): \d+x\d+, ", done.stderr)
    assert lines == [("00_RFDN", "0"), (STEM, "0"), ("00_RFDN", "1"), (STEM, "1")]
    baseline, ours = (
        strict(tmp_path / "out" / f"{name}_set_cpu_eager_fp32.json") for name in ("00_RFDN", STEM)
    )
    assert baseline["checkpoint"] == {"name": None, "sha256": None}
    assert baseline["ave_psnr"] is None and ours["ave_psnr"] > 0
    assert min(baseline["memory_mib"], ours["memory_mib"]) > 100  # torch alone takes that much
    assert ours["memory_of"] == "a process of its own that restores 21x16"
    assert (baseline["num_parameters"], baseline["num_conv"]) == (433448, 64)
    assert "no weights of this network are shipped" in done.stdout
    assert f"{STEM} takes " in done.stdout and "2025, against EFDN: 00_RFDN" in done.stdout
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir()) == [STEM]
    own = (tmp_path / "out" / f"{STEM}_set_cpu_eager_fp32.log").read_text()
    assert own.count(STEM) == 2 and "00_RFDN" not in own
    results = strict(tmp_path / "out" / "results.json")
    assert results["00_RFDN"]["flops"] == pytest.approx(27.10262256)
    assert "Report in out" in done.stdout
    assert f"SR {STEM}" in (tmp_path / "out" / "report.html").read_text()


def test_runs_that_would_replace_each_other_or_their_images_are_refused(tmp_path: Path) -> None:
    """Of net on DIV2K_valid and net_DIV2K on valid; and of a folder of restored images again."""
    (tmp_path / "weights").touch()
    net = nn.Upsample(scale_factor=4)
    cpu = torch.device("cpu")
    models = [Model(f"23_{n}", net, tmp_path / "weights", net) for n in ("net", "net_DIV2K")]
    for name in ("DIV2K_valid", "valid"):
        write_png(tmp_path / name / "HR" / "a.png", photo(32, 32))
    sets = [find(name, tmp_path) for name in ("DIV2K_valid", "valid")]
    with (
        pytest.raises(UserError, match="of different names, got two called 23_net_div2k_valid"),
        runs_locked(models, sets, cpu, Options(tmp_path / "out")),
    ):
        pass
    restored = tmp_path / "out" / "23_net" / "valid"
    write_png(restored / "a.png", photo(32, 32))
    again = [find(str(restored), tmp_path)]
    for options, refused in ((Options(tmp_path / "out"), True), (Options(tmp_path), False)):
        with (
            pytest.raises(UserError, match="no image of the set is replaced")
            if refused
            else contextlib.nullcontext(),
            runs_locked(models[:1], again, cpu, options),
        ):
            pass
