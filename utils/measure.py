"""Measure networks on a set, image by image in turns: one record a network."""

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from utils import efficiency, evaluate, record
from utils.bicubic import Convention
from utils.command import UserError
from utils.datasets import BENCHMARKS, ImageSet, Pair
from utils.files import sha256
from utils.imaging.images import BAD_IMAGE, ImageError, write_png
from utils.lock import locked
from utils.run_log import log_file
from utils.text import in_terminal

LR_SOURCES = {
    "double": "bicubic x1/4 of HR, MATLAB imresize, one rounding at the end (im2double first)",
    "uint8": "bicubic x1/4 of HR, MATLAB imresize, rounded to 8 bit after each pass",
}
FAILURES = (*BAD_IMAGE, OSError)  # of one image; the others go on

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A network ready to run. `name` is that of its results, `file` its checkpoint, or None where
    it has no weights and only what it costs is measured.

    `net` is the plain network, which is what is counted; `run` what restores, on a `backend` and
    in a `precision`: the plain network itself, or a faster form of it. Both take and give RGB in
    0..data_range.
    """

    name: str
    net: nn.Module
    file: Path | None
    run: Callable[[Tensor], Tensor]
    backend: str = "eager"
    precision: str = "fp32"
    data_range: float = 1.0


@dataclass(frozen=True)
class Options:
    """How a set is measured; the fields are test_demo.py's options."""

    save_dir: Path
    ssim: bool = False
    repeat: int = 1
    bicubic: Convention = "double"
    images: bool = True


@dataclass
class _Tally:
    """What one network has done: a record an image, what failed, the LR images for further passes
    and their times, the peak memory on CUDA."""

    model: Model
    images: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    again: list[Any] = field(default_factory=list)
    passes: list[list[float]] = field(default_factory=list)
    memory_mib: float | None = None


@contextmanager
def runs_locked(
    models: Sequence[Model], sets: Sequence[ImageSet], device: torch.device, options: Options
) -> Iterator[None]:
    """Keep other processes from measuring the same runs into the same folder.

    Raises:
        UserError: one does already, two of the runs have one name, or an image would be written
            over one of the set; nothing is locked then.
    """
    pairs = list(itertools.product(models, sets))
    stems = [record.run_stem(_conditions(*both, device, options)) for both in pairs]
    if twice := [s for s, n in Counter(map(str.casefold, stems)).items() if n > 1]:
        raise UserError(
            f"expected runs of different names, got two called {twice[0]}: rename a checkpoint or "
            "a set"
        )
    for model, image_set in pairs if options.images else ():
        for pair in image_set.pairs:
            file = _sr_file(model, image_set, pair, options)
            inputs = (path for path in (pair.hr, pair.lr) if path and path.exists())
            if file.exists() and any(map(file.samefile, inputs)):
                raise UserError(
                    f"expected a --save_dir in which no image of the set is replaced, got {file}: "
                    "give another, or --no_images"
                )
    with ExitStack() as stack:
        for stem in stems:
            file = options.save_dir / f".{stem}.lock"
            stack.enter_context(locked(file, f"the run {stem} in {options.save_dir}"))
        yield


def measure_set(
    models: Sequence[Model],
    image_set: ImageSet,
    device: torch.device,
    options: Options,
    keep: Callable[[list[dict[str, Any]]], None] = lambda runs: None,
) -> list[dict[str, Any]]:
    """Restore, time and score a set; for each network the run's record but for its counters.

    Several networks take turns image by image, so that what disturbs the machine disturbs all.
    Memory is measured on CUDA alone; on a CPU, where it would be that of all that the process did
    before, see `utils.peak_memory`.

    Args:
        keep: gets what the records would be after the first pass, before any other.
    """
    tallies = [_Tally(model) for model in models]
    runs = [_conditions(model, image_set, device, options) for model in models]
    with ExitStack() as stack:
        for tally, run in zip(tallies, runs, strict=True):
            file = options.save_dir / f"{record.run_stem(run)}.log"
            stack.enter_context(log_file(logger, file, tally.model.name, tally.failed))
        bar = stack.enter_context(
            tqdm(
                total=len(image_set.pairs) * len(models) * options.repeat,
                desc=in_terminal(f"{', '.join(m.name for m in models)} on {image_set.name}"),
                unit="image",
            )
        )
        for pair in image_set.pairs:
            _first_pass(tallies, pair, image_set, device, options, bar)
        for tally in tallies:
            tally.passes.append([image["runtime_ms"] for image in tally.images])
        first = replace(options, repeat=1)
        keep([r | _results(t, image_set, first) for t, r in zip(tallies, runs, strict=True)])
        bar.total = bar.n + sum(len(t.again) for t in tallies) * (options.repeat - 1)
        for _ in range(options.repeat - 1):
            for tally, times in zip(tallies, _times(tallies, device, bar), strict=True):
                tally.passes.append(times)
        for tally, run in zip(tallies, runs, strict=True):
            if tally.model.run is not tally.model.net:
                bar.total += len(tally.again)
                plain = _Tally(replace(tally.model, run=tally.model.net), again=tally.again)
                run["plain"] = asdict(efficiency.runtime(_times([plain], device, bar)))
                tally.failed += plain.failed
    return [r | _results(t, image_set, options) for t, r in zip(tallies, runs, strict=True)]


def _conditions(
    model: Model, image_set: ImageSet, device: torch.device, options: Options
) -> dict[str, Any]:
    checkpoint: dict[str, str | None] = {"name": None, "sha256": None}
    if model.file:
        checkpoint = {"name": model.file.name, "sha256": sha256(model.file)}
    return {
        "model": model.name,
        "dataset": image_set.name,
        "checkpoint": checkpoint,
        "lr_source": lr_source(image_set.pairs, options.bicubic),
        "backend": model.backend,
        "precision": model.precision,
        "environment": {**record.environment(device), "precision": model.precision},
        "flops_counter": efficiency.COUNTER,
    }


def _first_pass(
    tallies: list[_Tally],
    pair: Pair,
    image_set: ImageSet,
    device: torch.device,
    options: Options,
    bar: tqdm,
) -> None:
    """Restore, score and write one image with each network."""
    y_ssim = options.ssim or image_set.name in BENCHMARKS
    try:
        loaded = evaluate.load(pair, options.bicubic)
    except FAILURES as error:
        for tally in tallies:
            _fail(tally, f"{pair.name}: {error}", image_set)
            bar.update()
        return
    for tally in tallies:
        model, sample = tally.model, loaded
        try:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            sr, runtime_ms = evaluate.restore(model.run, sample.lr, device, model.data_range)
            if device.type == "cuda":
                peak = efficiency.peak_memory_mib(device) or 0
                tally.memory_mib = max(tally.memory_mib or 0, peak)
            if model.file is None:
                sample = replace(sample, hr=None)  # what has no weights is not scored
            image, problems = _scored(sample, sr, runtime_ms, options.ssim, y_ssim)
        except FAILURES as error:
            _fail(tally, f"{pair.name}: {error}", image_set)
            bar.update()
            continue
        tally.images.append(image)
        if options.repeat > 1 or model.run is not model.net:
            tally.again.append(sample.lr)
        logger.info("%s", _image_line(model, image), extra={"model": model.name})
        if options.images and model.file:
            file = _sr_file(model, image_set, pair, options)
            try:
                write_png(file, sr)
                image["png_sha256"] = sha256(file)
            except FAILURES as error:
                problems.append(str(error))
        for problem in problems:
            _fail(tally, f"{pair.name}: {problem}", image_set)
        bar.update()


def _sr_file(model: Model, image_set: ImageSet, pair: Pair, options: Options) -> Path:
    return options.save_dir / model.name / image_set.name / f"{pair.name}.png"


def _scored(
    sample: evaluate.Sample, sr: NDArray[np.uint8], runtime_ms: float, ssim: bool, y_ssim: bool
) -> tuple[dict[str, Any], list[str]]:
    """An image's part of the record, and why it has no SSIM if that was asked for."""
    try:
        return evaluate.measured(sample, sr, runtime_ms, ssim, y_ssim), []
    except ImageError as error:
        if not (ssim or y_ssim):
            raise
        # It may be too small for SSIM's window alone.
        return evaluate.measured(sample, sr, runtime_ms, False, False), [str(error)]


def _fail(tally: _Tally, failure: str, image_set: ImageSet) -> None:
    tally.failed.append(failure)
    line = in_terminal(f"{image_set.name}/{failure}")
    logger.error("%s", line, extra={"model": tally.model.name})


def _times(tallies: list[_Tally], device: torch.device, bar: tqdm) -> list[list[float]]:
    """Milliseconds of one more pass of each network over its LR images, in turns."""
    times: list[list[float]] = [[] for _ in tallies]
    for i in range(max(len(tally.again) for tally in tallies)):
        for tally, own in zip(tallies, times, strict=True):
            if i >= len(tally.again):
                continue
            try:
                own.append(
                    evaluate.restore(
                        tally.model.run, tally.again[i], device, tally.model.data_range
                    )[1]
                )
            except BAD_IMAGE as error:
                tally.failed.append(f"a further pass: {error}")
            bar.update()
    return times


def _results(tally: _Tally, image_set: ImageSet, options: Options) -> dict[str, Any]:
    times = efficiency.runtime(tally.passes)
    averages = ("psnr", "psnr_y", "ssim", "ssim_y", "psnr_bicubic", "psnr_y_bicubic")
    return {
        **{f"ave_{key}": evaluate.mean_of(tally.images, key) for key in averages},
        "ave_runtime_ms": times.average,
        "median_runtime_ms": times.median,
        "p20_runtime_ms": times.p20,
        "p80_runtime_ms": times.p80,
        "repeat": options.repeat,
        "memory_mib": tally.memory_mib,
        "images_in_set": len(image_set.pairs),
        "images": tally.images,
        "failed": list(tally.failed),
    }


def lr_source(pairs: Sequence[Pair], convention: str) -> str:
    """Where the LR images of a set come from, in words for the record."""
    folders = sorted({"/".join(pair.lr.parent.parts[-2:]) for pair in pairs if pair.lr})
    return f"files in {', '.join(folders)}" if folders else LR_SOURCES[convention]


def _image_line(model: Model, image: dict[str, Any]) -> str:
    width, height = image["size"]
    name = in_terminal(image["name"])
    line = f"{model.name} {name}: {width}x{height}, {image['runtime_ms']:.2f} ms"
    if image["psnr"] is not None:
        line += f", PSNR {image['psnr']:.2f} dB (bicubic {image['psnr_bicubic']:.2f} dB)"
    return line
