"""Targets that are partly a teacher's SR: what is random in a HR image is left out of them."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from kernels.native import NativeLKDN
from kernels.native_library import CompileError
from models.team23_LKDN import LKDN
from train.checkpoint import load_form
from train.packs import Pack, cut_pair, read_mark, state_of
from train.records import training_records
from train.reparam import fuse, has_branches, upscale_factor
from utils import devices
from utils.datasets import SCALE
from utils.files import remove_leftovers, sha256, whole_file, write_json
from utils.self_ensemble import mean_of_eight
from utils.weights import CheckpointError, read_checkpoint, state_dict_of

logger = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]

FORMAT = 1  # of the targets: another where they are made in another way


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
    records, state = training_records(saved, path.parent), state_dict_of(saved, path)
    form_name = "training" if has_branches(state) else "inference"
    net = fuse(load_form(state, path, form_name)).eval()
    if (scale := upscale_factor(net)) != SCALE:
        raise CheckpointError(f"expected a teacher of scale {SCALE}, got {scale}: {path}")
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.numpy().tobytes())
    return Teacher(net, digest.hexdigest(), records)


def teach(pack: Pack, teacher: Teacher, truth: float, folder: Path, device: torch.device) -> Pack:
    """The same pairs with other HR pixels: `truth` times those of the pack and the rest the
    teacher's SR, the mean over the image's eight positions.

    They are kept in `folder`, as large as the pack, and opened there the next time. They are made
    in one go: interrupted, they are made from the start. The images' digests stay those of the
    true HR images, which were seen.

    Raises:
        OSError: they cannot be written.
        MemoryError: an image is too large for the device.
    """
    key = hashlib.sha256(
        f"{FORMAT} {pack.fingerprint} {teacher.sha256} {truth}".encode()
    ).hexdigest()[:16]
    file, mark = folder / f"{key}.taught", folder / f"{key}.taught.json"
    if not _is_whole(file, read_mark(mark)):
        remove_leftovers(file, age_s=3600)
        aim = _aim(teacher.net, truth, device)
        with whole_file(file) as target:
            for image in tqdm(pack.images, "teach", unit="image"):
                lr, hr = cut_pair(pack.pixels.numpy(), image)
                target.write(lr.tobytes())
                target.write(aim(lr, hr).tobytes())
        write_json(mark, {"sha256": sha256(file), "file": state_of(file)})
    pixels = np.memmap(file, np.uint8, mode="c").reshape(-1, 3)
    return replace(pack, pixels=torch.from_numpy(pixels))


def _aim(net: LKDN, truth: float, device: torch.device) -> Callable[[Pixels, Pixels], Pixels]:
    """From LR (H, W, 3) and HR (4H, 4W, 3) what is to be learned: a share of the HR image, the rest
    of the teacher's SR, by the fastest forward that is there, rounded to the nearest."""
    run: Callable[[Tensor], Tensor] = net.to(device)
    if device.type == "cpu":
        try:
            run = NativeLKDN(net)
        except CompileError as error:
            logger.warning("the teacher runs in torch, not on compiled kernels: %s", error)

    @torch.inference_mode()
    def aim(lr: Pixels, hr: Pixels) -> Pixels:
        try:
            x, goal = (torch.from_numpy(pixels).to(device).float() for pixels in (lr, hr))
            x = x.permute(2, 0, 1)[None] / 255
            # The same targets on every device; and each image has another size.
            with devices.without_tf32(), devices.without_search():
                sr = mean_of_eight(run, x)[0].clamp(0, 1) * 255
            goal = truth * goal + (1 - truth) * sr.permute(1, 2, 0)
            return np.asarray(goal.round().clamp(0, 255).to(torch.uint8).cpu().numpy())
        except torch.OutOfMemoryError as error:
            height, width = lr.shape[:2]
            raise MemoryError(
                f"expected room for the teacher on an image of {width}x{height} LR pixels: cut the "
                f"training images into smaller ones ({error})"
            ) from error

    return aim


def _is_whole(file: Path, mark: Any) -> bool:
    """Whether targets are as they were written; read again only where the file changed since."""
    if not (file.is_file() and isinstance(mark, dict)):
        return False
    return bool(mark.get("file") == state_of(file) or mark.get("sha256") == sha256(file))
