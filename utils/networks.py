"""The networks that can be chosen by an ID: a line each, imported when one is chosen."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from utils.command import UserError


class NetworkError(UserError):
    """A network that cannot be made; the message says why."""


@dataclass(frozen=True)
class Entry:
    """A network that --model_id can choose; its module is imported when it is chosen.

    network: MODULE:CLASS, which is called without arguments. file: its weights in model_zoo/; of a
    checkpoint with several, FILE:params or FILE:params_ema. data_range: of its pixel values, from
    0. after_loading: a method to call then, such as repa or switch_to_deploy, of the network or,
    where that has none, of every layer that has it. shipped: whether `file` comes with this
    repository; where another is not there, only what the network costs is measured.
    """

    model_id: int
    name: str
    network: str
    file: str
    data_range: float = 1.0
    after_loading: str | None = None
    shipped: bool = True

    @property
    def label(self) -> str:
        """What it is called in results: 23_LKDN."""
        return f"{self.model_id:02}_{self.name}"


def listed(entries: Sequence[Entry]) -> str:
    """IDs and names, for messages."""
    return ", ".join(f"{entry.model_id} ({entry.label})" for entry in entries)


def entry_of(entries: Sequence[Entry], model_id: int) -> Entry:
    """The one with this ID. Raises NetworkError if there is none, or more than one."""
    found = [entry for entry in entries if entry.model_id == model_id]
    if not found:
        raise NetworkError(f"expected a --model_id of {listed(entries)}, got {model_id}")
    if len(found) > 1:
        names = " and ".join(entry.name for entry in found)
        raise NetworkError(
            f"expected one model of ID {model_id}, got {names}: give one of them another ID"
        )
    return found[0]


def make_network(name: str) -> nn.Module:
    """A network by MODULE:CLASS, whose module is imported now; the class takes no arguments.

    Raises:
        NetworkError: there is no such module or class, or it needs what is not installed.
    """
    module, _, network = name.partition(":")
    try:
        make = getattr(importlib.import_module(module), network)
    except (ImportError, AttributeError) as error:
        raise NetworkError(
            f"expected the network {name}, but it cannot be imported: {error}; install what it "
            "needs, or correct its name"
        ) from error
    made: nn.Module = make()
    return made


def call(net: nn.Module, method: str) -> None:
    """Call a method of the network or, where it has none of this name, of every layer with one.

    Raises:
        NetworkError: nothing in it has such a method.
    """
    owners = [m for m in ([net] if hasattr(net, method) else net.modules()) if hasattr(m, method)]
    if not owners:
        raise NetworkError(f"expected a method {method} in {type(net).__name__}, got none")
    for module in owners:
        getattr(module, method)()
