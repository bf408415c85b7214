"""Train LKDN: python train/train.py --data DIR ... --val DIR --out runs/NAME"""

import argparse
import contextlib
import logging
import os
import signal
import sys
import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

if __name__ == "__main__":
    # In place of train/, where `train` would be this very file.
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parent.parent)]
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while libraries are loaded

import torch
import torch.distributed as dist

from train import checkpoint, log, loop
from train.detail import measure_detail
from train.first_state import initial_state, warn_of_other_start
from train.options import engine_of, parse, stages_of
from train.packing import pack
from train.packs import Pack, on_device
from train.patches import count_zoomed, sampler
from train.recipes import Engine, Stage
from train.records import note_data
from train.shrink import ROTATED_FROM
from train.teacher import read_teacher
from train.validation import validation_samples, warn_of_other_val, warn_of_seen
from utils import command, devices
from utils.command import UserError
from utils.datasets import SCALE
from utils.files import remove_leftovers
from utils.imaging.images import ImageError
from utils.lock import locked
from utils.memory import is_exhausted
from utils.weights import read_checkpoint

logger = logging.getLogger("train")


ENDINGS = {loop.Outcome.TIME_IS_UP: "time is up", loop.Outcome.STOPPED: "stopped"}
# The first process may pack a large data set for hours while the others wait.
PATIENCE = timedelta(hours=12)


def main(argv: list[str] | None = None) -> int:
    """The command; its exit code."""
    started = time.monotonic()
    args = parse(argv, __doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        return command.run(
            "train/train.py",
            lambda: work(args, stop_at=started + 60 * args.max_minutes),
            wrong=(ImageError, FileNotFoundError),
            failures=(FloatingPointError, MemoryError),
            interrupted="stopped at once; --resume continues from the last checkpoint",
        )
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def join_world(device_name: str) -> loop.World:
    """This process's place: torchrun's variables, or alone."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = devices.select_device(device_name)
    if device.type == "cuda":
        number, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if number >= gpus:
            raise UserError(
                f"expected a GPU for each process, got {gpus} for process "
                f"{number + 1}: lower --nproc_per_node"
            )
        torch.cuda.set_device(number)
    if size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    return loop.World(rank, size, device)


def work(args: argparse.Namespace, stop_at: float) -> int:
    """Train in a folder that no other run writes to meanwhile; the exit code."""
    world = join_world(args.device)
    failed: list[str] = []
    with contextlib.ExitStack() as stack:
        if world.rank == 0:  # for all processes of this run
            command.make_folder(args.out)
            stack.enter_context(locked(args.out / ".lock", f"the run in {args.out}"))
        code = train_stages(args, world, stop_at, failed)
    if failed:
        raise OSError(
            f"the run is saved, but {len(failed)} times a file was not written or a set not "
            f"scored, first {failed[0]}"
        )
    return code


def train_stages(
    args: argparse.Namespace, world: loop.World, stop_at: float, failed: list[str]
) -> int:
    """Prepare a run and train its stages, one after another; the exit code. What could not be
    written or scored meanwhile is added to `failed`."""
    logging.getLogger().setLevel(logging.INFO if world.rank == 0 else logging.ERROR)
    stages = stages_of(args)
    engine = engine_of(args, world.device, stages)
    prepare_machine(engine, world.device, args.out)
    for stage in stages.values():
        file = args.out / f"{stage.name}.pt"
        zoomed = count_zoomed(stage.batch, stage.zoom)
        if stage.zoom and not zoomed:
            raise UserError(
                f"expected --zoom of one patch of a batch of {stage.batch} at least, got "
                f"{stage.zoom:g}: give more, or a larger --batch"
            )
        if stage.rotate and stage.shrink < ROTATED_FROM:
            raise UserError(
                f"expected --shrink of {ROTATED_FROM:g} or more with --rotate, got {stage.shrink:g}"
            )
        pairs_a_step = stage.batch - zoomed
        if pairs_a_step < world.size:
            raise UserError(
                f"expected a batch of at least {world.size} pairs for {world.size} "
                f"processes, got {pairs_a_step}"
            )
        if file.exists() and not args.resume:
            raise UserError(
                f"expected a new run, got one in {file}: give --resume to continue "
                "it, or another --out"
            )
    samples = validation_samples(args.val if world.rank == 0 else [])
    first = min(stages)  # weights that cannot be had are missed before the data are packed
    teacher = read_teacher(args.teacher) if args.teacher else None
    for stage in stages.values():
        if (stage.truth < 1) != bool(teacher):
            raise UserError(
                f"expected --teacher FILE and --truth below 1 together, got {stage.name} with "
                f"--truth {stage.truth:g} and {'a' if teacher else 'no'} teacher"
            )
        if stage.zoom and not teacher:
            raise UserError(
                f"expected --teacher FILE with --zoom, got {stage.name} with --zoom {stage.zoom:g} "
                "and no teacher"
            )
    states = {first: initial_state(args, first, stages[first], engine, world.device, teacher)}
    if world.rank:  # the first process packs, the others open what it packed
        dist.barrier()
    states_there = [file for s in stages.values() if (file := args.out / f"{s.name}.pt").exists()]
    begun = {str(read_checkpoint(file).get("data")) for file in states_there}
    data = pack(args.data, args.packed, args.first, keep=begun)
    if world.size > 1 and world.rank == 0:
        dist.barrier()
    warn_of_seen(samples, data)
    by_detail = any(stage.draw == "detail" for stage in stages.values())
    detail = measure_detail(data) if by_detail else None
    pairs = on_device(data, world.device) if engine.crops == "device" else data
    sources = {
        number: sampler(
            pairs,
            stage.patch // SCALE,
            detail if stage.draw == "detail" else None,
            stage.shrink,
            stage.zoom,
            stage.mixup,
            stage.rotate,
        )
        for number, stage in stages.items()
    }
    for number, stage in stages.items():
        state = states.get(number) or initial_state(
            args, number, stage, engine, world.device, teacher
        )
        run = loop.Run(
            stage=stage,
            engine=engine,
            seed=args.seed,
            file=args.out / f"{stage.name}.pt",
            source=sources[number],
            teacher=teacher.net if teacher else None,
            fingerprint=data.fingerprint,
            samples=samples,
            world=world,
            log_every=args.log_every,
            val_every=args.val_every,
            save_every=args.save_every,
            stop_at=stop_at,
            failed=failed,
        )
        outcome = train_stage(run, state, args, data)
        done = state.step == stage.steps and number == max(stages)
        if outcome != loop.Outcome.GO_ON and not done:
            return command.FAILED if outcome == loop.Outcome.STOPPED else command.GOOD
    return command.GOOD


def prepare_machine(engine: Engine, device: torch.device, out: Path) -> None:
    """Make the device fast for fixed shapes, and keep in the run's folder what is compiled."""
    if engine.tuned_cpu:
        devices.prepare_cpu()
    torch.backends.cudnn.benchmark = device.type == "cuda"
    for variable in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):  # read when compiling
        os.environ.setdefault(variable, str(out.resolve() / "compiled"))


def train_stage(
    run: loop.Run, state: checkpoint.State, args: argparse.Namespace, data: Pack
) -> loop.Outcome:
    """Train one stage from where it is; the loop's outcome."""
    stage, lead = run.stage, run.world.rank == 0
    log_file, curves = args.out / "log.jsonl", args.out / "curves.png"
    if run.file.exists():
        checkpoint.resume(run.file, state, stage, run.seed, run.fingerprint)
        logger.info("continuing at step %d of %d", state.step, stage.steps)
        warn_of_other_start(args, run.file, state)
    if lead:
        for file in (run.file, curves, log_file):
            remove_leftovers(file)
        log.trim(log_file, stage.name, state.step)
        warn_of_other_val(log.scored(log.read(log_file)), run.samples)
        note_data(args.out, stage, args.data, args.first, data)
    logger.info(
        "%s: %d images on %d x %s\n%s",
        stage.name,
        len(data.images),
        run.world.size,
        run.world.device,
        settings(stage, run.engine),
    )
    finished = state.step == stage.steps
    try:
        if finished:
            logger.info("this stage is finished already: %s", run.file)
            own = [line for line in log.read(log_file) if line["stage"] == stage.name]
            # It was killed then, or had another --val.
            unscored = bool(run.samples) and not log.has_scores(own, state.step, run.samples)
            if unscored:
                loop.validate(run, state)
            if lead and (unscored or not curves.exists()):
                log.plot(log_file, curves)
            return loop.Outcome.GO_ON
        outcome = loop.train(run, state)
    except FloatingPointError as error:
        loop.log_line(run, state, {"failed": str(error)})
        raise
    except Exception as error:
        if not is_exhausted(error):
            raise
        advice = "free some" if finished else "lower --batch, --patch or --shrink"
        raise MemoryError(f"expected images to fit in memory: {advice} ({error})") from error
    if lead:
        log.plot(log_file, curves)
        done = state.step == stage.steps
        why = "finished" if done else ENDINGS[outcome]
        logger.info(
            "%s at step %d of %d, saved in %s%s",
            why,
            state.step,
            stage.steps,
            run.file,
            "" if done else "; --resume continues",
        )
    return outcome


def settings(stage: Stage, engine: Engine) -> str:
    """What a stage is trained with, and how it is computed, a line each."""
    values = asdict(stage) | asdict(engine)
    del values["name"]
    width = max(map(len, values))
    return "\n".join(f"  {name:{width}}  {value}" for name, value in values.items())


if __name__ == "__main__":
    command.start(main)
