"""The same steps by torch and by the compiled kernels: python train/agreement.py -o FILE.json ..

Runs the recipe cpu, shortened, once for each way to compute it, from one seed, and records each
one's losses and validation scores side by side: other rounding must not train otherwise.
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # In place of train/, where `train` would be train.py.
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parent.parent)]

from train.process import add_data, require_data, run_train
from utils import command, devices, record
from utils.files import write_json
from utils.text import number

logger = logging.getLogger("agreement")

WAYS = {
    "torch fp32": ["--kernels", "torch", "--precision", "fp32"],
    "native fp32": ["--kernels", "native", "--precision", "fp32"],
    "native bf16": ["--kernels", "native", "--precision", "bf16"],
}


def main(argv: list[str] | None = None) -> int:
    """The command; its exit code."""
    parser = command.parser(__doc__)
    add = parser.add_argument
    add_data(parser)
    add("--val", required=True, metavar="DIR", help="images to score")
    add("-o", "--output", type=command.file, required=True, metavar="FILE", help="JSON to write")
    add("--steps", type=int, default=300, help="steps of each run")
    add("--seed", type=int, default=0, help="of each run")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return command.run("train/agreement.py", lambda: compare(args))


def compare(args: argparse.Namespace) -> int:
    """Train in every way and record it; the exit code."""
    require_data(args)
    device = devices.select_device("cpu")
    runs = []
    for name, options in WAYS.items():
        run = {"name": name, "options": options, **train(options, args)}
        logger.info(
            "%s: %s",
            name,
            run.get("failed")
            or f"loss {run['losses'][-1][1]:.6f}, validation {number(run['val_psnr_y'], 3)} dB Y",
        )
        runs.append(run)
        write_json(
            args.output,
            {
                "agreement_of": "train/train.py --recipe cpu",
                "steps": args.steps,
                "seed": args.seed,
                "environment": record.environment(device),
                "runs": runs,
            },
        )
    return command.FAILED if any("failed" in run for run in runs) else command.GOOD


def train(options: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Losses as (step, mean since the line before) and the last validation score; or why not."""
    numbers = f"--recipe cpu --stage 1 --steps {args.steps} --seed {args.seed} --log_every 10"
    val = ["--device", "cpu", "--val", args.val]
    try:
        lines = run_train([*numbers.split(), *val, *options], args, args.output)
    except RuntimeError as error:
        return {"failed": str(error)}
    last = next(line for line in reversed(lines) if "val_psnr" in line)
    return {
        "losses": [(line["step"], line["loss"]) for line in lines if "loss" in line],
        "val_psnr": last["val_psnr"],
        "val_psnr_y": last["val_psnr_y"],
    }


if __name__ == "__main__":
    command.start(main)
