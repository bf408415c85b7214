"""The training loop: patches, forward, loss, backward, step, EMA; scores, log and checkpoints."""

import contextlib
import enum
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from models.team23_LKDN import LKDN
from train import checkpoint, log
from train.crops import Sampler
from train.forward import Gradients, arithmetic_of, make_gradients
from train.optim import learning_rate
from train.patches import Patches, cut_patches
from train.recipes import Engine, Stage
from train.recording import Recorder, own_stream
from train.reparam import fuse_parameters, plain_like
from train.updates import make_update
from utils import devices, evaluate
from utils.files import finite
from utils.memory import is_exhausted
from utils.record import environment

logger = logging.getLogger(__name__)


class Outcome(enum.IntEnum):
    """Why the loop ends, the more urgent the higher."""

    GO_ON = 0
    TIME_IS_UP = 1
    STOPPED = 2


class Diverged(FloatingPointError):
    """The loss or a gradient is not finite. Every checkpoint has weights that gave finite ones."""


@dataclass(frozen=True)
class World:
    """This process among those of a distributed run, and its device."""

    rank: int
    size: int
    device: torch.device


@dataclass(frozen=True)
class Run:
    """What the loop needs besides its state.

    teacher is the network whose SR is part of the targets, if there is one; fingerprint is the
    data's; samples are the validation sets by name; log_every, val_every and save_every count
    steps; stop_at is a time of time.monotonic(). What could not be written or scored while the run
    went on is added to failed.
    """

    stage: Stage
    engine: Engine
    seed: int
    file: Path
    source: Sampler
    teacher: LKDN | None
    fingerprint: str
    samples: dict[str, list[evaluate.Sample]]
    world: World
    log_every: int
    val_every: int
    save_every: int
    stop_at: float
    failed: list[str]


def train(run: Run, state: checkpoint.State) -> Outcome:
    """Train until the stage's last step, a signal, or the time limit; save and log as asked.

    `state` is changed in place. Interrupts never bend the schedule: a resumed run takes the same
    steps as one that was never stopped.

    Returns:
        Why it ended, the same on every process, when all is saved: GO_ON, the stage is done;
        TIME_IS_UP, it is `run.stop_at`; STOPPED, a signal came, if only at the very end.

    Raises:
        Diverged: the loss or a gradient is not finite. Nothing is saved after that.
    """
    stage, device, lead = run.stage, run.world.device, run.world.rank == 0
    recorder = Recorder() if run.engine.graphs else None
    gradients = make_gradients(state.net, stage, device, run.engine, recorder, run.teacher)
    part = slice(run.world.rank, None, run.world.size)
    # A step of a stage follows the steps of those before it: no stage sees another's patches again.
    earlier = sum(record["step"] for record in state.before)
    patches = cut_patches(run.source, run.seed, earlier + state.step, stage.batch, part)
    weights = dict(state.net.named_parameters())
    update = make_update(state.optimizers, state.ema, weights, stage.ema, recorder)
    stream = own_stream(device) if recorder else contextlib.nullcontext()
    # What torch does beside the native kernels is too small for two threads: those of its pools
    # would wait for each other while the kernels' want the cores.
    threads = torch.get_num_threads()
    few = devices.torch_threads(1 if run.engine.kernels == "native" else threads)
    began, work, outcome = time.monotonic(), _begin_work(run, state), Outcome.GO_ON
    start, due = state.step, False  # due: to be saved, as soon as the weights have shown to be good
    unseen: list[Tensor] = []  # (loss, gradient norm) of the steps not looked at yet
    logged: list[list[float]] = []
    since = time.monotonic()
    with (
        _stop_flag() as stopped,
        few,
        stream,
        tqdm(
            total=stage.steps, initial=state.step, desc=stage.name, unit="step", disable=not lead
        ) as bar,
    ):
        while state.step < stage.steps:
            own = Outcome.TIME_IS_UP if time.monotonic() > run.stop_at else Outcome.GO_ON
            outcome = _agree(run.world, Outcome.STOPPED if stopped() else own, state.step)
            if outcome != Outcome.GO_ON:
                break
            rate = learning_rate(stage, state.step)
            unseen.append(_gradients(run, state, gradients, patches))
            step = state.step + 1
            last = step == stage.steps
            to_log = step % run.log_every == 0 or last
            # On a CPU a look at each loss costs nothing; on a GPU it stalls the queue of kernels.
            # SOAP's bases are made of the first gradient.
            if device.type == "cpu" or to_log or due or state.step == start:
                logged += _check_finite(unseen, state.step, stage)
                unseen = []
            if due:
                with _going_on(run, state, run.file):
                    _save(run, state, work, began)
            due = step % run.save_every == 0 and not last
            update(state.step, rate)
            state.step = step
            bar.update()
            if to_log:
                speed = len(logged) * stage.batch / (time.monotonic() - since)
                loss, norm = torch.tensor(logged, dtype=torch.float64).mean(0).tolist()
                bar.set_postfix_str(f"loss {loss:.5f}, {speed:.0f} images/s")
                line = {"loss": loss, "gradient_norm": norm, "lr": rate, "images_per_s": speed}
                if device.type == "cuda":
                    line["memory_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
                log_line(run, state, line)
                logged, since = [], time.monotonic()
            if run.samples and step % run.val_every == 0 and not last:
                paused = time.monotonic()
                with devices.torch_threads(threads):
                    validate(run, state)
                since += time.monotonic() - paused
        if state.step > start:  # whether the last step was good shows in the next one's loss
            unseen.append(_gradients(run, state, gradients, patches))
            _check_finite(unseen, state.step, stage)
        _save(run, state, work, began)
        # Only now: scores may take minutes, and what ends them must not cost the last steps.
        if run.samples and start < state.step == stage.steps:
            with devices.torch_threads(threads):
                validate(run, state)
        return _agree(run.world, Outcome.STOPPED if stopped() else outcome, 0)


def _gradients(run: Run, state: checkpoint.State, gradients: Gradients, patches: Patches) -> Tensor:
    """Leave the gradients of the global batch in the parameters; (loss, gradient norm)."""
    loss = gradients(*next(patches))
    parameters = (p for optimizer in state.optimizers for p in optimizer.param_groups[0]["params"])
    grads = [p.grad for p in parameters if p.grad is not None]
    if run.world.size > 1:  # one small message instead of a wrapper around the network
        flat = torch.cat([g.flatten() for g in grads] + [loss.view(1)])
        dist.all_reduce(flat)
        parts = flat.split([g.numel() for g in grads] + [1])
        torch._foreach_copy_(grads, [p.view_as(g) for p, g in zip(parts, grads, strict=False)])
        loss = parts[-1][0]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    return torch.stack((loss, norm))


def _check_finite(unseen: list[Tensor], step: int, stage: Stage) -> list[list[float]]:
    """The values of the steps up to `step`, each found finite, or Diverged."""
    values = torch.stack(unseen).tolist() if unseen else []
    for index, (loss, norm) in enumerate(values):
        if not (math.isfinite(loss) and math.isfinite(norm)):
            bad = step - len(values) + 1 + index
            raise Diverged(
                f"expected a finite loss and gradient, got loss {loss} and gradient norm {norm} at "
                f"step {bad}, learning rate {learning_rate(stage, bad):.3g}: give a lower "
                "--lr and another --out, with --init where there is a checkpoint from long before"
            )
    return values


def validate(run: Run, state: checkpoint.State) -> None:
    """Score what would be exported, the fused average, and log it; the first set is the one that
    decides."""
    average = plain_like(state.net).to(run.world.device)
    average.load_state_dict(fuse_parameters(state.ema))
    average.float()
    line: dict[str, Any] = {}
    for name, samples in run.samples.items():
        try:
            with devices.without_search():  # images have other sizes than patches
                scores = evaluate.validate(average, samples, run.world.device)
        except Exception as error:  # steps are dearer than scores
            if not is_exhausted(error):
                raise
            run.failed.append(f"scores of {name} at step {state.step}: out of memory")
            logger.warning(
                "not scored: %s; free some, or give a --val of smaller images", run.failed[-1]
            )
            if line:  # the set that decides has its scores
                continue
            return
        tqdm.write(f"step {state.step}: {name} {scores.psnr:.3f} dB RGB, {scores.psnr_y:.3f} dB Y")
        own = {"val_psnr": scores.psnr, "val_psnr_y": scores.psnr_y}
        if line:
            line.setdefault("others", {})[name] = own
        else:
            line = {"val": name, **own}
    log_line(run, state, line)


def log_line(run: Run, state: checkpoint.State, line: dict[str, Any]) -> None:
    """Add a line of this step to the run's log."""
    if run.world.rank == 0:
        line = finite({"stage": run.stage.name, "step": state.step, **line})
        file = run.file.parent / "log.jsonl"
        with _going_on(run, state, file):
            log.append(file, line)


@contextlib.contextmanager
def _going_on(run: Run, state: checkpoint.State, file: Path) -> Iterator[None]:
    """Train on where a file cannot be written: steps are dearer, and the next try may be good."""
    try:
        yield
    except OSError as error:
        run.failed.append(f"{file} at step {state.step}: {error.strerror}")
        logger.warning("not written: %s; training goes on", run.failed[-1])


def _begin_work(run: Run, state: checkpoint.State) -> dict[str, Any]:
    """A new record at the end of the history, of what this process will have done."""
    work = {
        "from_step": state.step,
        "to_step": state.step,
        "minutes": 0.0,
        "processes": run.world.size,
        "engine": asdict(run.engine),
        "arithmetic": arithmetic_of(run.engine, run.stage)
        if run.engine.kernels == "native"
        else None,
        "environment": environment(run.world.device),
    }
    state.history.append(work)
    return work


def _save(run: Run, state: checkpoint.State, work: dict[str, Any], began: float) -> None:
    work["to_step"], work["minutes"] = state.step, (time.monotonic() - began) / 60
    if run.world.rank == 0:
        checkpoint.save(run.file, state, run.stage, run.seed, run.fingerprint)


def _agree(world: World, outcome: Outcome, step: int) -> Outcome:
    """The most urgent outcome of any process: all must leave the loop at the same step."""
    if world.size == 1:
        return outcome
    if world.device.type == "cuda" and step % 10:  # each answer stalls the queue of kernels
        return Outcome.GO_ON
    urgency = torch.tensor(outcome, device=world.device)
    dist.all_reduce(urgency, dist.ReduceOp.MAX)
    return Outcome(int(urgency))


@contextlib.contextmanager
def _stop_flag() -> Iterator[Callable[[], bool]]:
    """Ctrl-C, SIGTERM and the end of the terminal (SIGHUP, unless nohup is there) end the loop
    after the step in progress; a second Ctrl-C at once."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        # Not by logging: a signal that comes while a line is written must not write another.
        if logger.isEnabledFor(logging.WARNING):
            with contextlib.suppress(OSError):
                os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")

    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {n: signal.signal(n, receive) for n in numbers}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
