"""Train LKDN: python train/train.py --stage 1 --data DIR ... --val DIR --out runs/NAME"""

import argparse
import logging
import math
import os
import sys
import time
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # was train/, where `train` would be this very file

from models.team23_LKDN import LKDB, LKDN  # noqa: E402
from train import checkpoint, log, loop  # noqa: E402
from train.optim import make_optimizers  # noqa: E402
from train.patches import sampler  # noqa: E402
from train.reparam import training_form  # noqa: E402
from train.stages import STAGES, Stage  # noqa: E402
from utils import devices, evaluate  # noqa: E402
from utils.datasets import SCALE, DatasetError, find  # noqa: E402
from utils.images import ImageError  # noqa: E402
from utils.packing import pack  # noqa: E402
from utils.record import write_json  # noqa: E402
from utils.weights import (  # noqa: E402
    CheckpointError,
    load_state,
    read_checkpoint,
    state_dict_of,
)

logger = logging.getLogger("train")


# The first process may pack a large data set for hours while the others wait.
PATIENCE = timedelta(hours=12)


class UsageError(ValueError):
    """Options that do not go together; the message says what to do."""


def main(argv: list[str] | None = None) -> int:
    started = time.monotonic()
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    devices.prepare_cpu()
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        world = join_world(args.device)
        logging.getLogger().setLevel(logging.INFO if world.rank == 0 else logging.ERROR)
        return work(args, world, stop_at=started + 60 * args.max_minutes)
    except (UsageError, CheckpointError, DatasetError, ImageError, FileNotFoundError,
            devices.DeviceError) as error:
        logger.error("%s", error)
        return 2
    except torch.OutOfMemoryError as error:
        logger.error("expected the patches to fit in memory: lower --batch or --patch (%s)", error)
        return 1
    except (FloatingPointError, OSError) as error:
        logger.error("%s", error)
        return 1
    except KeyboardInterrupt:
        logger.error("stopped at once; --resume continues from the last checkpoint")
        return 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--stage", type=int, choices=sorted(STAGES), default=1, help="the factsheet's stage")
    add("--data", type=Path, nargs="+", required=True, metavar="DIR",
        help="trees of HR images, with DIV2K's LR images or without")
    add("--first", type=int, metavar="N", help="only the first N images of each DIR")
    add("--val", metavar="DIR", help="images to score while training")
    add("--out", type=Path, required=True, metavar="RUN", help="folder of the run")
    add("--init", type=Path, metavar="FILE",
        help="start from these training-form weights; stage 2: stage 1's in RUN")
    add("--resume", action="store_true", help="continue the run in RUN, if it has begun")
    add("--seed", type=int, default=0, help="decides first weights and patches")
    add("--device", choices=devices.NAMES, default="auto", help="where to train")
    add("--threads", type=int, metavar="N", help="CPU threads")
    add("--max_minutes", type=float, default=math.inf, metavar="M",
        help="save and stop after M minutes; --resume goes on with the same schedule")
    add("--log_every", type=int, default=50, metavar="N", help="steps between log lines")
    add("--val_every", type=int, default=5000, metavar="N", help="steps between scores")
    add("--save_every", type=int, default=1000, metavar="N", help="steps between checkpoints")
    add("--packed", type=Path, default=ROOT / "data" / "packed", metavar="DIR",
        help="where decoded images are kept")
    numbers = parser.add_argument_group("numbers of the stage", "default: the factsheet's")
    number = numbers.add_argument
    number("--steps", type=int, default=argparse.SUPPRESS, help="optimiser steps")
    number("--batch", type=int, default=argparse.SUPPRESS, help="patches a step")
    number("--patch", type=int, default=argparse.SUPPRESS, help="HR pixels a side of a patch")
    number("--lr", type=float, default=argparse.SUPPRESS, help="learning rate")
    number("--loss", choices=("l1", "l2"), default=argparse.SUPPRESS)
    number("--optimizer", choices=("adam", "muon"), default=argparse.SUPPRESS)
    number("--schedule", choices=("constant", "cosine"), default=argparse.SUPPRESS)
    number("--warmup", type=int, default=argparse.SUPPRESS, help="steps of linear rise")
    number("--ema", type=float, default=argparse.SUPPRESS, help="decay of the averaged weights")
    number("--norm_start", type=float, default=argparse.SUPPRESS,
           help="first value of the PixelNorm weights")
    number("--precision", choices=("fp32", "bf16", "fp64"), default=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    for name in ("threads", "first", "log_every", "val_every", "save_every", "steps", "batch"):
        if (value := getattr(args, name, None)) is not None and value < 1:
            parser.error(f"expected --{name} of at least 1, got {value}")
    if not 0 <= args.seed < 2**63:
        parser.error(f"expected --seed from 0 to below 2**63, got {args.seed}")
    patch = getattr(args, "patch", SCALE)
    if patch < SCALE or patch % SCALE:
        parser.error(f"expected --patch in HR pixels, a multiple of {SCALE}, got {patch}")
    if getattr(args, "ema", 0) > 1:
        parser.error(f"expected --ema of at most 1, got {args.ema}")
    for name in ("lr", "warmup", "ema", "norm_start", "max_minutes"):
        value = float(getattr(args, name, 0))
        if not value >= 0 or (value == math.inf and name != "max_minutes"):
            parser.error(f"expected --{name} of a number from 0 up, got {value}")
    return args


def join_world(device_name: str) -> loop.World:
    """This process's place: torchrun's variables, or alone."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = devices.select_device(device_name)
    if device.type == "cuda":
        number, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if number >= gpus:
            raise UsageError(f"expected a GPU for each process, got {gpus} for process "
                             f"{number + 1}: lower --nproc_per_node")
        torch.cuda.set_device(number)
    if size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    return loop.World(rank, size, device)


def work(args: argparse.Namespace, world: loop.World, stop_at: float) -> int:
    """Prepare a run and train; the exit code."""
    given = {f.name: getattr(args, f.name) for f in fields(Stage) if f.name in args}
    stage = replace(STAGES[args.stage], **given)
    if stage.batch < world.size:
        raise UsageError(f"expected a batch of at least {world.size} for {world.size} processes, "
                         f"got {stage.batch}")
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"{stage.name}.pt"
    if file.exists() and not args.resume:
        raise UsageError(f"expected a new run, got one in {file}: give --resume to continue it, "
                         "or another --out")
    samples = []
    if args.val and world.rank == 0:
        samples = [evaluate.load(pair) for pair in find(args.val, ROOT / "data").pairs]
        if blind := [sample.name for sample in samples if sample.hr is None]:
            raise UsageError(f"expected HR images to validate on in {args.val}, got none for "
                             f"{', '.join(blind[:3])}")
    state = initial_state(args, stage, world, resuming=file.exists())
    if world.rank:  # the first process packs, the others open what it packed
        dist.barrier()
    data = pack(args.data, args.packed, args.first)
    if world.size > 1 and world.rank == 0:
        dist.barrier()
    if file.exists():
        checkpoint.resume(file, state, stage, args.seed, data.fingerprint)
        logger.info("continuing at step %d of %d", state.step, stage.steps)
    if world.rank == 0:
        for leftover in args.out.glob(f".{file.name}.*.tmp"):  # of a run killed while saving
            leftover.unlink()
        log.trim(args.out / "log.jsonl", stage.name, state.step)
        write_json(args.out / f"{stage.name}_data.json", {
            "folders": [folder.resolve().name for folder in args.data], "first": args.first,
            "images": len(data.images), "skipped": data.skipped, "fingerprint": data.fingerprint,
            "megapixels": SCALE**2 * sum(i.height * i.width for i in data.images) / 1e6,
        })
    run = loop.Run(
        stage, args.seed, file, sampler(data, stage.patch // SCALE, world.device),
        data.fingerprint, samples, world, args.log_every, args.val_every, args.save_every,
        stop_at,
    )
    logger.info("%s; %d images; %s on %d x %s", stage, len(data.images), stage.precision,
                world.size, world.device)
    if state.step == stage.steps:
        logger.info("this stage is finished already: %s", file)
        return 0
    outcome = loop.train(run, state)
    if world.rank == 0:
        log.plot(args.out / "log.jsonl", args.out / "curves.png")
        logger.info("%s at step %d of %d, saved in %s%s", outcome, state.step, stage.steps, file,
                    "" if state.step == stage.steps else "; --resume continues")
    return 1 if outcome == loop.OUTCOMES[loop.STOPPED] else 0


def initial_state(
    args: argparse.Namespace, stage: Stage, world: loop.World, resuming: bool
) -> checkpoint.State:
    """Seeded first weights, or those of --init; stage 2 starts from stage 1's average. A run that
    resumes brings its own weights."""
    torch.manual_seed(args.seed)
    net = LKDN()
    for block in net.modules():
        if isinstance(block, LKDB):
            torch.nn.init.constant_(block.pixel_norm.weight, stage.norm_start)
    net = training_form(net)
    init = None if resuming else args.init
    if init is None and args.stage == 2 and not resuming:
        init = args.out / f"{STAGES[1].name}.pt"
        if not init.exists():
            raise UsageError(f"expected stage 1's weights in {init}, found no such file: train "
                             "stage 1 with the same --out, or give --init FILE")
    before: list[dict[str, Any]] = []
    if init:
        saved = read_checkpoint(init)
        load_state(net, state_dict_of(saved, init), init)
        before = checkpoint.training_records(saved)
        if before and before[-1]["step"] < before[-1]["stage"]["steps"]:
            logger.warning("%s is not finished: step %d of %d", init, before[-1]["step"],
                           before[-1]["stage"]["steps"])
    net = net.to(world.device, torch.float64 if stage.precision == "fp64" else torch.float32)
    ema = {name: p.detach().clone() for name, p in net.named_parameters()}
    return checkpoint.State(net, ema, make_optimizers(net, stage), before=before)


if __name__ == "__main__":
    sys.exit(main())
