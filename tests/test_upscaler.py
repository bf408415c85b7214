"""Upscaler against the plain network in torch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import mirrored
from numpy.typing import NDArray
from skimage import data
from torch import Tensor

from deploy import backends, tiling
from deploy import upscaler as module
from deploy.upscaler import Upscaler
from models.team23_LKDN import LKDN
from utils.bicubic import downscale
from utils.command import UserError
from utils.devices import DeviceError
from utils.weights import CheckpointError

MIB = 2**20


@pytest.fixture(scope="module")
def eager(random_weights: Path) -> Upscaler:
    return Upscaler("cpu", "eager", checkpoint=random_weights)


def plain(net: Callable[[Tensor], Tensor], image: NDArray) -> NDArray:
    """(H, W, 3) uint8 or uint16, mirrored around, through the network in one piece, rounded."""
    levels = np.iinfo(image.dtype).max
    x = torch.from_numpy(mirrored(image).astype(np.float32) / levels).permute(2, 0, 1)[None]
    y = (net(x)[0, :, 12:-12, 12:-12].clamp(0, 1) * levels).round().permute(1, 2, 0)
    return y.numpy().astype(image.dtype)


def same(got: NDArray, expected: NDArray) -> bool:
    """Sums in another order may round a value in a thousand to the next level."""
    apart = np.abs(got.astype(int) - expected.astype(int))
    levels = 1 if got.dtype == np.uint8 else 4  # 4 of 65535 are 6e-5
    few = got.dtype == np.uint16 or (apart > 0).mean() <= 1e-3
    return (
        got.shape == expected.shape
        and got.dtype == expected.dtype
        and bool(apart.max() <= levels and few)
    )


@pytest.mark.parametrize("backend", ["eager", "auto"])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (37, 53)])
def test_an_image_is_what_the_network_makes_of_it(
    random_net: LKDN, random_weights: Path, noise: Callable, backend: str, size: tuple[int, int]
) -> None:
    upscaler = Upscaler("cpu", backend, checkpoint=random_weights)
    image = noise(*size)
    before = image.copy()
    assert same(upscaler(image), plain(random_net, image))
    assert (image == before).all()
    assert upscaler.device == torch.device("cpu") and upscaler.checkpoint == "random.pth"
    assert upscaler.backend.name == backend or backend == "auto"
    deep = image.astype(np.uint16) * 257 - np.minimum(image, 5)
    assert same(upscaler(deep), plain(random_net, deep))
    assert len(np.unique(upscaler(deep) % 257)) > 10 or image.size < 10  # all 16 bits are used


def test_a_batch_is_its_images(random_net: LKDN, random_weights: Path, noise: Callable) -> None:
    batch = np.stack([noise(30, 26, seed) for seed in range(2)])
    expected = np.stack([plain(random_net, image) for image in batch])
    assert same(Upscaler("cpu", "eager", checkpoint=random_weights)(batch), expected)
    # What does not fit together goes one by one.
    one = 30 * 26 * 6200 + batch.nbytes * 17
    small = Upscaler("cpu", "eager", checkpoint=random_weights, memory_bytes=max(one, 130 * MIB))
    large = np.stack([noise(170, 110, seed) for seed in range(2)])
    together: list[int] = []
    forward = small._forward
    small._forward = lambda piece: together.append(len(piece)) or forward(piece)  # type: ignore
    assert same(small(large), np.stack([plain(random_net, image) for image in large]))
    assert set(together) == {1} and same(small(batch), expected) and together[-1] == 2


def test_views_and_grey_images(random_net: LKDN, eager: Upscaler, noise: Callable) -> None:
    image = noise(21, 34)
    turned = image[::-1, :, ::-1]
    assert same(eager(turned), plain(random_net, np.ascontiguousarray(turned)))
    locked = image.copy()
    locked.setflags(write=False)
    assert same(eager(locked), plain(random_net, image))
    grey = image[..., :1]
    repeated = torch.from_numpy(mirrored(grey).repeat(3, 2)).permute(2, 0, 1)[None] / 255
    mean = random_net(repeated).mean(1)[0, 12:-12, 12:-12, None]
    mean = (mean.clamp(0, 1) * 255).round().numpy()
    assert same(eager(grey), mean.astype(np.uint8))


def test_restore_gives_the_floats(random_net: LKDN, eager: Upscaler, noise: Callable) -> None:
    rgb = noise(19, 23).astype(np.float32) / 255
    x = torch.from_numpy(mirrored(rgb)).permute(2, 0, 1)[None]
    expected = random_net(x)[0, :, 12:-12, 12:-12].permute(1, 2, 0).numpy()
    got = eager.restore(rgb)
    assert got.dtype == np.float32 and got.shape == (76, 92, 3)
    assert np.abs(got - expected).max() < 1e-5


def test_tiles_are_the_whole(random_net: LKDN, random_weights: Path, noise: Callable) -> None:
    image = noise(170, 221)
    expected = plain(random_net, image)
    tiled = Upscaler("cpu", "eager", checkpoint=random_weights, tile=32)
    assert tiled.tile_for(170, 221) == 32 and tiled.tile_for(100, 152) is None
    assert tiled.tile_for(100, 153) == 32  # with the border around it
    assert same(tiled(image), expected)


def test_little_memory_forces_tiles(
    random_net: LKDN, random_weights: Path, noise: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = noise(170, 221)
    sizes = []
    original = tiling.restore

    def watched(run: Callable, x: Tensor, size: int, *rest: object, **named: object) -> Tensor:
        sizes.append(size)
        return original(run, x, size, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(tiling, "restore", watched)
    for memory, most in ((2**40, 227), (160 * MIB, 40)):
        upscaler = Upscaler("cpu", "eager", checkpoint=random_weights, memory_bytes=memory)
        assert same(upscaler(image), plain(random_net, image))
        assert sizes.pop() <= most and upscaler.memory_bytes == memory
    assert upscaler.tile_for(5000, 5000, held=160 * MIB) == tiling.SMALLEST
    assert Upscaler("cpu", "eager", checkpoint=random_weights).memory_bytes > 160 * MIB


def test_a_picture_takes_nothing_of_a_gpus_memory(random_weights: Path) -> None:
    """Its pixels lie in the machine's."""
    upscaler = Upscaler("cpu", "eager", checkpoint=random_weights, memory_bytes=160 * MIB)
    fits = 150, 150
    assert upscaler.tile_for(*fits, held=0) is None
    assert upscaler.tile_for(*fits, held=159 * MIB) is not None
    upscaler.device = torch.device("cuda")
    assert upscaler.tile_for(*fits, held=159 * MIB) is None


@pytest.mark.parametrize("free_gib", [1, 2, 4, 16, 256])
@pytest.mark.parametrize(
    ("size", "depth"), [((5472, 3648), 1), ((4000, 3000), 2), ((8192, 8192), 1), ((8192, 8192), 2)]
)
def test_large_photos_leave_room_for_tiles(
    random_weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    free_gib: int,
    size: tuple[int, int],
    depth: int,
) -> None:
    """Though they may take all the memory that is free, and more: little is computed twice."""
    monkeypatch.setattr(module, "free_memory", lambda device: free_gib << 30)
    held = 54 * depth * size[0] * size[1]  # input, the same with a border, result
    for backend in ("eager", "native"):
        upscaler = Upscaler("cpu", backend, checkpoint=random_weights)
        tile = upscaler.tile_for(*size, held)
        assert tile is not None
        seen = (tile + 2 * tiling.CONTEXT) ** 2
        assert seen * upscaler.backend.memory <= upscaler.memory_bytes
        assert seen <= module.CPU_PIXELS
        assert seen < 3.5 * tile**2 or (backend, free_gib) == ("eager", 1)
        if free_gib >= 16:
            assert upscaler.tile_for(800, 900) is None
            assert upscaler.tile_for(900, 900) is not None


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_triton_gets_no_more_than_it_can_count(
    monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Photos of 30 megapixels fit into a large GPU's memory."""
    made = backends.Backend("triton", precision, lambda x: x)
    monkeypatch.setattr(module, "free_memory", lambda device: 139 << 30)
    monkeypatch.setattr(module, "select_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(module.backends, "make", lambda *arguments: made)
    upscaler = Upscaler("cuda")
    assert upscaler.tile_for(4000, 4000) is None
    for width, height in ((6000, 5000), (8192, 8192), (67_000, 1000)):
        tile = upscaler.tile_for(width, height)
        assert tile is not None
        assert (tile + 2 * tiling.CONTEXT) ** 2 * 72 < 2**31  # numbers of features, in int32
        assert upscaler.tile_for(width, height, held=1 << 30) == tile
    with pytest.raises(UserError, match="at most 53[0-9][0-9] on triton, got 8000"):
        Upscaler("cuda", tile=8000)


def test_tiles_in_which_least_is_computed_twice_are_taken() -> None:
    for height, width, largest in ((1500, 2500, 640), (700, 90, 300), (2000, 2000, 1500)):
        computed = {}
        for size in range(largest // 2, largest + 1):
            seen = size + 2 * tiling.CONTEXT
            pieces = len(tiling.tiles(height, width, size))
            computed[size] = pieces * min(height, seen) * min(width, seen)
        best = module._best_tile(height, width, largest)
        assert computed[best] == min(computed.values())


@pytest.mark.parametrize("options", [{}, {"self_ensemble": True}, {"backend": "native"}])
def test_a_plain_picture_stays_plain(options: dict[str, object]) -> None:
    """Within two levels, which the weights lose of one white pixel; with zeros around it, 18."""
    upscaler = Upscaler("cpu", **{"backend": "eager"} | options)  # type: ignore[arg-type]
    for colour in ((255, 255, 255), (0, 0, 0), (200, 30, 40)):
        for size in ((24, 31), (1, 1), (2, 5)):
            flat = np.full((*size, 3), colour, np.uint8)
            assert np.abs(upscaler(flat).astype(int) - colour).max() <= 2
            floats = upscaler.restore(flat.astype(np.float32) / 255)
            assert np.abs(255 * floats - colour).max() <= 2


def test_photos_lose_little_to_what_is_put_around_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean PSNR of small crops, all of them and their outer 12 pixels: 0.04 and 0.19 dB below the
    bare network's, which learned with zeros around; with an edge repeated 0.3 and 0.8 dB."""
    lr, hr = [], []
    for picture in (data.astronaut(), data.coffee(), data.chelsea()):
        small = downscale(picture)
        for y, x in ((4, 4), (4, 44), (28, 24)):
            lr.append(small[y : y + 40, x : x + 40])
            hr.append(picture[4 * y : 4 * (y + 40), 4 * x : 4 * (x + 40)])
    rim = np.ones((160, 160), bool)
    rim[12:-12, 12:-12] = False
    upscaler, means = Upscaler("cpu", "eager"), {}
    for border in (0, 3):
        monkeypatch.setattr(module, "BORDER", border)
        errors = np.square(upscaler(np.stack(lr)).astype(float) - np.stack(hr))
        means[border] = [
            np.mean(10 * np.log10(255**2 / part.mean((1, 2))))
            for part in (errors.reshape(9, -1, 3), errors[:, rim])
        ]
    assert (np.array(means[3]) >= np.array(means[0]) - (0.1, 0.3)).all()


def test_self_ensemble_is_the_mean_of_eight(
    random_net: LKDN, random_weights: Path, noise: Callable
) -> None:
    image = noise(17, 30)

    def eight(x: Tensor) -> Tensor:
        results = []
        for turns in range(4):
            for flip in (False, True):
                seen = torch.rot90(x.flip(-1) if flip else x, turns, (-2, -1))
                y = torch.rot90(random_net(seen), -turns, (-2, -1))
                results.append(y.flip(-1) if flip else y)
        return torch.stack(results).mean(0)

    upscaler = Upscaler("cpu", "eager", checkpoint=random_weights, self_ensemble=True)
    assert same(upscaler(image), plain(eight, image))
    # Turning the image turns the result: no position is preferred.
    assert same(upscaler(np.rot90(image)), np.rot90(upscaler(image)))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5), np.uint8), r"got uint8 of shape \(4, 5\)"),
        (np.zeros((4, 5, 4), np.uint8), r"got uint8 of shape \(4, 5, 4\)"),
        (np.zeros((0, 5, 3), np.uint8), r"got uint8 of shape \(0, 5, 3\)"),
        (np.zeros((4, 5, 3), np.float32), r"expected uint8 or uint16 .* got float32"),
        (np.zeros((1, 1, 4, 5, 3), np.uint8), r"\(B, H, W, 3\)"),
        ([[1, 2, 3]], "expected a NumPy array, .* got list"),
        (torch.zeros(4, 5, 3), "got Tensor"),
    ],
)
def test_other_input_is_refused(eager: Upscaler, image: NDArray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        eager(image)


def test_restore_refuses_integers(eager: Upscaler) -> None:
    with pytest.raises(ValueError, match="expected float32 .* got uint8"):
        eager.restore(np.zeros((4, 5, 3), np.uint8))


def test_wrong_options_are_refused(random_weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    torch.save(LKDN(56, 8).state_dict(), other)
    with pytest.raises(ValueError, match="expected a tile of at least 16"):
        Upscaler("cpu", tile=3)
    with pytest.raises(DeviceError, match="expected a device of auto"):
        Upscaler("tpu")
    with pytest.raises(ValueError, match="expected a backend of eager"):
        Upscaler("cpu", "fast", checkpoint=random_weights)
    with pytest.raises(CheckpointError, match="does not fit LKDN"):
        Upscaler("cpu", "eager", checkpoint=other)
    with pytest.raises(UserError, match="expected at least 120 MiB"):
        Upscaler("cpu", "eager", checkpoint=random_weights, memory_bytes=MIB)


def test_a_broken_network_is_no_black_picture(
    random_net: LKDN, tmp_path: Path, noise: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {key: value.clone() for key, value in random_net.state_dict().items()}
    upscaler_bias = next(key for key in state if key.endswith("upsampler.0.bias"))
    state[upscaler_bias].fill_(3e38)
    state[upscaler_bias.replace("bias", "weight")].fill_(3e38)
    torch.save(state, tmp_path / "huge.pth")
    with pytest.raises(FloatingPointError, match="expected finite pixels"):
        Upscaler("cpu", "eager", checkpoint=tmp_path / "huge.pth")(noise(8, 8))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_broken_pixel_is_noticed_wherever_it_is(
    random_weights: Path, noise: Callable, value: float
) -> None:
    upscaler = Upscaler("cpu", "eager", checkpoint=random_weights)
    for channel, y, x in ((0, 0, 0), (1, 30, 41), (2, 55, 79)):

        def broken(piece: Tensor, at: tuple[int, int, int] = (channel, y, x)) -> Tensor:
            result = piece.repeat_interleave(4, 2).repeat_interleave(4, 3)
            result[(0, *at)] = value
            return result

        upscaler.backend = broken  # type: ignore[assignment]
        with pytest.raises(FloatingPointError, match="expected finite pixels"):
            upscaler(noise(8, 14))
