"""The judge's command: restore a set of images with LKDN and print the challenge's figures."""

import argparse
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # As Python sets it, but with -P.
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parent)]
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while libraries are loaded

import torch

from utils import command, devices, efficiency, measure, peak_memory, record
from utils.command import UserError
from utils.datasets import BENCHMARKS, CHALLENGE, ImageSet, benchmarks_in, find, is_there
from utils.files import ROOT
from utils.measure import Model, Options
from utils.networks import Entry, call, entry_of, listed, make_network
from utils.report import comparison, page, summary
from utils.text import in_terminal
from utils.weights import load_weights, named_weights

# Validation sets of the challenge, of which the first that is there is measured.
DEFAULTS = ("DIV2K_valid", "DIV2K_LSDIR_valid")

MODELS = (
    Entry(0, "RFDN", "models.team00_RFDN:RFDN", "team00_rfdn.pth", 255.0, shipped=False),
    Entry(23, "LKDN", "models.team23_LKDN:LKDN", "team23_LKDN.pth"),
)


def select_model(
    model_id: int,
    device: torch.device,
    checkpoint: str = "shipped",
    backend: str = "eager",
    precision: str = "fp32",
) -> Model:
    """The network of an ID with its weights; a line in MODELS adds one.

    Args:
        model_id: one of MODELS.
        device: where it runs.
        checkpoint: FILE, FILE:params or the like, or "shipped" for the one in model_zoo/.
        backend, precision: see deploy/backends.py, which only other than the defaults need.

    Raises:
        UserError: no model has this ID, or two have it, or its file cannot be imported, or the
            backend cannot run here.
        CheckpointError: the file is missing or not this network's.
    """
    entry = entry_of(MODELS, model_id)
    net, name = make_network(entry.network), entry.label
    path, key = named_weights(entry.file if checkpoint == "shipped" else checkpoint)
    file: Path | None = path
    if checkpoint != "shipped":
        name += f"@{path.stem}" + (f"_{key}" if key else "")
    else:
        file = ROOT / "model_zoo" / path
        file = file if entry.shipped or file.exists() else None
    if file:
        load_weights(net, file, key)
    if entry.after_loading:
        call(net, entry.after_loading)
    net = net.eval().requires_grad_(False).to(device)
    if (backend, precision) == ("eager", "fp32"):
        return Model(name, net, file, net, data_range=entry.data_range)
    if model_id != 23:
        raise UserError(
            f"expected --model_id 23 with --backend and --precision, got {model_id}, "
            "which runs as it is: leave them out"
        )
    try:
        from deploy.backends import make
    except ImportError as error:
        raise UserError(f"--backend and --precision need deploy/: {error}") from error
    fast = make(backend, net, precision, device)
    return Model(name, net, file, fast, fast.name, fast.precision, entry.data_range)


def main(argv: list[str] | None = None) -> int:
    """The command; its exit code."""
    args = parse(argv)
    command.show_log(logging.WARNING)
    logging.getLogger().handlers[0].setLevel(logging.INFO if args.verbose else logging.WARNING)
    logging.getLogger("utils").setLevel(logging.INFO)
    devices.prepare_cpu(keep_memory=not args.memory_of)
    where = "" if args.memory_of else f"; what was finished is in {args.save_dir}"
    return command.run("test_demo.py", lambda: judge(args), interrupted=f"interrupted{where}")


def judge(args: argparse.Namespace) -> int:
    """Measure what was asked for and print it; the exit code.

    Raises:
        UserError: options that do not go together, or what they name is not there.
    """
    device = devices.select_device(args.device)
    sets = [] if args.memory_of else find_sets(args)
    choices = chosen(args.model_id, args.checkpoint)
    models = [
        select_model(model_id, device, checkpoint, args.backend, args.precision)
        for model_id, checkpoint in choices
    ]
    if args.memory_of:
        command.print_answer(peak_memory.memory_of(models, args.memory_of, device))
        return command.GOOD
    command.make_folder(args.save_dir)
    options = Options(args.save_dir, args.ssim, args.repeat, args.bicubic, not args.no_images)
    with measure.runs_locked(models, sets, device, options):
        runs, failures = measure_sets(choices, models, sets, device, options)
    print(comparison.text(runs), end="")
    if args.report and any(run["images"] for run in runs):
        file = args.save_dir / "report.html"
        try:
            page.write(args.save_dir, file, args.data_dir or ROOT / "data", sets)
            print(f"\nReport in {file}")
        except (UserError, OSError) as error:
            failures.append(f"report: {error}")
    if failures:
        print(f"\n{len(failures)} failed:", *in_terminal(failures), sep="\n  ", file=sys.stderr)
    return command.FAILED if failures else command.GOOD


def measure_sets(
    choices: Sequence[tuple[int, str]],
    models: Sequence[Model],
    sets: Sequence[ImageSet],
    device: torch.device,
    options: Options,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Measure, record and print every network on every set; the runs and what failed."""
    runs: list[dict[str, Any]] = []
    counts: dict[str, dict[str, int]] = {}
    failures: list[str] = []

    def counted(model: Model, run: dict[str, Any]) -> dict[str, Any]:
        if model.name not in counts:
            # After the first pass: it might warm the device up for the cold first image.
            counts[model.name] = asdict(efficiency.count(model.net))
        return run | counts[model.name]

    def keep(measured: list[dict[str, Any]]) -> None:
        """Record what the first pass gave: what follows takes time, in which much may end it."""
        for model, run in zip(models, measured, strict=True):
            if run["images"]:
                record.recorded(counted(model, run), options.save_dir, [])

    for image_set in sets:
        measured = measure.measure_set(models, image_set, device, options, keep)
        for choice, model, run in zip(choices, models, measured, strict=True):
            if device.type != "cuda" and run["images"]:
                run |= peak_memory.memory_alone(run, again(choice, model, device))
            runs.append(counted(model, run))
            failures += [f"{model.name}, {f}" if len(models) > 1 else f for f in run["failed"]]
            if run["images"]:
                print(summary.text(runs[-1], record.recorded(runs[-1], options.save_dir, failures)))
    return runs, failures


def again(choice: tuple[int, str], model: Model, device: torch.device) -> list[str]:
    """This command for one of its models alone."""
    model_id, checkpoint = choice
    options = ["--model_id", f"{model_id}", "--checkpoint", f"{model_id}={checkpoint}"]
    options += ["--backend", model.backend, "--precision", model.precision]
    return [sys.executable, __file__, *options, "--device", device.type]


def chosen(model_ids: Sequence[int], checkpoints: Sequence[str] | None) -> list[tuple[int, str]]:
    """Each model with each of its checkpoints, the shipped one where none is named.

    Raises:
        UserError: a checkpoint without ID= where there are several models, or of another model.
    """
    files: dict[int, list[str]] = {model_id: [] for model_id in model_ids}
    for text in checkpoints or []:
        named = re.fullmatch(r"(\d+)=(.+)", text)
        if not named and len(files) > 1:
            raise UserError(f"expected --checkpoint ID=FILE with several models, got {text}")
        model_id, file = (int(named[1]), named[2]) if named else (model_ids[0], text)
        if model_id not in files:
            raise UserError(f"expected --checkpoint for a model of --model_id, got {text}")
        files[model_id].append(file)
    return [(model_id, file) for model_id in files for file in files[model_id] or ["shipped"]]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Options of one run; argparse ends the process with 2 and a message if one is wrong."""
    parser = command.parser(__doc__)
    add = parser.add_argument
    add(
        "--model_id",
        type=int,
        nargs="+",
        default=[23],
        metavar="ID",
        help=f"{listed(MODELS)}; several take turns image by image and are compared",
    )
    add("--data_dir", type=command.path, help="where named sets lie; without it, data/")
    add(
        "--dataset",
        nargs="+",
        metavar="NAME",
        help=", ".join(CHALLENGE + BENCHMARKS)
        + ", benchmarks (all of these that are there), demo, or any folder with HR/ and maybe LR/; "
        "without it, DIV2K_valid or DIV2K_LSDIR_valid, or the demo photos if neither is in data/",
    )
    add("--save_dir", type=command.path, default=ROOT / "results", help="where results go")
    add("--include_test", action="store_true", help="measure the test set too")
    add("--hybrid_test", action="store_true", help="measure LSDIR_DIV2K_test instead of validation")
    add("--ssim", action="store_true", help="compute SSIM, on RGB and on luma")
    add(
        "--checkpoint",
        nargs="+",
        action="extend",
        metavar="[ID=]FILE[:KEY]",
        help="weights to use instead of the shipped ones, for which the word shipped stands; with "
        "several models ID= says whose; KEY, params or params_ema, which of a file with several",
    )
    add("--device", choices=devices.NAMES, default="auto", help="where to run")
    add(
        "--backend",
        default="eager",
        help="what runs the network: eager is the plain one, as the challenge measures it; "
        "channels_last, compile, triton, native, onnxruntime, openvino; auto is the fastest of "
        "these that runs here, as exact as --precision allows",
    )
    add("--precision", default="fp32", help="of weights and features: fp32, fp16, bf16")
    add(
        "--repeat",
        type=int,
        default=1,
        metavar="N",
        help="passes over each set; the first gives the challenge's mean runtime, the others only "
        "the warm median",
    )
    add(
        "--bicubic",
        choices=sorted(measure.LR_SOURCES),
        default="double",
        help="how LR is made where there is no file: rounded once, or after each 8-bit pass",
    )
    add(
        "--memory_of",
        type=command.size,
        metavar="WxH",
        help="only print the MiB that restoring one LR image of this size needs",
    )
    add("--no_images", action="store_true", help="do not write the restored images")
    add("--report", action="store_true", help="make a page of all runs: SAVE_DIR/report.html")
    add("--verbose", action="store_true", help="print a line an image, and whole errors")
    args = parser.parse_args(argv)
    if args.repeat < 1:
        parser.error(f"expected --repeat of at least 1, got {args.repeat}")
    return args


def find_sets(args: argparse.Namespace) -> list[ImageSet]:
    """The sets that were asked for, or the default one, saying which."""
    if args.data_dir and not os.path.isdir(args.data_dir):
        raise UserError(f"expected a folder, found none: --data_dir {args.data_dir}")
    data_dir = args.data_dir or ROOT / "data"
    # A folder that is not asked for may be unreadable.
    wanted = DEFAULTS if args.include_test or not (args.dataset or args.hybrid_test) else ()
    there = next((name for name in wanted if is_there(name, data_dir)), None)
    challenge = there or DEFAULTS[0]
    names = list(dict.fromkeys(args.dataset or [challenge] * (not args.hybrid_test)))
    names += [challenge.replace("valid", "test")] * args.include_test
    names += ["LSDIR_DIV2K_test"] * args.hybrid_test
    asked = args.dataset or args.data_dir or args.hybrid_test
    if not asked and not there:
        print(
            f"{challenge} is not under {data_dir}: measuring the demo photos instead. "
            "data/README.md says how to get DIV2K."
        )
        names[0] = "demo"
    if "benchmarks" in names:
        at = names.index("benchmarks")
        names[at : at + 1] = found = benchmarks_in(data_dir)
        if absent := [name for name in BENCHMARKS if name not in found]:
            print(f"benchmark sets not in {data_dir}: {', '.join(absent)}")
    return [find(name, data_dir) for name in dict.fromkeys(names)]


if __name__ == "__main__":
    command.start(main)
