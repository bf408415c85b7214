"""Checkpoint files into networks: strict, weights only, with errors that name the misfit."""

import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.command import UserError
from utils.files import ROOT

SHIPPED = ROOT / "model_zoo" / "team23_LKDN.pth"
# Where a state dict may lie in a checkpoint file, the averaged weights first.
NESTED_UNDER = ("params_ema", "params", "state_dict")


class CheckpointError(UserError):
    """A file that does not hold this network's weights; the message says in what way."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint file onto the CPU without running any code in it.

    Raises:
        CheckpointError: missing, unreadable, or no dictionary.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"expected a checkpoint, found no file: {path}") from error
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        AssertionError,
        struct.error,
        pickle.UnpicklingError,
    ) as error:  # as damage has it
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"expected a PyTorch checkpoint, got {path}: {reason}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"expected a dictionary in {path}, got {type(content).__name__}")
    return content


def named_weights(text: str) -> tuple[Path, str | None]:
    """FILE or FILE:KEY, where KEY is one of NESTED_UNDER, as the file and the key."""
    file, _, key = text.rpartition(":")
    return (Path(file), key) if file and key in NESTED_UNDER else (Path(text), None)


def state_dict_of(
    content: Mapping[str, Any], path: str | Path = "checkpoint", key: str | None = None
) -> dict[str, Tensor]:
    """The state dict in a checkpoint: bare, or under params_ema, params or state_dict, of which
    `key` says one, and the first that is there is taken without it.

    Raises:
        CheckpointError: what is there is not a dictionary of tensors, or `key` is not there.
    """
    if key and key not in content:
        raise CheckpointError(
            f"expected {key} in {path}, got the keys {', '.join(map(str, list(content)[:5]))}: "
            f"leave out :{key}"
        )
    names = [key] if key else NESTED_UNDER
    state = next((content[name] for name in names if name in content), content)
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(
            f"expected a state dict, bare or under {', '.join(NESTED_UNDER)}, in {path}; "
            f"got the keys {', '.join(map(str, list(content)[:5]))}"
        )
    return dict(state)


def load_weights(net: nn.Module, path: str | Path, key: str | None = None) -> None:
    """Load a checkpoint file into `net`, every key and shape as expected; `key`: `state_dict_of`.

    Raises:
        CheckpointError: unreadable, or other keys, shapes or values than the network's.
    """
    load_state(net, state_dict_of(read_checkpoint(path), path, key), path)


def load_state(net: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Load a state dict strictly; `path` names it in errors. Raises CheckpointError."""
    expected = net.state_dict()
    misfits = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": [
            f"{key} {tuple(state[key].shape)}, expected {tuple(expected[key].shape)}"
            for key in expected
            if key in state and state[key].shape != expected[key].shape
        ],
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


def _some(names: list[str]) -> str:
    """The first few of a list, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
