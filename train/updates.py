"""What a step does with its gradients: optimisers, then the average."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from train.optim import set_learning_rate, update_ema
from train.recording import Recorder, recorded
from train.soap import Soap


def make_update(
    optimizers: Sequence[torch.optim.Optimizer],
    average: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    decay: float,
    recorder: Recorder | None = None,
) -> Callable[[int, float], None]:
    """What changes weights and average by the gradients of step 0, 1, .., given it and its rate.

    Args:
        optimizers: from train.optim.make_optimizers.
        average, weights: by name.
        decay: of the average.
        recorder: where it is to be one CUDA graph.
    """
    if recorder:
        return _recorded_update(optimizers, average, weights, decay, recorder)

    def update(step: int, rate: float) -> None:
        set_learning_rate(optimizers, rate)
        for optimizer in optimizers:
            optimizer.step()
        update_ema(average, weights, 1 - kept(decay, step))

    return update


def kept(decay: float, step: int) -> float:
    """What the average keeps of itself: early steps average over fewer, so that the random start
    is forgotten."""
    return min(decay, (1 + step) / (10 + step))


def _recorded_update(
    optimizers: Sequence[torch.optim.Optimizer],
    average: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    decay: float,
    recorder: Recorder,
) -> Callable[[int, float], None]:
    """All that is not the same at each step goes to the device as one row of numbers."""
    for optimizer in optimizers:
        if isinstance(optimizer, torch.optim.Adam):
            # torch warns of steps that are not captured, such as the first ones here.
            optimizer._warned_capturable_if_run_uncaptured = True
            for group in optimizer.param_groups:
                group["capturable"] = True
    device = next(iter(weights.values())).device
    numbers = torch.zeros(0, device=device)

    @torch.no_grad()
    def launch() -> None:
        each = iter(numbers)
        for optimizer in optimizers:
            _launch(optimizer, each)
        update_ema(average, weights, next(each))

    run = recorded(launch, recorder)

    def update(step: int, rate: float) -> None:
        nonlocal numbers
        set_learning_rate(optimizers, rate)
        counted = [number for optimizer in optimizers for number in _count(optimizer)]
        new = torch.tensor([*counted, 1 - kept(decay, step)])
        if len(numbers) != len(new):
            numbers = torch.zeros_like(new, device=device)
        # From pinned memory of its own the copy does not wait for the GPU.
        numbers.copy_(new.pin_memory() if device.type == "cuda" else new, non_blocking=True)
        run()
        for optimizer in optimizers:
            if isinstance(optimizer, Soap):
                optimizer.turn()

    return update


def _count(optimizer: torch.optim.Optimizer) -> list[float]:
    """What is new in an optimiser's step but the gradients."""
    if isinstance(optimizer, Soap):
        return optimizer.count()
    return [group["lr"] for group in optimizer.param_groups]


def _launch(optimizer: torch.optim.Optimizer, numbers: Iterator[Tensor]) -> None:
    """An optimiser's step with the next of these numbers, as many as it counted."""
    if isinstance(optimizer, Soap):
        optimizer.launch(numbers)
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        for group in optimizer.param_groups:
            group["lr"] = next(numbers)
        optimizer.step()
    finally:
        for group, number in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = number
