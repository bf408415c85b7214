"""Make weights to run: python train/export.py RUN_OR_CHECKPOINT [-o FILE | --ship]

Averaged weights -> inference form -> compared with the training form in float64 -> a file beside
the run, FILE, or with --ship the one in model_zoo/. The weights of a run are scaled down where half
precision could not hold the network's numbers.
"""

import argparse
import hashlib
import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":
    # In place of train/, where `train` would be train.py.
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parent.parent)]

from kernels.fold import reduced
from models.team23_LKDN import LKDN
from train import log
from train.checkpoint import load_form, weights_of
from train.commands import commands
from train.packing import digests, held_out_images
from train.records import (
    STATES,
    last_stage,
    training_records,
    warn_of_unfinished,
    with_teachers,
    without_digests,
)
from train.reparam import fuse
from utils import command
from utils.files import ROOT, as_json, is_writable_as_file, sha256, write_all, write_bytes
from utils.imaging.images import find_images
from utils.record import ENTRY, PUBLISHED
from utils.report import documents
from utils.weights import SHIPPED, CheckpointError, read_checkpoint

TRAINING_RECORD = PUBLISHED / f"{ENTRY}_training.json"
# Both forms computed in float64 differ by rounding alone: some 1e-14 at values near 1.
TOLERANCE = 1e-10
# Largest change, of values near 1, for which weights are scaled down to fit half precision.
REDUCED = 1e-5
SHAPES = {name: value.shape for name, value in LKDN().state_dict().items()}
SIZES = ((1, 1), (5, 3), (48, 64))  # 1 pixel and narrow: all border, where a wrong fuse shows

logger = logging.getLogger("export")


def main(argv: list[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source",
        type=command.path,
        metavar="RUN_OR_CHECKPOINT",
        help="folder of a run (its last stage is taken), or a training-form file",
    )
    parser.add_argument(
        "--held_out",
        type=command.path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders of images that must not have been trained on, besides the "
        "validation, test and benchmark sets in data/",
    )
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "-o", "--output", type=command.file, metavar="FILE", help="write there, not beside the run"
    )
    target.add_argument(
        "--ship",
        action="store_true",
        help="replace the weights in model_zoo/, their training record, the model card and the "
        "tables of the other documents",
    )
    args = parser.parse_args(argv)
    command.show_log()

    def work() -> None:
        named = [file for folder in args.held_out for file in find_images(folder)]
        export(args.source, args.output, [*held_out_images(ROOT / "data"), *named], args.ship)

    return command.run("train/export.py", work, (FileNotFoundError,), (ArithmeticError,))


def export(
    source: Path, output: Path | None = None, held_out: Sequence[Path] = (), ship: bool = False
) -> None:
    """Fuse a checkpoint's averaged weights, check them, and write a plain state dict to `output`,
    or beside the checkpoint: stage1_fused.pth of stage1.pt.

    With `ship` the weights are shipped: model_zoo/, the training record in results/published/ and
    the model card are replaced. That is refused for a run that saw one of the images `held_out`,
    or that began with weights of unknown training.

    Raises:
        CheckpointError: no LKDN in the form that train.py trains, or `output` in model_zoo/, or a
            folder or device, or, to be shipped, no whole record of its training, or a held-out
            image among its data.
        ArithmeticError: the two forms differ, or the weights are not usable.
        OSError: a file cannot be written.
    """
    file = last_stage(source) if source.is_dir() else source
    saved = read_checkpoint(file)
    records = training_records(saved, file.parent)
    target = SHIPPED if ship else output or file.with_name(f"{file.stem}_fused.pth")
    if not ship and target.resolve().parent == SHIPPED.parent:
        raise CheckpointError(
            f"expected --ship to write into model_zoo/, got {target} without it: give -o FILE"
        )
    if target.name in STATES or target.exists() and target.samefile(file):
        raise CheckpointError(
            f"expected another name than that of a training state, which would be lost, got "
            f"{target}: give another -o FILE"
        )
    if not is_writable_as_file(target):
        raise CheckpointError(
            f"expected to write a file, got a folder or a device: {target}: give -o FILE"
        )
    compared = 0
    if ship:
        if not records:
            raise CheckpointError(
                f"expected a checkpoint of train/train.py to ship, got weights without a training "
                f"record: {file}; leave out --ship to only fuse them"
            )
        compared = check_data(records, held_out, file)
    if records:
        warn_of_unfinished(records[-1], file)
    form_name = records[-1]["stage"]["form"] if records else "training"
    form = load_form(weights_of(saved, file), file, form_name).double()
    plain = fuse(form)
    difference = largest_difference(form, plain)
    if not difference <= TOLERANCE:
        raise ArithmeticError(
            f"expected both forms equal to {TOLERANCE:g}, got a difference of "
            f"{difference:g}: {file} was not written"
        )
    if ship and {k: v.shape for k, v in plain.state_dict().items()} != SHAPES:
        raise CheckpointError(
            f"expected the entry's network to ship, got one of {plain.fea_conv.pw.out_channels} "
            f"channels and {len(plain.blocks)} blocks in {file}: it may be a --teacher"
        )
    if records:
        plain = _held_by_half_precision(plain)
    buffer = io.BytesIO()
    torch.save({name: value.float() for name, value in plain.state_dict().items()}, buffer)
    weights = buffer.getvalue()
    if ship:
        record = _training_record(file, records, weights, difference, compared)
        write_all({target: weights, TRAINING_RECORD: as_json(record)})
    else:
        write_bytes(target, weights)
    logger.info(
        "%s: %d parameters, forms differ by %.1e in float64, sha256 %s",
        target,
        sum(p.numel() for p in plain.parameters()),
        difference,
        sha256(target),
    )
    if ship:
        documents.regenerate()
        logger.info(
            "%s and the tables are up to date; next: measure the new weights with "
            "test_demo.py, python -m utils.report.documents --publish FILE, and see whether the "
            "model card's words on the data are still true",
            TRAINING_RECORD,
        )


def _held_by_half_precision(plain: LKDN) -> LKDN:
    """The network with weights that half precision can run, where that changes nothing else."""
    half = reduced(plain)
    if (change := largest_difference(plain, half)) <= REDUCED:
        return half
    logger.warning(
        "the numbers of these weights may be too large for half precision; made smaller, the "
        "network would change by %.1e",
        change,
    )
    return plain


def _training_record(
    file: Path, records: list[dict[str, Any]], weights: bytes, difference: float, compared: int
) -> dict[str, Any]:
    """What is published of the training of shipped weights."""
    # The log may be ahead of its checkpoint, or of a copy of an earlier one; and its first stage
    # may be another than that which the second began with.
    last_steps = {records[-1]["stage"]["name"]: records[-1]["step"]}
    if len(records) > 1 and _is_first_stage_of(file.parent, records[-2]):
        last_steps[records[-2]["stage"]["name"]] = records[-2]["step"]
    keys = ("stage", "step", "val", "val_psnr", "val_psnr_y")
    lines = [
        line
        for line in log.read(file.parent / "log.jsonl")
        if line["step"] <= last_steps.get(line["stage"], -1)
    ]
    return {
        "training_of": ENTRY,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "stages": [without_digests(trained) for trained in records],
        "commands": commands(records),
        "validation": [
            {key: line[key] for key in keys if key in line} for line in log.scored(lines)
        ],
        "float64_difference": difference,
        "held_out_images_compared": compared,
    }


def _is_first_stage_of(run: Path, record: dict[str, Any]) -> bool:
    """Whether a record is of the stage 1 in the folder of a run, which may have gone on since."""
    file = run / "stage1.pt"
    if record["stage"]["name"] != "stage1" or not file.exists():
        return False
    own = training_records(read_checkpoint(file), run)
    work = record["history"]
    return bool(own) and all(
        (
            own[-1]["seed"] == record["seed"],
            own[-1]["data"] == record["data"],
            own[-1]["history"][: len(work)] == work,
        )
    )


def check_data(records: list[dict[str, Any]], held_out: Sequence[Path], file: Path) -> int:
    """Compare all images of every stage with the images `held_out`, by their pixels.

    Returns:
        The number of different images held out.

    Raises:
        CheckpointError: one of them was trained on, or a stage's images, or those behind the
            first weights, are not known.
    """
    seen_by = digests(held_out)
    for of, trained in with_teachers(records, str(file)):
        if trained["init"]:
            raise CheckpointError(
                f"expected weights trained from random ones by train.py, but {of} began with "
                f"{trained['init']['name']}, which has no training record: leave out --ship to "
                "only fuse them"
            )
        if trained["teacher"] and not trained["teacher"]["records"]:
            raise CheckpointError(
                f"expected a teacher trained by train.py, but the teacher of {of} has no training "
                "record: leave out --ship to only fuse them"
            )
        known = (trained["data_summary"] or {}).get("sha256")
        if known is None:
            name = f"{trained['stage']['name']}_data.json"
            other = f"{trained['stage']['name']}_before_data.json"  # that of this run may stay
            raise CheckpointError(
                f"expected the digests of the images that {of} was trained on, found none: copy "
                f"the {name} of that run into {file.parent} as {other}, or repeat its train.py "
                "command with --resume, which writes it"
            )
        if seen := [name for digest, name in seen_by.items() if digest in known]:
            raise CheckpointError(
                f"expected weights trained without validation, test and benchmark images, but {of} "
                f"saw {len(seen)}: {', '.join(seen[:3])}"
            )
    if seen_by:
        logger.info("none of %d held-out images is among the data", len(seen_by))
    else:
        logger.warning(
            "no validation, test or benchmark image was compared with the data: none "
            "is in data/, and --held_out names none"
        )
    return len(seen_by)


@torch.inference_mode()
def largest_difference(form: LKDN, plain: LKDN) -> float:
    """The largest absolute difference of two networks on images of several sizes, random ones and
    flat black and white."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(1, 3, *size, dtype=torch.float64, generator=generator) for size in SIZES]
    images += [torch.full((1, 3, 24, 24), level, dtype=torch.float64) for level in (0.0, 1.0)]
    differences = [(form(x) - plain(x)).abs().max() for x in images]
    return float(torch.stack(differences).max())  # NaN if one is, unlike max()


if __name__ == "__main__":
    command.start(main)
