"""A network on CUDA as recorded graphs: one launch for all its kernels."""

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from utils.memory import is_exhausted
from utils.text import first_line

GRAPHS = 8  # image sizes and dtypes of which a graph is kept
MOST_PIXELS = 1 << 20  # of a recorded image; beyond, launches take no time beside the kernels

Kind = tuple[torch.Size, torch.dtype]  # of images that a graph is for

logger = logging.getLogger(__name__)


def replay_graphs(fast: nn.Module, limit: int = GRAPHS) -> Callable[[Tensor], Tensor]:
    """The network as one CUDA graph for each shape and dtype that come a second time, the ones
    used last kept.

    What comes once is run kernel by kernel: recording costs more than it saves. All graphs
    share one pool of memory: what the largest needs, and a result each. What a replay leaves behind
    is copied before another begins. Calls take turns; threads have to see to it. Where recording
    fails, memory apart, a line says so, and all runs kernel by kernel from then on.
    """
    seen: OrderedDict[Kind, Callable[[Tensor], Tensor] | None] = OrderedDict()
    shared: list[Any] = []  # a pool's handle and a stream, once they are needed
    able = True

    def run(x: Tensor) -> Tensor:
        if not able or len(x) * x.shape[-2] * x.shape[-1] > MOST_PIXELS:
            return fast(x)
        kind = (x.shape, x.dtype)
        known = kind in seen
        own = seen.pop(kind, None)
        if known and own is None:
            own = record(x)
        seen[kind] = own
        if len(seen) > limit:
            seen.popitem(last=False)
        return (own or fast)(x)

    def record(x: Tensor) -> Callable[[Tensor], Tensor]:
        # One stream: what was freed on a stream is used again on the same alone. It is not
        # torch's, which is of the first device used.
        nonlocal able
        stream = torch.cuda.current_stream(x.device)
        try:
            shared[:] = shared or [torch.cuda.graph_pool_handle(), torch.cuda.Stream(x.device)]
            return _Recorded(fast, x, *shared).replay
        except Exception as error:
            torch.cuda.set_stream(stream)  # torch leaves its own where a recording cannot end
            seen.clear()  # and their memory; this kind is not tried again while it is kept
            if not is_exhausted(error):
                able = False
                reason = f"{type(error).__name__}: {first_line(error)}"
                logger.warning("running without CUDA graphs, which cannot be recorded: %s", reason)
            return fast

    def on_its_device(x: Tensor) -> Tensor:
        with torch.cuda.device_of(x):
            return run(x)

    return on_its_device


class _Recorded:
    """A graph of one forward, with the tensors it reads and writes.

    They may be made under inference_mode and used outside of it, where nobody may write to a
    tensor of that mode.
    """

    def __init__(self, fast: nn.Module, x: Tensor, pool: Any, stream: Any) -> None:
        with torch.inference_mode(False), torch.no_grad():
            self.source = torch.empty_like(x).copy_(x)
            self.graph = torch.cuda.CUDAGraph()
            # Other threads may go on to ask for memory meanwhile.
            with torch.cuda.graph(self.graph, pool, stream, capture_error_mode="thread_local"):
                self.result = fast(self.source)

    def replay(self, x: Tensor) -> Tensor:
        self.source.copy_(x)
        self.graph.replay()
        return self.result.clone()  # the next replay writes over it
