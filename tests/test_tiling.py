"""Tiles against the whole image."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deploy import tiling
from deploy.tiling import CONTEXT, SMALLEST, Tile, tile_size, tiles
from models.team23_LKDN import LKDN


@pytest.fixture(scope="module")
def net() -> LKDN:
    torch.manual_seed(0)
    return LKDN().eval().requires_grad_(False).double()


def restore(net: Callable[[Tensor], Tensor], x: Tensor, size: int, border: int = 0) -> Tensor:
    sides = [4 * (side - 2 * border) for side in x.shape[-2:]]
    out = x.new_full((*x.shape[:-2], *sides), float("nan"))
    tiling.restore(net, x, size, out, border)
    return out


def to_8_bit(y: Tensor) -> Tensor:
    return (y.clamp(0, 1) * 255).round()


def test_tiles_are_the_whole_image(net: LKDN) -> None:
    x = torch.rand(1, 3, 180, 141, generator=torch.Generator().manual_seed(1)).double()
    whole = net(x)
    tiled = restore(net, x, 64)
    assert (tiled - whole).abs().max() < 1e-12
    single = net.float()
    different = (to_8_bit(restore(single, x.float(), 64)) - to_8_bit(single(x.float()))).abs()
    net.double()
    assert different.max() <= 1 and (different > 0).double().mean() <= 1e-4


def test_the_context_is_what_the_network_sees() -> None:
    """A pixel depends on the one CONTEXT away and on none beyond: gradients, in float64."""
    torch.manual_seed(0)
    net = LKDN(4, 5).double()
    x = torch.rand(1, 3, 1, 2 * CONTEXT + 3).double().requires_grad_()
    middle = net(x)[..., 4 * (CONTEXT + 1) : 4 * (CONTEXT + 2)].sum()
    (gradient,) = torch.autograd.grad(middle, x)
    seen = gradient.abs().sum((0, 1, 2)) > 0
    assert seen.tolist() == [False] + [True] * (2 * CONTEXT + 1) + [False]


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (63, 190), (191, 17), (256, 319)])
@pytest.mark.parametrize("size", [30, 64, 1000])
def test_tiles_cover_each_pixel_once_and_have_one_shape(shape: tuple[int, int], size: int) -> None:
    covered = torch.zeros(shape, dtype=torch.int)
    for tile in tiles(*shape, size):
        covered[tile.top : tile.bottom, tile.left : tile.right] += 1
    assert (covered == 1).all()
    seen = set()

    def net(piece: Tensor) -> Tensor:
        seen.add(tuple(piece.shape[-2:]))
        return box(2 * CONTEXT + 1)(piece)  # sees just as far as it may

    x = torch.randint(0, 100, (1, 1, *shape)).double()
    assert (restore(net, x, size) == box(2 * CONTEXT + 1)(x)).all()
    assert len(seen) == 1 and max(*seen.pop()) <= size + 2 * CONTEXT


def box(size: int) -> Callable[[Tensor], Tensor]:
    """A stand-in network: x4 of the sum over size*size pixels, exact in integers."""

    def run(x: Tensor) -> Tensor:
        across = torch.ones(1, 1, 1, size, dtype=x.dtype)
        planes = x.flatten(0, 1)[:, None]
        y = torch.nn.functional.conv2d(planes, across, padding=(0, size // 2))
        y = torch.nn.functional.conv2d(y, across.mT.contiguous(), padding=(size // 2, 0))
        return y.view(x.shape).repeat_interleave(4, -1).repeat_interleave(4, -2)

    return run


@pytest.mark.parametrize("size", [16, 30, 1000])
def test_a_border_is_seen_and_not_part_of_the_result(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiling, "CONTEXT", 4)
    x = torch.randint(0, 100, (1, 2, 181, 67)).double()
    expected = box(9)(x)[..., 12:-12, 12:-12]
    assert (restore(box(9), x, size, border=3) == expected).all()


def test_out_of_memory_halves_the_tile_and_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiling, "CONTEXT", 2)
    x = torch.randint(0, 100, (1, 3, 150, 97)).double()
    seen: list[tuple[int, int]] = []

    def limited(piece: Tensor) -> Tensor:
        height, width = piece.shape[-2:]
        if len(seen) > 2 and height * width > 2000:
            raise torch.OutOfMemoryError("not on this card")
        seen.append((height, width))
        return box(5)(piece)

    assert (restore(limited, x, 64) == box(5)(x)).all()
    assert "tiles of 32 pixels" in caplog.text
    # Six tiles: three are done, and stay so; the others become 3, 3 and 9.
    assert len(seen) == 3 + 15


def test_out_of_memory_at_the_smallest_tile_is_an_error() -> None:
    def never(piece: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("not on this card")

    with pytest.raises(MemoryError, match="not even a tile of 16 pixels"):
        restore(never, torch.rand(1, 3, 40, 40), SMALLEST)


def test_tile_size_keeps_to_the_bound() -> None:
    size = tile_size(2**30, 2000)
    assert (size + 2 * CONTEXT) ** 2 * 2000 <= 2**30 < (size + 1 + 2 * CONTEXT) ** 2 * 2000
    with pytest.raises(MemoryError, match="expected at least 39 MiB .* got 10 MiB"):
        tile_size(10 * 2**20, 2000)


def test_tile_is_a_record() -> None:
    assert tiles(3, 5, 64) == [Tile(0, 3, 0, 5)]
