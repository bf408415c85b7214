"""Checkpoint files into networks: strict, weights only, with errors that name the misfit."""

import itertools
import logging
import os
import struct
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from utils import declared
from utils.command import UserError
from utils.declared import ForeignError
from utils.files import ROOT
from utils.text import printable

SHIPPED = ROOT / "model_zoo" / "team23_LKDN.pth"
# Where a state dict may lie in a checkpoint file, the averaged weights first.
NESTED_UNDER = ("params_ema", "params", "state_dict", "model_state_dict", "model")
# What wrappers put before every name: DataParallel, torch.compile, and programs of others.
PREFIXES = ("module.", "_orig_mod.", "net.", "model.")
LARGEST = 1 << 30  # bytes of all tensors; a training state of this network has up to 9 million
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # of weights
# What files begin with that are saved under a checkpoint's name.
FOREIGN = {
    b"version https://git-lfs": "a Git LFS pointer: run git lfs pull",
    b"<": "a web page: download the file itself",
    b"\x89PNG": "a picture",
    b"\x89HDF": "an HDF5 file",
}

logger = logging.getLogger(__name__)


class CheckpointError(UserError):
    """A file that does not hold this network's weights; the message says in what way."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint file onto the CPU without running any code in it.

    A file that torch.save writes is an archive with a checksum of each part, and these are
    compared: of a single changed byte most would load as other numbers. What a file declares is
    read before torch makes it.

    Raises:
        CheckpointError: missing, unreadable, damaged, too large, no dictionary, or with others in
            it than tensors, texts, numbers and what holds them.
    """
    try:
        with open(path, "rb") as file:
            _check_kind(file)
            # From the open file, not the path: for some suffixes torch calls other libraries.
            content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"expected a checkpoint, found no file: {path}") from error
    except CheckpointError as error:
        raise CheckpointError(f"expected a PyTorch checkpoint, got {error}: {path}") from error
    except ForeignError as error:
        raise CheckpointError(
            f"expected a PyTorch checkpoint of tensors, got {error}; save the model's "
            f"state_dict(): {path}"
        ) from error
    except OSError as error:
        raise CheckpointError(f"expected a checkpoint, got {error.strerror}: {path}") from error
    # Damage makes torch raise nearly anything, in words that advise to run the code in the file.
    except Exception as error:
        raise CheckpointError(
            "expected a PyTorch checkpoint of tensors, got a damaged file or one with other "
            f"objects in it, as a whole pickled model has ({type(error).__name__}); save the "
            f"model's state_dict(): {path}"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"expected a dictionary in {path}, got {type(content).__name__}")
    return content


def _check_kind(file: BinaryIO) -> None:
    """Look at a file before torch does, and go back to its beginning.

    Raises:
        CheckpointError: it is known to be something else, damaged or too large.
    """
    head = file.read(32)
    for start, kind in FOREIGN.items():
        if head.lstrip().startswith(start):
            raise CheckpointError(kind)
    if head.startswith(b"PK"):
        try:
            with zipfile.ZipFile(file) as archive:
                _check_archive(archive)
        except (zipfile.BadZipFile, NotImplementedError, struct.error, EOFError) as error:
            raise CheckpointError("a damaged archive") from error
    elif not head:
        raise CheckpointError("an empty file")
    else:
        file.seek(0)
        _check_size(size := os.fstat(file.fileno()).st_size)
        if sum(declared.of_legacy(file).values()) > size:
            raise CheckpointError("a file that was cut")
    file.seek(0)


def _check_archive(archive: zipfile.ZipFile) -> None:
    """Sizes first, then the checksums of all parts, then what they are to become.

    Raises:
        CheckpointError: damaged, too large, or no archive of torch.save.
        ForeignError: of other objects.
    """
    parts = {part.filename.lower(): part for part in archive.infolist()}  # as torch compares names
    folder = next(iter(parts), "").partition("/")[0]
    described = parts.get(f"{folder}/data.pkl")
    if any(name.endswith("/constants.pkl") for name in parts):
        raise CheckpointError("a TorchScript program: save its state_dict()")
    if described is None or len(parts) < len(archive.infolist()):
        raise CheckpointError("an archive that torch.save did not write")
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts.values()):
        raise CheckpointError("a compressed archive, which torch.save does not write")
    _check_size(sum(part.file_size for part in parts.values()))
    if described.file_size > declared.LARGEST_TEXT:
        raise CheckpointError(
            f"{described.file_size} bytes that describe tensors, of which "
            f"{declared.LARGEST_TEXT} are allowed"
        )
    if damaged := archive.testzip():
        raise CheckpointError(
            f"a damaged file (checksum of {printable(damaged)}): copy or download it again"
        )
    for key, size in declared.of_archive(archive.read(described)).items():
        part = parts.get(f"{folder}/data/{key}".lower())
        if part is None or part.file_size != size:
            raise CheckpointError(f"a damaged file (the {size} bytes of tensor {printable(key)})")


def _check_size(size: int) -> None:
    if size > LARGEST:
        raise CheckpointError(f"{size} bytes of tensors, of which {LARGEST} are allowed")


def named_weights(text: str) -> tuple[Path, str | None]:
    """FILE or FILE:KEY, where KEY is one of NESTED_UNDER, as the file and the key."""
    file, _, key = text.rpartition(":")
    return (Path(file), key) if file and key in NESTED_UNDER else (Path(text), None)


def state_dict_of(
    content: Mapping[str, Any], path: str | Path = "checkpoint", key: str | None = None
) -> dict[str, Tensor]:
    """The state dict in a checkpoint: bare, or under one of NESTED_UNDER, which `key` says or,
    without it, the first that is there.

    Raises:
        CheckpointError: what is there is not a dictionary of tensors, or `key` is not there.
    """
    if key and key not in content:
        raise CheckpointError(
            f"expected {key} in {path}, got the keys {_some(content)}: leave out :{key}"
        )
    names = [key] if key else NESTED_UNDER
    nested = (content[name] for name in names if content.get(name) is not None)
    state = next(nested, content)
    if (
        not isinstance(state, Mapping)
        or not state
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    ):
        raise CheckpointError(
            f"expected a state dict, bare or under {', '.join(NESTED_UNDER)}, in {path}; "
            f"got the keys {_some(content)}"
        )
    return dict(state)


def load_weights(net: nn.Module, path: str | Path, key: str | None = None) -> None:
    """Load a checkpoint file into `net`, every key and shape as expected; `key`: `state_dict_of`.

    Raises:
        CheckpointError: unreadable, or other keys, shapes or values than the network's.
    """
    load_state(net, state_dict_of(read_checkpoint(path), path, key), path)


def load_state(net: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Load a state dict strictly, but for a prefix of all its names that a wrapper left; `path`
    names it in errors. Raises CheckpointError."""
    expected = net.state_dict()
    state = without_prefix(state, expected, path)
    foreign = [
        f"{printable(key)} {value.dtype}"
        for key, value in state.items()
        if not (value.dtype in DTYPES or key in expected and value.dtype == expected[key].dtype)
    ]
    misfits = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": [
            f"{key} {tuple(state[key].shape)}, expected {tuple(expected[key].shape)}"
            for key in expected
            if key in state and state[key].shape != expected[key].shape
        ],
        "not floating-point numbers": foreign,
    }
    if any(misfits.values()):
        reasons = "; ".join(f"{kind}: {_some(keys)}" for kind, keys in misfits.items() if keys)
        if any(".rep1x1." in key for key in misfits["unexpected"]):
            reasons += "; this is a training-form checkpoint: fuse it with train/export.py"
        raise CheckpointError(f"{path} does not fit {type(net).__name__}: {reasons}")
    if broken := [key for key, value in state.items() if not torch.isfinite(value).all()]:
        raise CheckpointError(
            f"expected finite weights in {path}, got NaN or infinity in {_some(broken)}"
        )
    net.load_state_dict(state)


def without_prefix(
    state: Mapping[str, Tensor], expected: Collection[str], path: str | Path
) -> Mapping[str, Tensor]:
    """The same tensors, without what stands before all of their names if none is expected."""
    for prefix in PREFIXES:
        if not any(name in expected for name in state) and all(n.startswith(prefix) for n in state):
            logger.info("%s: took %s off all names", path, prefix)
            stripped = {name.removeprefix(prefix): value for name, value in state.items()}
            return without_prefix(stripped, expected, path)
    return state


def _some(names: Collection[object]) -> str:
    """The first few of some names, fit to be printed, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(printable, itertools.islice(names, 3))) + more
