"""Geometric self-ensemble, as EDSR+ has it (Lim et al., 2017)."""

from collections.abc import Callable

from torch import Tensor


def mean_of_eight(net: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The mean of what a network makes of images in their eight positions, each turned back.

    Args:
        net: (B, 3, H, W) -> (B, 3, scale*H, scale*W), of any H and W.
        x: (B, 3, H, W).
    """
    total: Tensor | None = None
    for turns in range(4):
        for flip in (False, True):
            seen = x.rot90(turns, (-2, -1))
            y = net((seen.flip(-1) if flip else seen).contiguous())
            y = (y.flip(-1) if flip else y).rot90(-turns, (-2, -1))
            total = y.clone() if total is None else total.add_(y)
    assert total is not None
    return total.div_(8)
