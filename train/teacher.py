"""A network that others learn from: what is random in a HR image is left out of its SR."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.team23_LKDN import LKDN
from train.checkpoint import load_form, weights_of
from train.records import training_records
from train.reparam import fuse, has_branches, upscale_factor
from utils.datasets import SCALE
from utils.weights import CheckpointError, read_checkpoint


@dataclass(frozen=True)
class Teacher:
    """A trained network, of whatever size, and how it was trained.

    net: its average, in inference form. sha256: of its numbers. records: one a stage, as
    train.records.training_records has them; none of a file that train.py did not write.
    """

    net: LKDN
    sha256: str
    records: list[dict[str, Any]]


def read_teacher(path: Path) -> Teacher:
    """The teacher in a checkpoint of train.py, or in any weights of LKDN, in either form.

    Raises:
        utils.weights.CheckpointError: it is no LKDN's, or damaged.
    """
    saved = read_checkpoint(path)
    records, state = training_records(saved, path.parent), weights_of(saved, path)
    form_name = "training" if has_branches(state) else "inference"
    net = fuse(load_form(state, path, form_name)).eval()
    if (scale := upscale_factor(net)) != SCALE:
        raise CheckpointError(f"expected a teacher of scale {SCALE}, got {scale}: {path}")
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.numpy().tobytes())
    return Teacher(net, digest.hexdigest(), records)
