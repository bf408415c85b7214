"""Make shippable weights: python train/export.py RUN_OR_CHECKPOINT [-o FILE]

Averaged weights -> inference form -> compared with the training form in float64 -> model_zoo/.
"""

import argparse
import io
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # was train/, where `train` would be train.py

from models.team23_LKDN import LKDN  # noqa: E402
from train import log  # noqa: E402
from train.checkpoint import training_records  # noqa: E402
from train.reparam import fuse, training_form  # noqa: E402
from train.stages import STAGES  # noqa: E402
from utils import record, tables  # noqa: E402
from utils.images import write_bytes  # noqa: E402
from utils.weights import (  # noqa: E402
    CheckpointError,
    load_state,
    read_checkpoint,
    state_dict_of,
)

WEIGHTS = ROOT / "model_zoo" / "team23_LKDN.pth"
TRAINING_RECORD = ROOT / "results" / "published" / f"{tables.SHIPPED}_training.json"
# Both forms computed in float64 differ by rounding alone: some 1e-14 at values near 1.
TOLERANCE = 1e-10
SIZES = ((1, 1), (5, 3), (48, 64))  # 1 pixel and narrow: all border, where a wrong fuse shows

logger = logging.getLogger("export")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="RUN_OR_CHECKPOINT",
                        help="folder of a run (its last stage is taken), or a training-form file")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE",
                        help="write there instead of model_zoo/, and leave the model card alone")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        export(args.source, args.output)
    except CheckpointError as error:
        logger.error("%s", error)
        return 2
    except (ArithmeticError, OSError) as error:
        logger.error("%s", error)
        return 1
    return 0


def export(source: Path, output: Path | None = None) -> None:
    """Fuse a checkpoint's averaged weights, check them, and write a plain state dict.

    Without `output` the weights are shipped: model_zoo/, the training record in
    results/published/ and the model card are replaced.

    Raises:
        CheckpointError: no training-form LKDN there, or, to be shipped, no training record.
        ArithmeticError: the two forms differ.
        OSError: a file cannot be written.
    """
    file = _last_stage(source) if source.is_dir() else source
    saved = read_checkpoint(file)
    records = training_records(saved)
    if output is None and not records:
        raise CheckpointError(f"expected a checkpoint of train/train.py to ship, got weights "
                              f"without a training record: {file}; give -o FILE to only fuse them")
    form = load_form(state_dict_of(saved, file), file).double()
    plain = fuse(form)
    difference = largest_difference(form, plain)
    if not difference <= TOLERANCE:
        raise ArithmeticError(f"expected both forms equal to {TOLERANCE:g}, got a difference of "
                              f"{difference:g}: {file} was not written")
    target = output or WEIGHTS
    buffer = io.BytesIO()
    torch.save({name: value.float() for name, value in plain.state_dict().items()}, buffer)
    write_bytes(target, buffer.getvalue())
    logger.info("%s: %d parameters, forms differ by %.1e in float64, sha256 %s", target,
                sum(p.numel() for p in plain.parameters()), difference, record.sha256(target))
    if output is None:
        scores = [{key: line[key] for key in ("stage", "step", "val_psnr", "val_psnr_y")}
                  for line in log.read(file.parent / "log.jsonl") if "val_psnr" in line]
        for trained in records:
            trained["data_summary"] = _data_summary(file.parent, trained)
        record.write_json(TRAINING_RECORD, {
            "training_of": tables.SHIPPED, "sha256": record.sha256(target), "stages": records,
            "commands": [command(trained) for trained in records], "validation": scores,
            "float64_difference": difference,
        })
        tables.regenerate()
        logger.info("%s and the tables are up to date; next: measure the new weights with "
                    "test_demo.py, python -m utils.record --publish FILE, and see whether the "
                    "model card's words on the data are still true", TRAINING_RECORD)


def _last_stage(run: Path) -> Path:
    files = [run / name for name in ("stage2.pt", "stage1.pt")]
    if file := next((file for file in files if file.exists()), None):
        return file
    raise CheckpointError(f"expected {' or '.join(map(str, files))}, found neither")


def _data_summary(run: Path, trained: dict[str, Any]) -> dict[str, Any] | None:
    """What train.py noted of a stage's data beside its checkpoint."""
    try:
        noted = json.loads((run / f"{trained['stage']['name']}_data.json").read_text())
    except (OSError, ValueError):
        return None
    return noted if noted.get("fingerprint") == trained["data"] else None


def command(trained: dict[str, Any]) -> str:
    """The train.py command of a stage's record, without the numbers that are the factsheet's."""
    number, default = next((n, s) for n, s in STAGES.items() if s.name == trained["stage"]["name"])
    options = [f"--{name} {value}" for name, value in trained["stage"].items()
               if value != getattr(default, name)]
    options += [f"--seed {trained['seed']}"] * bool(trained["seed"])
    return " ".join((f"python train/train.py --stage {number} --data DIR --val VAL --out RUN",
                     *options))


def load_form(state: Mapping[str, Tensor], file: Path) -> LKDN:
    """The training-form network that a state dict belongs to, of whatever size.

    Raises:
        CheckpointError: it is none of LKDN's.
    """
    needed = ("fea_conv.pw.weight", "upsampler.conv3.weight")
    if missing := [key for key in needed if key not in state]:
        raise CheckpointError(f"expected LKDN's training form, found no {', '.join(missing)} in "
                              f"{file}; weights in inference form need no export")
    blocks = sum(name.endswith(".pixel_norm.weight") for name in state)
    channels = len(state["fea_conv.pw.weight"])
    scale = round((len(state["upsampler.conv3.weight"]) / 3) ** 0.5)
    form = training_form(LKDN(channels, blocks, scale))
    load_state(form, state, file)
    return form


@torch.inference_mode()
def largest_difference(form: LKDN, plain: LKDN) -> float:
    """The largest absolute difference of two networks on random images of several sizes."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(1, 3, *size, dtype=torch.float64, generator=generator) for size in SIZES]
    return max(float((form(x) - plain(x)).abs().max()) for x in images)


if __name__ == "__main__":
    sys.exit(main())
