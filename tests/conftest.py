"""What several test files share: reference folder, small images, command lines, one small run."""

import json
import logging
import os
import subprocess
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import warm_python
from numpy.typing import NDArray

import upscale
from models.team23_LKDN import LKDN

pytest_plugins = ("mirror",)
ROOT = Path(__file__).resolve().parent.parent

Image = NDArray[np.uint8]
OPTIONS = """
    --data images --packed packed --stage 1 --steps 12 --batch 2 --patch 32
    --optimizer muon --lr 0.01 --schedule cosine --warmup 2 --ema 0.9 --seed 4
    --threads 1 --device cpu --log_every 1 --save_every 3 --val_every 4
"""


def pytest_configure() -> None:
    # Small tensors gain nothing from a second thread, and on a busy machine the two wait for
    # each other for minutes.
    torch.set_num_threads(1)
    # For what the tests start, and their own processes: threads that wait do not spin, which
    # doubles the time of whatever else runs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """File names that are no UTF-8 are logged, and a report travels as UTF-8 between processes."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the repository with published weights and test sets."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs published weights and images in {folder}, which is not there")
    return folder


@pytest.fixture(scope="session")
def noise() -> Callable[..., Image]:
    """(height, width, seed) -> independent random pixels: every misplaced pixel shows."""

    def make(height: int, width: int, seed: int = 0) -> Image:
        rng = np.random.default_rng(seed)
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)

    return make


@pytest.fixture(scope="session")
def positions() -> Callable[..., Image]:
    """(height, width, ident) -> pixels (row, column, ident): each tells where it came from."""

    def make(height: int, width: int, ident: int) -> Image:
        rows, columns = np.mgrid[:height, :width]
        return np.dstack((rows, columns, np.full_like(rows, ident))).astype(np.uint8)

    return make


@pytest.fixture(scope="session")
def save() -> Callable[[Path, Image], Path]:
    """Write an RGB image with OpenCV, folders included."""

    def write(path: Path, rgb: Image) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        ok, encoded = cv2.imencode(path.suffix, rgb[..., ::-1] if rgb.ndim == 3 else rgb)
        assert ok
        path.write_bytes(encoded.tobytes())
        return path

    return write


@pytest.fixture(scope="session")
def random_net() -> LKDN:
    """The challenge's network with weights that nobody trained."""
    torch.manual_seed(0)
    return LKDN().eval().requires_grad_(False)


@pytest.fixture(scope="session")
def random_weights(random_net: LKDN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their file, random.pth."""
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(random_net.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python ARGUMENTS` in folder `cwd`; a keyword is an environment variable."""
    return warm_python.python


@pytest.fixture()
def enlarge(
    random_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Generator[Callable[..., int]]:
    """main() in this process, in tmp_path, with random weights on the plain backend."""
    monkeypatch.chdir(tmp_path)
    levels = {logger: logger.level for logger in map(logging.getLogger, ("upscale", "deploy"))}

    def main(*arguments: object) -> int:
        options = ["--checkpoint", random_weights] if "--checkpoint" not in arguments else []
        options += ["--device", "cpu"] if "--device" not in arguments else []
        options += ["--backend", "eager"] if "--backend" not in arguments else []
        try:
            return upscale.main([str(argument) for argument in (*arguments, *options)])
        except SystemExit as stopped:  # argparse
            return int(str(stopped.code))

    yield main
    for logger, level in levels.items():
        logger.setLevel(level)


@pytest.fixture(scope="session")
def run_triton(python: Callable) -> Callable[[str, str], None]:
    """Run a script of the repository's root on a device: "cuda", or "cpu", interpreted."""

    def run(script: str, device: str) -> None:
        interpreted = {"TRITON_INTERPRET": "1"} if device == "cpu" else {}
        done = python(ROOT, "-c", script, device, **interpreted)
        assert done.returncode == 0, done.stderr[-3000:]

    return run


@pytest.fixture(scope="session")
def place(
    tmp_path_factory: pytest.TempPathFactory, noise: Callable[..., Image], save: Callable
) -> Path:
    """A working directory with training images and one to validate on."""
    folder = tmp_path_factory.mktemp("training")
    for seed in range(4):
        save(folder / "images" / f"{seed}.png", noise(48 + 4 * seed, 64, seed))
    save(folder / "held out" / "v.png", noise(24, 28, seed=9))
    return folder


@pytest.fixture(scope="session")
def train(place: Path, python: Callable) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run train.py, or `script` around it, from another directory; it never shows a traceback.

    Momentum, schedule and average all matter to whoever resumes a run of these OPTIONS.
    """

    def run(
        out: str | Path, *options: object, script: Sequence[object] = (ROOT / "train/train.py",)
    ) -> subprocess.CompletedProcess[str]:
        done = python(place, *script, *OPTIONS.split(), "--out", out, *options)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def uninterrupted(place: Path, train: Callable) -> Path:
    """The folder of a finished run that nothing happened to."""
    done = train("uninterrupted", "--val", "held out")
    assert done.returncode == 0, done.stderr
    return place / "uninterrupted"


@pytest.fixture(scope="session")
def logged() -> Callable[[Path], list[dict[str, Any]]]:
    """All lines of a run's log, without the speed, which no two runs share."""

    def read(run: Path) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if k != "images_per_s"} for line in lines]

    return read
