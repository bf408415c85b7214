"""A disk that fails at one call: what is finished stays, one line says what failed, exit code 1."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import OPTIONS
from torch import nn
from warm_python import python

from train import checkpoint, log, loop, train
from utils.files import ROOT
from utils.imaging.images import read_rgb
from utils.weights import read_checkpoint

REASON = "No space left on device|Input/output error|Permission denied"


def outcomes(cwd: Path, stride: int, command: str, *arguments: object) -> list[dict[str, Any]]:
    """What came of each run in which a call failed, and of the last, in which none did."""
    script = ROOT / "tests" / "faults.py"
    done = python(cwd, script, "start", stride, command, *arguments, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    for outcome in found:
        said, code = outcome["said"], outcome["code"]
        assert not re.search("Traceback|Exception ignored|Logging error", said), outcome
        lines = [line for line in re.split("[\r\n]", said) if re.search(REASON, line)]
        assert code in (0, 1) and (code == 0 or lines), outcome
        assert not list(Path(outcome["place"]).rglob("*.tmp")), outcome
    assert (found[-1]["call"], found[-1]["code"]) == ("", 0) and found[-1]["said"].count(
        "rror"
    ) == 0
    return found


def below(outcome: dict[str, Any]) -> set[str]:
    out = Path(outcome["place"], "out")
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def test_a_measurement(tmp_path: Path, save: Callable, noise: Callable) -> None:
    for name in "ab":
        save(tmp_path / "start" / "set" / "HR" / f"{name}.png", noise(12, 16))
    log = Path("out", "23_LKDN_set_cpu_eager_fp32.log")
    (tmp_path / "start" / "out").mkdir()
    (tmp_path / "start" / log).write_text("of a run before\n")
    options = ["--dataset", "set", "--save_dir", "out", "--device", "cpu"]
    found = outcomes(tmp_path, 1, "test_demo", *options)
    products = below(found[-1])
    assert len(products) == 6 and len(found) > 30
    for outcome in found:
        place, failed = Path(outcome["place"]), below(outcome) != products
        assert outcome["code"] == 1 or not failed, outcome
        assert "test_demo.py" not in outcome["said"], outcome  # it has not ended early
        text = (place / log).read_text()
        lost = "write" in outcome["call"] and log.name in outcome["call"]
        assert lost or re.search("of a run before|23_LKDN a:|set/a:", text), outcome
        for file in place.rglob("out/**/*"):
            if file.suffix == ".png":
                assert read_rgb(file).shape == (12, 16, 3)
            if file.suffix == ".json":
                json.loads(file.read_text())
    lines = (Path(found[-1]["place"]) / log).read_text().splitlines()
    assert [re.sub(".*LKDN (.):.*", r"\1", line) for line in lines] == ["a", "b"]
    # All but the image at which the disk failed, and of that run too the record.
    first = next(o for o in found if o["call"].startswith("write") and "/set/" in o["call"])
    assert below(first) == products - {"23_LKDN/set/a.png"}


def test_photos(tmp_path: Path, save: Callable, noise: Callable) -> None:
    for name in "ab":
        save(tmp_path / "start" / f"{name}.png", noise(6, 7))
    options = ["a.png", "b.png", "-o", "out", "--device", "cpu", "--backend", "eager"]
    found = outcomes(tmp_path, 1, "upscale", *options)
    assert len(found) > 8
    for outcome in found:
        written = below(outcome)
        assert len(written) == 2 - outcome["code"], outcome
        assert all(
            read_rgb(Path(outcome["place"], "out", name)).shape == (24, 28, 3) for name in written
        )


def test_training(tmp_path: Path, save: Callable, noise: Callable) -> None:
    """With a stride, for each run takes seconds."""
    save(tmp_path / "start" / "images" / "a.png", noise(48, 64))
    numbers = ["--out", "out/run", "--packed", "out/packed", "--steps", "2", "--save_every", "1"]
    found = outcomes(tmp_path, 7, "train.train", *OPTIONS.split(), *numbers)
    for outcome in found:
        if outcome["code"] == 0:
            assert "run/stage1.pt" in below(outcome)
            assert "run/curves.png" in below(outcome) or "no out/run/curves.png" in outcome["said"]


@pytest.fixture()
def training_folder(
    tmp_path: Path, save: Callable, noise: Callable, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The working directory, with images to train on."""
    save(tmp_path / "images" / "a.png", noise(48, 64))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_training_goes_on_where_an_image_is_too_large_to_score(
    training_folder: Path,
    save: Callable,
    noise: Callable,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A step is dearer than a score, and no option of a run that goes on would help."""

    def exhausted(*_: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    save(training_folder / "val" / "HR" / "b.png", noise(48, 64))
    validate = loop.evaluate.validate
    monkeypatch.setattr(loop.evaluate, "validate", exhausted)
    numbers = ["--out", "run", "--steps", "4", "--val", "val", "--val_every", "2"]
    assert train.main([*OPTIONS.split(), *numbers]) == 1
    said = capfd.readouterr().err
    assert "2 times a file was not written or a set not scored, first scores of val" in said
    assert read_checkpoint(training_folder / "run" / "stage1.pt")["step"] == 4
    # Nor does it cost another set's score.
    save(training_folder / "large" / "HR" / "c.png", noise(48, 64))

    def exhausted_by_c(net: nn.Module, samples: list[Any], device: object) -> Any:
        return exhausted() if samples[0].name == "c" else validate(net, samples, device)

    monkeypatch.setattr(loop.evaluate, "validate", exhausted_by_c)
    numbers = ["--out", "two", "--steps", "4", "--val", "val", "large", "--val_every", "2"]
    assert train.main([*OPTIONS.split(), *numbers]) == 1
    lines = [line for line in log.read(training_folder / "two" / "log.jsonl") if "val_psnr" in line]
    assert [(line["step"], line["val"], line.get("others")) for line in lines] == [
        *((2, "val", None), (4, "val", None))
    ]


def test_training_goes_on_where_log_and_checkpoint_cannot_be_written_meanwhile(
    training_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    append, write = log.append, checkpoint.save

    def append_after_step_2(path: Path, line: dict[str, Any]) -> None:
        if line["step"] > 2:
            return append(path, line)
        with path.open("a") as file:
            file.write('{"stage": "sta')
        raise OSError(28, os.strerror(28))

    def save_after_step_2(path: Path, state: checkpoint.State, *more: Any) -> None:
        if state.step <= 2:
            raise OSError(28, os.strerror(28))
        write(path, state, *more)

    monkeypatch.setattr(log, "append", append_after_step_2)
    monkeypatch.setattr(checkpoint, "save", save_after_step_2)
    numbers = ["--out", "run", "--steps", "4", "--save_every", "1"]
    assert train.main([*OPTIONS.split(), *numbers]) == 1
    said = capfd.readouterr().err
    assert (
        "train/train.py: the run is saved, but 4 times a file was not written or a set not" in said
    )
    assert (training_folder / "run" / "stage1.pt").exists()
    assert [line["step"] for line in log.read(training_folder / "run" / "log.jsonl")] == [3, 4]
