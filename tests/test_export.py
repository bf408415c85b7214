"""train/export.py on our own runs."""

import copy
import json
import math
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray

from models.team23_LKDN import LKDN
from train import checkpoint
from train.export import export
from train.optim import make_optimizers
from train.packing import Pack, held_out_images, pack
from train.recipes import STAGES
from train.records import note_data, training_records
from train.reparam import fuse, training_form
from train.teacher import read_teacher
from utils.datasets import find
from utils.files import ROOT, sha256
from utils.imaging.images import read_rgb, to_tensor
from utils.report import documents
from utils.weights import CheckpointError, load_weights

Image = NDArray[np.uint8]
NO_DATA = Pack(torch.empty(0, 3, dtype=torch.uint8), (), "fingerprint", ())


def a_run(
    folder: Path, data: Pack = NO_DATA, form: Literal["training", "inference"] = "training"
) -> checkpoint.State:
    """A finished run of one stage, its average unlike its last weights."""
    torch.manual_seed(1)
    nets = [training_form(LKDN()) if form == "training" else LKDN() for _ in range(2)]
    ema = {name: p.detach() for name, p in nets[1].named_parameters()}
    stage = replace(STAGES[1], steps=3, form=form)
    state = checkpoint.State(nets[0], ema, make_optimizers(nets[0], stage), step=3)
    folder.mkdir()
    checkpoint.save(folder / "stage1.pt", state, stage, 0, data.fingerprint)
    note_data(folder, stage, [Path("images")], None, data)
    (folder / "log.jsonl").write_text(
        '{"stage": "stage1", "step": 3, "val_psnr": 30.5, "val_psnr_y": 32.25}\n'
    )
    return state


@pytest.fixture()
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Where weights are shipped to and where their training record is, for a test."""
    weights, training = tmp_path / "zoo" / "w.pth", tmp_path / "training.json"
    monkeypatch.setattr("train.export.SHIPPED", weights)
    monkeypatch.setattr("train.export.TRAINING_RECORD", training)
    return weights, training


def test_a_run_is_shipped_with_its_record(
    tmp_path: Path, zoo: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = a_run(tmp_path / "run")
    weights, training = zoo
    regenerated: list[bool] = []
    monkeypatch.setattr(documents, "regenerate", lambda: regenerated.append(True))
    with (tmp_path / "run" / "log.jsonl").open("a") as log:  # of the stage after it
        log.write('{"stage": "stage2", "step": 1, "val_psnr": 40.0, "val_psnr_y": 41.0}\n')
        log.write('{"stage": "stage1", "step": 4, "val_psnr": 50.0, "val_psnr_y": 51.0}\n')

    export(tmp_path / "run", ship=True)

    form = training_form(LKDN())
    form.load_state_dict(state.ema)
    expected = fuse(form.double()).float().state_dict()
    shipped = torch.load(weights, weights_only=True)
    assert list(shipped) == list(LKDN().state_dict())
    assert all(torch.equal(shipped[name], expected[name]) for name in expected)
    said = json.loads(training.read_text())
    assert said["sha256"] == sha256(weights)
    assert said["stages"][0]["step"] == 3 and said["stages"][0]["data"] == "fingerprint"
    assert said["commands"] == [
        "python train/train.py --stage 1 --data DIR --val VAL --out RUN --steps 3"
    ]
    assert said["validation"][-1]["val_psnr_y"] == 32.25
    assert regenerated


@pytest.mark.parametrize(
    "other", [{}, {"seed": 7}, {"data": "others"}, {"history": [{"minutes": 2.0}]}]
)
def test_a_record_has_the_scores_of_its_own_first_stage_alone(
    tmp_path: Path, zoo: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    """Where stage 2 was given other weights, the folder's stage 1 is no part of it."""
    run = tmp_path / "run"
    state = a_run(run)
    first = training_records(torch.load(run / "stage1.pt", weights_only=False), run)
    first[0] |= other
    second = checkpoint.State(state.net, state.ema, state.optimizers, step=2, before=first)
    checkpoint.save(run / "stage2.pt", second, replace(STAGES[2], steps=2), 0, "fingerprint")
    note_data(run, STAGES[2], [Path("images")], None, NO_DATA)
    with (run / "log.jsonl").open("a") as log:
        log.write('{"stage": "stage1", "step": 4, "val_psnr": 50.0, "val_psnr_y": 51.0}\n')
        log.write('{"stage": "stage2", "step": 2, "val_psnr": 40.0, "val_psnr_y": 41.0}\n')
        log.write('{"stage": "stage2", "step": 3, "val_psnr": 60.0, "val_psnr_y": 61.0}\n')
    monkeypatch.setattr(documents, "regenerate", lambda: None)
    export(run, ship=True)
    said = json.loads(zoo[1].read_text())
    assert [stage["seed"] for stage in said["stages"]] == [other.get("seed", 0), 0]
    scores = [(line["stage"], line["val_psnr_y"]) for line in said["validation"]]
    assert scores == [("stage1", 32.25)] * (not other) + [("stage2", 41.0)]


def test_a_run_without_branches_is_shipped_as_it_is(
    tmp_path: Path, zoo: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = a_run(tmp_path / "run", form="inference")
    monkeypatch.setattr(documents, "regenerate", lambda: None)
    export(tmp_path / "run", ship=True)
    shipped = torch.load(zoo[0], weights_only=True)
    assert all(torch.equal(shipped[name], value) for name, value in state.ema.items())


def test_nothing_is_replaced_without_being_asked(
    tmp_path: Path, zoo: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    a_run(tmp_path / "run")
    monkeypatch.setattr(documents, "regenerate", lambda: pytest.fail("the documents are replaced"))
    export(tmp_path / "run")
    load_weights(LKDN(), tmp_path / "run" / "stage1_fused.pth")
    with pytest.raises(CheckpointError, match="expected --ship to write into model_zoo/"):
        export(tmp_path / "run", zoo[0].with_name("another.pth"))
    os.mkfifo(tmp_path / "pipe")
    for no_file in (tmp_path / "pipe", tmp_path / "run"):
        with pytest.raises(CheckpointError, match="expected to write a file"):
            export(tmp_path / "run", no_file)
    assert (tmp_path / "pipe").is_fifo()
    assert not zoo[0].parent.exists() and not zoo[1].exists()


def test_what_is_exported_runs_in_half_precision(tmp_path: Path) -> None:
    """Numbers of a million before each norm, as training makes them: nothing but their scale is
    lost, which the norm takes away."""
    state = a_run(tmp_path / "run")
    for name, parameter in state.ema.items():
        if ".c5." in name or ".c6." in name:
            parameter.mul_(1e9 if name.endswith("c6.bias") else 3000)
    checkpoint.save(tmp_path / "run" / "stage1.pt", state, STAGES[1], 0, "fingerprint")
    export(tmp_path / "run", tmp_path / "plain.pth")

    form = training_form(LKDN())
    form.load_state_dict(state.ema)
    large, small = fuse(form.double()).eval(), LKDN().eval()
    load_weights(small, tmp_path / "plain.pth")
    photo = np.stack([skimage.data.camera()[200:248, 200:264]] * 3, 2)
    photos = [to_tensor(photo), *(torch.full((1, 3, 9, 7), level) for level in (0.0, 1 / 255, 1.0))]
    with torch.inference_mode():
        for x in photos:
            exact = large(x.double())
            assert float((small.double()(x.double()) - exact).abs().max()) < 1e-5
            assert not torch.isfinite(copy.deepcopy(large).half()(x.half())).all()
            for dtype, least in ((torch.half, 60), (torch.bfloat16, 45)):
                y = copy.deepcopy(small).to(dtype)(x.to(dtype)).double()
                error = float((y - exact).square().mean())  # NaN fails below
                assert -10 * math.log10(error) > least, (dtype, error)


@torch.inference_mode()
def test_half_precision_holds_the_shipped_network(tmp_path: Path) -> None:
    """On crops of the demo photos, black and white; 60 dB are a quarter of an 8-bit level."""
    plain = LKDN().eval()
    load_weights(plain, ROOT / "model_zoo" / "team23_LKDN.pth")
    crops = [read_rgb(pair.hr)[60:108, 90:154] for pair in find("demo", tmp_path).pairs if pair.hr]
    images = [to_tensor(crop) for crop in crops]
    images += [torch.full((1, 3, 24, 24), level) for level in (0.0, 1.0)]
    assert len(images) == 6
    for dtype, least in ((torch.half, 60), (torch.bfloat16, 45)):
        net = copy.deepcopy(plain).to(dtype)
        errors = [(net(x.to(dtype)).double() - plain(x).double()).square().mean() for x in images]
        psnrs = [-10 * math.log10(float(error)) for error in errors]  # NaN fails below
        assert all(psnr > least for psnr in psnrs), (dtype, psnrs)


def test_a_run_that_saw_a_held_out_image_is_refused(
    tmp_path: Path,
    zoo: tuple[Path, Path],
    noise: Callable[..., Image],
    save: Callable[[Path, Image], Path],
    python: Callable,
) -> None:
    # The same pixels under another name, in another format, cut to a multiple of 4 or not.
    for folder in ("mine", "sets/Set5/HR"):
        save(tmp_path / folder / "free.png", noise(24, 20, seed=len(folder)))
    save(tmp_path / "mine" / "copied.png", noise(31, 33, seed=5))
    save(tmp_path / "sets" / "Set5" / "original" / "baby.bmp", noise(31, 33, seed=5)[:28, :32])
    a_run(tmp_path / "run", pack([tmp_path / "mine"], tmp_path / "packed"))
    save(tmp_path / "sets" / "else" / "copied.png", noise(31, 33, seed=5))
    held_out = held_out_images(tmp_path / "sets")
    assert [file.name for file in held_out] == ["free.png", "baby.bmp"]
    with pytest.raises(CheckpointError, match=r"saw 1: .*baby\.bmp"):
        export(tmp_path / "run", held_out=held_out, ship=True)
    assert not zoo[0].exists() and not zoo[1].exists()
    export(tmp_path / "run", tmp_path / "mine.pth", held_out=held_out)  # not shipped
    # A named folder counts whatever its name.
    options = ("run", "--ship", "--held_out", "sets/else")
    done = python(tmp_path, ROOT / "train" / "export.py", *options)
    assert done.returncode == 2 and "copied.png" in done.stderr

    # An earlier stage's images count as well, in whatever folder it was trained ..
    saved = torch.load(tmp_path / "run" / "stage1.pt", weights_only=False)
    a_run(tmp_path / "later")
    later = torch.load(tmp_path / "later" / "stage1.pt", weights_only=False)
    later["before"] = training_records(saved, tmp_path / "run")
    torch.save(later, tmp_path / "later" / "stage1.pt")
    with pytest.raises(CheckpointError, match=r"baby\.bmp"):
        export(tmp_path / "later", held_out=held_out, ship=True)
    # .. weights from elsewhere and data nobody knows are refused too.
    later["before"], later["init"] = [], {"name": "authors.pth", "sha256": "0"}
    torch.save(later, tmp_path / "later" / "stage1.pt")
    with pytest.raises(CheckpointError, match=r"began with authors\.pth"):
        export(tmp_path / "later", ship=True)
    note = tmp_path / "run" / "stage1_data.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "sha256": 5}))
    with pytest.raises(CheckpointError, match=r"stage1_data\.json .*--resume"):
        export(tmp_path / "run", held_out=held_out, ship=True)
    shutil.move(note, note.with_name("stage1_before_data.json"))  # as it advises
    with pytest.raises(CheckpointError, match=r"as stage1_before_data\.json, or .*--resume"):
        export(tmp_path / "run", ship=True)
    assert not zoo[0].exists()


def test_weights_saved_with_a_wrapper_train_teach_and_are_exported(
    place: Path, train: Callable, tmp_path: Path
) -> None:
    """By torch.compile around DistributedDataParallel, say."""
    torch.manual_seed(3)
    form = training_form(LKDN())
    wrapped, bare = tmp_path / "wrapped.pth", tmp_path / "bare.pth"
    state = {f"_orig_mod.module.{name}": value for name, value in form.state_dict().items()}
    torch.save({"params_ema": state}, wrapped)
    torch.save(form.state_dict(), bare)
    assert read_teacher(wrapped).sha256 == read_teacher(bare).sha256
    export(wrapped, tmp_path / "plain.pth")
    plain = LKDN()
    load_weights(plain, tmp_path / "plain.pth")
    x = torch.rand(1, 3, 5, 7)
    with torch.no_grad():
        assert (plain(x) - form(x)).abs().max() < 1e-5
    done = train("wrapped", "--init", wrapped, "--steps", 1, "--lr", 0)
    assert done.returncode == 0, done.stderr
    saved = torch.load(place / "wrapped" / "stage1.pt", weights_only=True)["params"]
    assert all(torch.equal(saved[name], value) for name, value in form.state_dict().items())


def test_no_training_state_is_written_over(tmp_path: Path) -> None:
    a_run(tmp_path / "run")
    state = (tmp_path / "run" / "stage1.pt").read_bytes()
    (tmp_path / "link.pth").symlink_to(tmp_path / "run" / "stage1.pt")
    for target in (tmp_path / "run" / "stage1.pt", tmp_path / "stage2.pt", tmp_path / "link.pth"):
        with pytest.raises(CheckpointError, match="training state, which would be lost"):
            export(tmp_path / "run", target)
    assert (tmp_path / "run" / "stage1.pt").read_bytes() == state


def test_foreign_weights_are_fused_but_never_shipped(tmp_path: Path, python: Callable) -> None:
    torch.manual_seed(2)
    form = training_form(LKDN(8, 2, 3))  # another size, and x3
    torch.save({"params": form.state_dict()}, tmp_path / "foreign.pth")

    def run(*arguments: str) -> subprocess.CompletedProcess:
        done = python(tmp_path, ROOT / "train" / "export.py", *arguments)
        assert "Traceback" not in done.stderr
        return done

    done = run("foreign.pth", "-o", "fused.pth")
    assert done.returncode == 0, done.stderr
    plain = LKDN(8, 2, 3)
    load_weights(plain, tmp_path / "fused.pth")
    x = torch.rand(2, 3, 5, 9)
    # Two ways to sum in float32, and values around 1.
    torch.testing.assert_close(plain(x), form(x), rtol=0, atol=2e-6)

    done = run("foreign.pth", "--ship")
    assert done.returncode == 2 and "without a training record" in done.stderr
    done = run("fused.pth", "-o", "again.pth")
    assert done.returncode == 2 and "inference form need no export" in done.stderr
    done = run(".")
    assert done.returncode == 2 and "stage2.pt" in done.stderr
    assert not (tmp_path / "again.pth").exists()


def test_a_wrong_fuse_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_run(tmp_path / "run")

    def wrong(form: LKDN) -> LKDN:
        plain = fuse(form)
        plain.c2.pw.weight.data[0] += 1e-8
        return plain

    monkeypatch.setattr("train.export.fuse", wrong)
    with pytest.raises(ArithmeticError, match="was not written"):
        export(tmp_path / "run", tmp_path / "w.pth")
    assert not (tmp_path / "w.pth").exists()
