"""What a checkpoint file declares, read before torch reads it: tensors of plain kinds and values.

torch.load(weights_only=True) runs no code of a file, but it makes whatever tensors and containers
the file asks for, of any size. What is read here makes nothing larger than the file's own text.
"""

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import torch

from utils.text import printable

# Bytes that describe tensors; a training state of this network has 0.1 M. Older states have 75 more
# for each image that an earlier stage or a teacher saw: 6.6 M for DIV2K, Flickr2K and LSDIR.
LARGEST_TEXT = 16 << 20
# Instructions of torch.save's pickles; others make large things of few bytes.
INSTRUCTIONS = b".(NKMJGXU\x8a\x88\x89)t\x85\x86\x87]ae}suhjqrcRbQ\x80"
MOST_COPIED = 10_000  # values of containers that the file makes of others
# Names of storages, without their ending, by the bytes of a value; and the bytes by name.
KINDS = {1: "Bool Byte Char", 2: "Half BFloat16 Short", 4: "Int Float"}
KINDS |= {8: "Long Double ComplexFloat", 16: "ComplexDouble"}
STORAGES = {f"{name}Storage": size for size, names in KINDS.items() for name in names.split()}
MAGIC = 0x1950A86A20F9469CFC6C  # what a file begins with that is no archive, torch's own number


class ForeignError(ValueError):
    """Something else than torch.save writes of tensors and values; the message says what."""


class _Kind(NamedTuple):
    """A storage's class."""

    itemsize: int


class _Storage(NamedTuple):
    """Values in a row, of which tensors are views."""

    length: int


class _Tensor:
    """A tensor that its storage holds."""

    __slots__ = ()  # a pickle cannot give it anything


class _Reader(pickle._Unpickler):
    """Reads a pickle with stand-ins for tensors; pickle's own in Python, for only that one can be
    kept from instructions.

    sizes: bytes of each storage by its key.
    """

    dispatch = {code: pickle._Unpickler.dispatch[code] for code in INSTRUCTIONS}

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.sizes: dict[str, int] = {}
        self.copied = 0

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in for what a pickle asks for by name. Raises ForeignError for all others."""
        if module == "torch" and name in STORAGES:
            return _Kind(STORAGES[name])
        known: dict[str, Callable[..., Any]] = {
            "collections.OrderedDict": OrderedDict,
            "collections.Counter": dict,
            "builtins.set": set,
            "torch.Size": tuple,
        }
        if container := known.get(f"{module}.{name}"):
            return lambda *content: container(*map(self._counted, content))
        rebuilt: dict[str, Callable[..., Any]] = {
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch._utils._rebuild_parameter": _parameter,
            "torch.device": _device,
        }
        if function := rebuilt.get(f"{module}.{name}"):
            return function
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return None  # among a program's arguments
        raise ForeignError(f"other objects in it ({printable(f'{module}.{name}')})")

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage, which lies elsewhere in the file."""
        _, kind, key, _, count = pid[:5]
        if not (isinstance(kind, _Kind) and isinstance(key, str) and _is_count(count)):
            raise ForeignError("a storage of another kind")
        size = kind.itemsize * count
        if self.sizes.setdefault(key, size) != size:
            raise ForeignError("a storage of two sizes")
        return _Storage(count)

    def _counted(self, content: Any) -> Any:
        self.copied += len(content)
        if self.copied > MOST_COPIED:
            raise ForeignError(f"more than {MOST_COPIED} values that are copied")
        return content


def of_archive(pickled: bytes) -> dict[str, int]:
    """The bytes of each storage, by its key, that the pickle of an archive declares.

    Raises:
        ForeignError: it asks for something else than tensors, or for larger ones than it stores.
        Exception: nearly any other, for it is damaged.
    """
    reader = _Reader(io.BytesIO(pickled))
    reader.load()
    return reader.sizes


def of_legacy(file: BinaryIO) -> dict[str, int]:
    """The same of a file that is no archive, as torch wrote before 1.6; pickles in a row.

    Raises: as of_archive.
    """
    text = io.BytesIO(file.read(LARGEST_TEXT))
    if _Reader(text).load() != MAGIC:
        raise ForeignError("a pickle that is not torch's")
    for _ in ("protocol", "what the machine was"):
        _Reader(text).load()
    reader = _Reader(text)
    reader.load()
    _Reader(text).load()  # the order of the storages
    return reader.sizes


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _are_counts(values: object) -> bool:
    return isinstance(values, tuple) and all(map(_is_count, values))


def _device(*name: Any) -> None:
    """torch.device(type) or (type, index)."""


def _parameter(data: Any, requires_grad: Any, hooks: Any) -> _Tensor:
    if not isinstance(data, _Tensor):
        raise ForeignError("a parameter that is no tensor")
    return data


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any
) -> _Tensor:
    if not (
        isinstance(storage, _Storage)
        and _is_count(offset)
        and _are_counts(size)
        and _are_counts(stride)
        and len(size) == len(stride) <= 64
    ):
        raise ForeignError("a tensor of another kind")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if (count := math.prod(size)) and (count > storage.length or last >= storage.length):
        raise ForeignError(
            f"a tensor of {printable(count)} values in a storage of {printable(storage.length)}"
        )
    return _Tensor()
