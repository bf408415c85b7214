"""The training loop: patches, forward, loss, backward, step, EMA; scores, log and checkpoints."""

import contextlib
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

from models.team23_LKDN import LKDN
from train import checkpoint, log
from train.optim import learning_rate, set_learning_rate, update_ema
from train.patches import Sampler, sample
from train.reparam import fused_parameters, plain_like
from train.stages import Engine, Stage
from utils import evaluate
from utils.record import environment, finite

logger = logging.getLogger(__name__)

GO_ON, TIME_IS_UP, STOPPED = range(3)  # outcomes of the loop, the more urgent the higher
LOSSES = {"l1": F.l1_loss, "l2": F.mse_loss}


class Diverged(FloatingPointError):
    """The loss or a gradient is not finite; the last checkpoint is from before."""


@dataclass(frozen=True)
class World:
    """This process among those of a distributed run, and its device."""

    rank: int
    size: int
    device: torch.device


@dataclass(frozen=True)
class Run:
    """What the loop needs besides its state.

    fingerprint is the data's; log_every, val_every and save_every count steps; stop_at is a time
    of time.monotonic().
    """

    stage: Stage
    engine: Engine
    seed: int
    file: Path
    source: Sampler
    fingerprint: str
    samples: list[evaluate.Sample]
    world: World
    log_every: int
    val_every: int
    save_every: int
    stop_at: float


def train(run: Run, state: checkpoint.State) -> int:
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
    forward = make_forward(state.net, stage, device, run.engine)
    weights = dict(state.net.named_parameters())
    began, work, outcome = time.monotonic(), _begin_work(run, state), GO_ON
    unseen: list[Tensor] = []  # (loss, gradient norm) of the steps not looked at yet
    logged: list[list[float]] = []
    since = time.monotonic()
    with _stop_flag() as stopped, tqdm(
        total=stage.steps, initial=state.step, desc=stage.name, unit="step", disable=not lead
    ) as bar:
        while state.step < stage.steps:
            late = time.monotonic() > run.stop_at
            wish = STOPPED if stopped() else TIME_IS_UP if late else GO_ON
            outcome = _agree(run.world, wish, state.step)
            if outcome != GO_ON:
                break
            if run.engine.compile == "graphs":
                torch.compiler.cudagraph_mark_step_begin()
            rate = learning_rate(stage, state.step)
            set_learning_rate(state.optimizers, rate)
            unseen.append(_gradients(run, state, forward))
            step = state.step + 1
            last = step == stage.steps
            to_log, to_save = step % run.log_every == 0 or last, step % run.save_every == 0
            # On a CPU a look at each loss costs nothing; on a GPU it stalls the queue of kernels.
            if device.type == "cpu" or to_log or to_save:
                logged += _checked(unseen, state.step, stage)
                unseen = []
            for optimizer in state.optimizers:
                optimizer.step()
            update_ema(state.ema, weights, stage.ema, state.step)
            state.step = step
            bar.update()
            if to_log:
                speed = len(logged) * stage.batch / (time.monotonic() - since)
                loss, norm = torch.tensor(logged, dtype=torch.float64).mean(0).tolist()
                bar.set_postfix_str(f"loss {loss:.5f}, {speed:.0f} images/s")
                line = {"loss": loss, "gradient_norm": norm, "lr": rate, "images_per_s": speed}
                if device.type == "cuda":
                    line["memory_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
                _log(run, state, line)
                logged, since = [], time.monotonic()
            if run.samples and (step % run.val_every == 0 or last):
                paused = time.monotonic()
                _validate(run, state)
                since += time.monotonic() - paused
            if to_save and not last:
                _save(run, state, work, began)
        _checked(unseen, state.step - 1, stage)
        _save(run, state, work, began)
        return _agree(run.world, STOPPED if stopped() else outcome, 0)


def make_forward(
    form: LKDN, stage: Stage, device: torch.device, engine: Engine
) -> Callable[[Tensor], Tensor]:
    """The network to train as a function of (B, 3, H, W), gradients reaching `form`'s parameters.

    Folding the branches into the plain network's kernels at every step is the same function with
    the same gradients as running the branches, at the inference form's cost.
    """
    network = plain_like(form).to(device) if engine.fold else form
    if engine.depthwise == "triton":
        from kernels.depthwise import depthwise  # Triton is not everywhere

        for module in network.modules():
            if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
                module.forward = _with_kernel(depthwise, module)  # type: ignore[assignment]
    if stage.precision == "bf16" and device.type == "cpu":
        # On a CPU torch 2.13 computes in bfloat16 garbage as the weight gradient of the dilated
        # depthwise in channels_last, and those of LayerNorm as sums that stall at eight bits.
        for name in network.blocks:
            _keep_float32(network.get_submodule(f"{name}.atten.depthwise_dilated"))
            _keep_float32(network.get_submodule(f"{name}.pixel_norm"))

    def forward(x: Tensor) -> Tensor:
        kernels: dict[str, Tensor] = dict(form.named_parameters())
        if engine.fold:
            kernels = fused_parameters(kernels)
        with torch.autocast(device.type, torch.bfloat16, enabled=stage.precision == "bf16"):
            return functional_call(network, kernels, (x,))

    if engine.compile == "off":
        return forward
    graphs = engine.compile == "graphs"
    return torch.compile(forward, dynamic=False, mode="reduce-overhead" if graphs else None)


def _with_kernel(
    depthwise: Callable[..., Tensor], conv: nn.Conv2d
) -> Callable[[Tensor], Tensor]:
    """The forward of a depthwise convolution by another kernel."""
    return lambda x: depthwise(x, conv.weight, conv.bias, conv.dilation[0])


def _keep_float32(module: nn.Module) -> None:
    """Take a module of (B, C, H, W) -> (B, C, H, W) out of autocast."""
    inner = module.forward

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return inner(x.float())

    module.forward = forward


def _gradients(
    run: Run, state: checkpoint.State, forward: Callable[[Tensor], Tensor]
) -> Tensor:
    """Leave the gradients of the global batch in the parameters; (loss, gradient norm)."""
    stage, world = run.stage, run.world
    part = slice(world.rank, None, world.size)
    dtype = torch.float64 if stage.precision == "fp64" else torch.float32
    layout = torch.channels_last if run.engine.channels_last else torch.contiguous_format
    lr, hr = (
        patches.to(world.device).to(dtype, memory_format=layout) / 255
        for patches in sample(run.source, run.seed, state.step, stage.batch, part)
    )
    state.net.zero_grad()
    share = len(lr) / stage.batch
    loss = LOSSES[stage.loss](forward(lr).to(dtype), hr) * share
    loss.backward()
    loss = loss.detach()
    grads = [p.grad for p in state.net.parameters() if p.grad is not None]
    if world.size > 1:  # one small message instead of a wrapper around the network
        flat = torch.cat([g.flatten() for g in grads] + [loss.view(1)])
        dist.all_reduce(flat)
        parts = flat.split([g.numel() for g in grads] + [1])
        torch._foreach_copy_(grads, [p.view_as(g) for p, g in zip(parts, grads, strict=False)])
        loss = parts[-1][0]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    return torch.stack((loss, norm))


def _checked(unseen: list[Tensor], step: int, stage: Stage) -> list[list[float]]:
    """The values of the steps up to `step`, each found finite, or Diverged."""
    values = torch.stack(unseen).tolist() if unseen else []
    for index, (loss, norm) in enumerate(values):
        if not (math.isfinite(loss) and math.isfinite(norm)):
            bad = step - len(values) + 1 + index
            raise Diverged(
                f"expected a finite loss and gradient, got loss {loss} and gradient norm {norm} at "
                f"step {bad}, learning rate {learning_rate(stage, bad):.3g}: lower --lr"
            )
    return values


def _validate(run: Run, state: checkpoint.State) -> None:
    """Score what would be exported: the fused average."""
    average = plain_like(state.net).to(run.world.device)
    average.load_state_dict(fused_parameters(state.ema))
    average.float()
    scores = evaluate.validate(average, run.samples, run.world.device)
    tqdm.write(f"step {state.step}: validation {scores.psnr:.3f} dB RGB, {scores.psnr_y:.3f} dB Y")
    _log(run, state, {"val_psnr": scores.psnr, "val_psnr_y": scores.psnr_y})


def _log(run: Run, state: checkpoint.State, line: dict[str, Any]) -> None:
    if run.world.rank == 0:
        line = finite({"stage": run.stage.name, "step": state.step, **line})
        log.append(run.file.parent / "log.jsonl", line)


def _begin_work(run: Run, state: checkpoint.State) -> dict[str, Any]:
    """A new record at the end of the history, of what this process will have done."""
    work = {"from_step": state.step, "to_step": state.step, "minutes": 0.0,
            "processes": run.world.size, "engine": asdict(run.engine),
            "environment": environment(run.world.device)}
    state.history.append(work)
    return work


def _save(run: Run, state: checkpoint.State, work: dict[str, Any], began: float) -> None:
    work["to_step"], work["minutes"] = state.step, (time.monotonic() - began) / 60
    if run.world.rank == 0:
        checkpoint.save(run.file, state, run.stage, run.seed, run.fingerprint)


def _agree(world: World, outcome: int, step: int) -> int:
    """The most urgent outcome of any process: all must leave the loop at the same step."""
    if world.size == 1:
        return outcome
    if world.device.type == "cuda" and step % 10:  # each answer stalls the queue of kernels
        return GO_ON
    urgency = torch.tensor(outcome, device=world.device)
    dist.all_reduce(urgency, dist.ReduceOp.MAX)
    return int(urgency)


@contextlib.contextmanager
def _stop_flag() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM end the loop after the step in progress; a second Ctrl-C at once."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        logger.warning("stopping after this step; Ctrl-C again stops at once")

    before = {n: signal.signal(n, receive) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
