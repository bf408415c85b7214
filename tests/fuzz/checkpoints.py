"""Checkpoint files of the shipped network, damaged or made to do harm, and their loader."""

import functools
import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.team23_LKDN import LKDN
from tests.fuzz.damage import EXTREMES, HOSTILE, Rng, damaged, pick, restructured
from tests.fuzz.kinds import Kind, Unfit
from train.reparam import training_form
from utils.weights import SHIPPED, CheckpointError, load_weights

# Files with damaged bytes are called so: where they load, it must be as the numbers they had.
BYTES = "bytes.pth"
# What a pickle may ask for by name, and how often it does: memory, time, or other tensors.
GLOBALS = (
    "builtins bytearray",
    "builtins set",
    "builtins complex",
    "builtins eval",
    "os system",
    "collections Counter",
    "collections OrderedDict",
    "torch Tensor",
    "torch FloatTensor",
    "torch Size",
    "torch device",
    "torch.nn.parameter Parameter",
    "torch.storage UntypedStorage",
    "torch FloatStorage",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_sparse_tensor",
    "torch._utils _rebuild_nested_tensor",
    "torch._utils _rebuild_qtensor",
    "torch._utils _rebuild_meta_tensor_no_storage",
    "torch._utils _rebuild_wrapper_subclass",
    "torch._tensor _rebuild_from_type_v2",
    "_codecs encode",
)


@functools.cache
def seeds() -> list[Any]:
    """Contents of checkpoints: bare, in training form, averages beside others."""
    shipped = torch.load(SHIPPED, weights_only=True)
    torch.manual_seed(0)
    form = training_form(LKDN()).state_dict()
    nested = {"params": form, "params_ema": shipped, "step": 3, "history": [{"a": 0.5}]}
    prefixed = OrderedDict((f"module.{name}", value) for name, value in shipped.items())
    return [shipped, nested, {"state_dict": prefixed, "epoch": 1}, form]


def saved(content: Any, legacy: bool = False) -> bytes:
    """As torch.save writes it."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def tensor(old: Tensor, rng: Rng) -> Any:
    """Another in place of a tensor: kind, numbers, shape, or memory that many share."""
    large = torch.zeros(1).expand(10**6, 10**6)
    others = [
        lambda: old.to(pick(rng, [torch.bool, torch.int8, torch.int64, torch.complex64])),
        lambda: old.to(pick(rng, [torch.float16, torch.bfloat16, torch.float64])),
        lambda: old.to(pick(rng, [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16])),
        lambda: torch.full_like(old, pick(rng, [float("nan"), float("inf"), 1e38, 0.0])),
        lambda: old.to_sparse(),
        lambda: old.to("meta"),
        lambda: torch.quantize_per_tensor(old.float(), 0.1, 0, torch.qint8),
        lambda: torch.nested.nested_tensor([old.flatten()]),
        lambda: old.transpose(0, -1) if old.dim() else old,
        lambda: old[:0] if old.dim() else old[None],
        lambda: old.flatten()[:1].expand(old.shape) if old.numel() else old,
        lambda: old.clone().requires_grad_(),
        lambda: torch.nn.Parameter(old.clone()) if old.is_floating_point() else old,
        lambda: torch.zeros(1).expand(2**40),
        lambda: large,
        lambda: torch.zeros(int(rng.integers(100_000)), 3, 1, 1),
    ]
    try:
        return pick(rng, others)()
    except (RuntimeError, TypeError):  # not of this one
        return old[None]


def rebuilt(data: bytes, rng: Rng) -> bytes:
    """An archive with one part damaged, left out, made larger or packed, and right checksums."""
    buffer, kind = io.BytesIO(), int(rng.integers(5))
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        parts = {part.filename: source.read(part) for part in source.infolist()}
    described = next(name for name in parts if name.endswith("data.pkl"))
    chosen = described if rng.random() < 0.6 else pick(rng, list(parts))
    method = zipfile.ZIP_STORED
    if kind == 0 and chosen != described:
        del parts[chosen]
    elif kind == 1 and chosen != described:
        parts[chosen] = bytes(int(rng.choice([0, 3, 5_000_000])))
    elif kind == 2:
        method = zipfile.ZIP_DEFLATED
        parts[chosen] += bytes(int(rng.choice([0, 200_000_000])))
    elif kind == 3:
        parts[described] = declared_otherwise(parts[described], rng)
    else:
        parts[chosen] = damaged(parts[chosen], rng)
    with zipfile.ZipFile(buffer, "w", method) as target:
        for name, content in parts.items():
            target.writestr(name, content)
    return buffer.getvalue()


def declared_otherwise(pickled: bytes, rng: Rng) -> bytes:
    """A pickle with some of its small integers, those of sizes and strides, set to extremes."""
    changed = bytearray(pickled)
    small = [at for at in range(len(pickled) - 5) if pickled[at] in b"JKM"]
    for at in (pick(rng, small) for _ in range(3)):
        code, number = chr(pickled[at]), pick(rng, EXTREMES)
        size = {"K": 1, "M": 2, "J": 4}[code]
        changed[at + 1 : at + 1 + size] = struct.pack("<Q", number)[:size]
    if rng.random() < 0.3:  # in place of one byte, eight: a number that is really large
        at = pick(rng, [at for at in small if pickled[at] in b"K"])
        changed[at : at + 2] = b"\x8a\x08" + struct.pack("<q", pick(rng, [2**40, 2**62, -1]))
    return bytes(changed)


def bomb(rng: Rng) -> bytes:
    """A pickle by hand, of few bytes, that asks for much."""
    name = pick(rng, GLOBALS).replace(" ", "\n").encode()
    number = b"\x8a\x08" + struct.pack("<q", pick(rng, [3, 2**20, 2**33, 2**40, -1]))
    many, times = b"]q\0(" + b"K\1" * 10_000 + b"e", int(rng.choice([1, 1000, 100_000]))
    pairs = (
        b"]q\0(" + b"".join(b"J" + struct.pack("<i", i) + b"K\1\x86" for i in range(3000)) + b"e"
    )
    called = pick(
        rng,
        [
            b"c" + name + b"\n" + number + b"\x85R",
            b"c" + name + b"\n" + number * 2 + b"\x86R",
            many + (b"c" + name + b"\nh\0\x85R") * min(times, 20_000),
            pairs + b"ccollections\nOrderedDict\nq\1" + b"h\1h\0\x85R" * min(times, 20_000),
            b"(" + b"}" * times * 30 + b"l",
            b"]" * times + b"a" * (times - 1),
            b"]q\0" + b"h\0h\0\x86q\0" * min(times, 50_000),
            b"X" + struct.pack("<I", 2**31 - 1) + b"short",
            b"Nr" + struct.pack("<I", 2**31 - 1),
            b"\x96" + struct.pack("<Q", 2**34),
            b"Nc" + name + b"\n\x81",
        ],
    )
    return b"\x80\x02" + (b"" if called[:1] in b"(" else b"(") + called + b"t."


def archive(pickled: bytes) -> bytes:
    """A checkpoint of a pickle alone."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name, content in (("data.pkl", pickled), ("version", b"3\n"), ("byteorder", b"little")):
            target.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def make_file(rng: Rng, folder: Path, contents: list[Any], name: str = BYTES) -> Path:
    """One of the contents as a file, damaged: its bytes, its archive, what is in it, or a bomb."""
    content, kind = pick(rng, contents), int(rng.integers(6))
    path = folder / (name if kind == 0 else "made.pth" if name == BYTES else name)
    if kind == 0:
        data = damaged(saved(content), rng)
    elif kind == 1:
        data = rebuilt(saved(content), rng)
    elif kind == 2:
        data = damaged(saved(content, legacy=True), rng)
    elif kind == 3 and rng.random() < 0.5:
        data = bomb(rng)
        data = (
            archive(data)
            if rng.random() < 0.5
            else pickle.dumps(0x1950A86A20F9469CFC6C, 2)
            + (pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2) + data)
        )
    else:
        try:
            data = saved(restructured(content, rng, (Tensor, tensor)))
        except (pickle.PicklingError, RuntimeError, UnicodeError, RecursionError, OverflowError):
            data = saved(pick(rng, HOSTILE[:-1]))
    path.write_bytes(data)
    return path


def make(rng: Rng, folder: Path) -> Path:
    """A damaged checkpoint."""
    return make_file(rng, folder, seeds())


def attack(path: Path) -> None:
    """Load it into the network."""
    torch.set_num_threads(1)
    net = LKDN()
    load_weights(net, path)
    state = net.state_dict()
    if not all(torch.isfinite(value).all() for value in state.values()):
        raise Unfit("weights that are not finite")
    if path.name == BYTES and not all(torch.equal(state[k], v) for k, v in seeds()[0].items()):
        raise Unfit("other weights than the file had")


KIND = Kind("checkpoints", make, attack, (CheckpointError,))
