"""The judge's command: restore a set of images with LKDN and print the challenge's figures."""

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from utils import devices, efficiency, evaluate, record, summary
from utils.datasets import BENCHMARKS, DatasetError, ImageSet, Pair, find
from utils.images import ImageError, write_png
from utils.weights import CheckpointError, load_weights

ROOT = Path(__file__).resolve().parent
logger = logging.getLogger("test_demo")

LR_SOURCES = {
    "double": "bicubic x1/4 of HR, MATLAB imresize, one rounding at the end (im2double first)",
    "uint8": "bicubic x1/4 of HR, MATLAB imresize, rounded to 8 bit after each pass",
}


# What concerns one image and not the others; running out of memory is a RuntimeError on a CPU.
BAD_IMAGE = (ImageError, FloatingPointError, MemoryError, RuntimeError)


class UsageError(ValueError):
    """Options that do not go together; the message says what to do."""


@dataclass(frozen=True)
class Model:
    """A network ready to run. `name` is that of its results, `file` its checkpoint.

    `net` is the plain network, which is what is counted; `run` what restores, on a `backend` and
    in a `precision`: the plain network itself, or a faster form of it.
    """

    name: str
    net: nn.Module
    file: Path
    run: Callable[[Tensor], Tensor]
    backend: str = "eager"
    precision: str = "fp32"


def select_model(
    model_id: int,
    device: torch.device,
    checkpoint: str = "shipped",
    backend: str = "eager",
    precision: str = "fp32",
) -> Model:
    """The network of an ID with its weights; the one place to add a model.

    Args:
        model_id: 23 is LKDN.
        device: where it runs.
        checkpoint: a file, or "shipped" for the one in model_zoo/.
        backend, precision: see deploy/backends.py, which only other than the defaults need.

    Raises:
        UsageError: no model has this ID, or the backend cannot run here.
        CheckpointError: the file is missing or not this network's.
    """
    if model_id == 23:
        from models.team23_LKDN import LKDN

        name, net, file = "23_LKDN", LKDN(), ROOT / "model_zoo" / "team23_LKDN.pth"
    else:
        raise UsageError(f"expected a --model_id of 23 (LKDN), got {model_id}")
    if checkpoint != "shipped":
        file = Path(checkpoint)
        name = f"{name}@{file.stem}"
    load_weights(net, file)
    net = net.eval().requires_grad_(False).to(device)
    if (backend, precision) == ("eager", "fp32"):
        return Model(name, net, file, net)
    try:
        from deploy.backends import BackendError, make

        fast = make(backend, net, precision, device)
    except ImportError as error:
        raise UsageError(f"--backend and --precision need deploy/: {error}") from error
    except BackendError as error:
        raise UsageError(str(error)) from error
    return Model(name, net, file, fast, fast.name, fast.precision)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger().handlers[0].setLevel(logging.INFO if args.verbose else logging.WARNING)
    logger.setLevel(logging.INFO)
    devices.prepare_cpu()
    try:
        device = devices.select_device(args.device)
        sets = find_sets(args)
        models = [select_model(args.model_id, device, checkpoint, args.backend, args.precision)
                  for checkpoint in args.checkpoint or ["shipped"]]
        if len({m.name for m in models}) < len(models) or len({s.name for s in sets}) < len(sets):
            raise UsageError("expected checkpoints and sets of different names, got two of one "
                             "name, whose results would overwrite each other: rename one")
        make_save_dir(args.save_dir)
    except (UsageError, DatasetError, CheckpointError, devices.DeviceError, OSError) as error:
        print(f"test_demo.py: {error}", file=sys.stderr)
        return 2
    failures: list[str] = []
    try:
        for model in models:
            counts: dict[str, Any] = {}
            for image_set in sets:
                run = run_set(args, model, image_set, device)
                # Counted after the timing: it would warm the device up for the cold first image.
                counts = counts or asdict(efficiency.count(model.net))
                run |= counts
                failures += run["failed"]
                if run["images"]:
                    path = record.write_run(args.save_dir, run).resolve()
                    near = path.is_relative_to(Path.cwd())
                    print(summary.text(run, path.relative_to(Path.cwd()) if near else path))
    except KeyboardInterrupt:
        print(f"interrupted; finished images are in {args.save_dir}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"test_demo.py: cannot write results: {error}", file=sys.stderr)
        return 1
    if failures:
        print(f"\n{len(failures)} images failed:", *failures, sep="\n  ", file=sys.stderr)
    return 1 if failures else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--model_id", type=int, default=23, help="23 is LKDN")
    add("--data_dir", type=Path, help="where named sets lie; without it, data/")
    add("--dataset", nargs="+", metavar="NAME",
        help="DIV2K_valid, DIV2K_test, LSDIR_DIV2K_test, " + ", ".join(BENCHMARKS) +
        ", benchmarks (all of these that are there), demo, or any folder with HR/ and maybe LR/; "
        "without it, DIV2K_valid, or the demo photos if that is not under data/")
    add("--save_dir", type=Path, default=ROOT / "results", help="where results go")
    add("--include_test", action="store_true", help="measure DIV2K_test too")
    add("--hybrid_test", action="store_true", help="measure LSDIR_DIV2K_test too")
    add("--ssim", action="store_true", help="compute SSIM, on RGB and on luma")
    add("--checkpoint", nargs="+", action="extend", metavar="FILE",
        help="weights to use instead of the shipped ones; the word shipped stands for those")
    add("--device", choices=devices.NAMES, default="auto", help="where to run")
    add("--backend", default="eager",
        help="what runs the network: eager is the plain one, as the challenge measures it; "
        "channels_last, compile, triton, native, onnxruntime, openvino; auto is the fastest of "
        "these that runs here and is as exact")
    add("--precision", default="fp32", help="of weights and features: fp32, fp16, bf16")
    add("--repeat", type=int, default=1, metavar="N",
        help="passes over each set; the first gives the challenge's mean runtime, the others only "
        "the warm median")
    add("--bicubic", choices=sorted(LR_SOURCES), default="double",
        help="how LR is made where there is no file: rounded once, or after each 8-bit pass")
    add("--no_images", action="store_true", help="do not write the restored images")
    add("--verbose", action="store_true", help="print a line an image")
    args = parser.parse_args(argv)
    if args.repeat < 1:
        parser.error(f"expected --repeat of at least 1, got {args.repeat}")
    return args


def make_save_dir(folder: Path) -> None:
    """Create the folder of the results, or UsageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}") from error


def find_sets(args: argparse.Namespace) -> list[ImageSet]:
    """The sets that were asked for, or the default one, saying which."""
    data_dir = args.data_dir or ROOT / "data"
    names = list(args.dataset or ["DIV2K_valid"])
    names += ["DIV2K_test"] * args.include_test + ["LSDIR_DIV2K_test"] * args.hybrid_test
    if not args.dataset and not args.data_dir:
        try:
            find("DIV2K_valid", data_dir)
        except DatasetError:
            print(f"DIV2K_valid is not under {data_dir}: measuring the demo photos instead. "
                  "data/README.md says how to get DIV2K.")
            names[0] = "demo"
    sets = []
    for name in dict.fromkeys(names):
        if name == "benchmarks":
            sets += _found_benchmarks(data_dir)
        else:
            sets.append(find(name, data_dir))
    return sets


def _found_benchmarks(data_dir: Path) -> list[ImageSet]:
    found, absent = [], {}
    for name in BENCHMARKS:
        try:
            found.append(find(name, data_dir))
        except DatasetError as error:
            absent[name] = str(error)
    if not found:
        raise DatasetError("\n".join(absent.values()))
    if absent:
        print(f"benchmark sets not in {data_dir}: {', '.join(absent)}")
    return found


def run_set(
    args: argparse.Namespace,
    model: Model,
    image_set: ImageSet,
    device: torch.device,
) -> dict[str, Any]:
    """Restore, time and score a set; the run's record but for the counters, and what failed."""
    images: list[dict[str, Any]] = []
    failed: list[str] = []
    again: list[Any] = []  # LR images for the passes after the first
    y_ssim = args.ssim or image_set.name in BENCHMARKS
    run: dict[str, Any] = {
        "model": model.name,
        "dataset": image_set.name,
        "checkpoint": {"name": model.file.name, "sha256": record.sha256(model.file)},
        "lr_source": lr_source(image_set.pairs, args.bicubic),
        "backend": model.backend,
        "precision": model.precision,
        "environment": {**record.environment(device), "precision": model.precision},
        "flops_counter": efficiency.COUNTER,
    }
    efficiency.reset_peak_memory(device)
    folder = args.save_dir / model.name / image_set.name
    with _log_file(args.save_dir / f"{record.run_stem(run)}.log"), tqdm(
        total=len(image_set.pairs) * args.repeat, desc=f"{model.name} {image_set.name}",
        unit="image",
    ) as bar:
        for pair in image_set.pairs:
            try:
                sample = evaluate.load(pair, args.bicubic)
                sr, runtime_ms = evaluate.restore(model.run, sample.lr, device)
                image = evaluate.measured(sample, sr, runtime_ms, args.ssim, y_ssim)
                if not args.no_images:
                    write_png(folder / f"{pair.name}.png", sr)
            except BAD_IMAGE as error:
                failed.append(f"{pair.name}: {error}")
                logger.error("%s/%s", image_set.name, failed[-1])
            else:
                images.append(image)
                if args.repeat > 1 or model.run is not model.net:
                    again.append(sample.lr)
                logger.info("%s", _image_line(image))
            bar.update()
        bar.total = len(image_set.pairs) + len(again) * (args.repeat - 1)
        passes = [[image["runtime_ms"] for image in images]]
        for _ in range(args.repeat - 1):
            passes.append(_times(model.run, again, device, failed, bar))
        memory_mib = efficiency.peak_memory_mib(device)  # before the plain network adds its own
        if model.run is not model.net:
            bar.total += len(again)
            run["plain"] = asdict(
                efficiency.runtime([_times(model.net, again, device, failed, bar)])
            )
    times = efficiency.runtime(passes)
    return run | {
        "ave_psnr": evaluate.mean_of(images, "psnr"),
        "ave_psnr_y": evaluate.mean_of(images, "psnr_y"),
        "ave_ssim": evaluate.mean_of(images, "ssim"),
        "ave_ssim_y": evaluate.mean_of(images, "ssim_y"),
        "ave_psnr_bicubic": evaluate.mean_of(images, "psnr_bicubic"),
        "ave_psnr_y_bicubic": evaluate.mean_of(images, "psnr_y_bicubic"),
        "ave_runtime_ms": times.average,
        "median_runtime_ms": times.median,
        "p20_runtime_ms": times.p20,
        "p80_runtime_ms": times.p80,
        "repeat": args.repeat,
        "memory_mib": memory_mib,
        "images": images,
        "failed": failed,
    }


def _times(
    run: Callable[[Tensor], Tensor],
    images: list[Any],
    device: torch.device,
    failed: list[str],
    bar: tqdm,
) -> list[float]:
    """Milliseconds of one more pass over LR images."""
    times = []
    for lr in images:
        try:
            times.append(evaluate.restore(run, lr, device)[1])
        except BAD_IMAGE as error:
            failed.append(f"a further pass: {error}")
        bar.update()
    return times


def lr_source(pairs: Sequence[Pair], convention: str) -> str:
    """Where the LR images of a set come from, in words for the record."""
    folders = sorted({"/".join(pair.lr.parent.parts[-2:]) for pair in pairs if pair.lr})
    return f"files in {', '.join(folders)}" if folders else LR_SOURCES[convention]


def _image_line(image: dict[str, Any]) -> str:
    width, height = image["size"]
    line = f"{image['name']}: {width}x{height}, {image['runtime_ms']:.2f} ms"
    if image["psnr"] is not None:
        line += f", PSNR {image['psnr']:.2f} dB (bicubic {image['psnr_bicubic']:.2f} dB)"
    return line


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Send this run's log lines to a file too."""
    handler = logging.FileHandler(path, mode="w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


if __name__ == "__main__":
    sys.exit(main())
