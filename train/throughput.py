"""Training speed, one lever at a time: python train/throughput.py --data DIR -o FILE.json

Runs train.py once for each rung of a ladder, in a fresh process, and records what its log says:
steps and patches a second after a warm-up, the loss of equal steps, the memory. Each rung adds one
lever to the one it is compared with. A rung that fails is recorded with its reason.
"""

import argparse
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # was train/, where `train` would be train.py

from train import log  # noqa: E402
from utils import devices  # noqa: E402
from utils.record import environment, write_json  # noqa: E402

logger = logging.getLogger("throughput")

NAIVE = ["--no-fold", "--no-channels_last", "--no-tuned_cpu", "--crops", "cpu"]
LADDERS = {
    "cpu": {
        "branches run as they are, NCHW": NAIVE,
        "+ branches folded at each step": NAIVE[1:],
        "+ channels_last": NAIVE[2:],
        "+ denormals flushed, freed memory kept": [],
        "+ bf16": ["--precision", "bf16"],
        "+ torch.compile, without bf16": ["--compile", "on"],
    },
    "cuda": {
        "branches run as they are, NCHW": NAIVE,
        "+ patches cut on the GPU": ["--no-fold", "--no-channels_last"],
        "+ branches folded at each step": ["--no-channels_last"],
        "+ bf16": ["--no-channels_last", "--precision", "bf16"],
        "+ channels_last": ["--precision", "bf16"],
        "+ Triton depthwise": ["--precision", "bf16", "--depthwise", "triton"],
        "+ torch.compile": ["--precision", "bf16", "--depthwise", "triton", "--compile", "on"],
        "+ CUDA graphs": ["--precision", "bf16", "--depthwise", "triton", "--compile", "graphs"],
        "torch.compile without Triton depthwise": ["--precision", "bf16", "--compile", "on"],
        "torch.compile, NCHW": ["--precision", "bf16", "--compile", "on", "--no-channels_last"],
    },
}


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        device = devices.select_device(args.device)
    except devices.DeviceError as error:
        logger.error("%s", error)
        return 2
    record = {
        "throughput_of": "train/train.py", "batch": args.batch, "patch": args.patch,
        "steps": args.steps, "init": args.init.name if args.init else None,
        "environment": environment(device), "rungs": [],
    }  # fmt: skip
    ladder = LADDERS["cuda" if device.type == "cuda" else "cpu"]
    chosen = list(ladder.items())[args.skip :]
    for name, options in chosen:
        rung = {"name": name, "options": options, **measure(options, args)}
        logger.info("%s: %s", name, rung.get("failed") or f"{rung['steps_per_s']:.2f} steps/s, "
                    f"loss {rung['loss']:.6f}")
        record["rungs"].append(rung)
        write_json(args.output, record)  # after each: time may run out
    return 0 if all("failed" not in rung for rung in record["rungs"]) else 1


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, nargs="+", required=True, metavar="DIR", help="as for train.py")
    add("--packed", type=Path, default=ROOT / "data" / "packed", metavar="DIR",
        help="where decoded images are kept")
    add("-o", "--output", type=Path, required=True, metavar="FILE", help="JSON to write")
    add("--device", choices=devices.NAMES, default="auto")
    add("--batch", type=int, default=128, help="patches a step")
    add("--patch", type=int, default=256, help="HR pixels a side")
    add("--steps", type=int, default=200, help="steps a rung; the first fifth warms up")
    add("--init", type=Path, metavar="FILE", help="weights to start from")
    add("--minutes", type=float, default=10, metavar="M", help="at most so long a rung")
    add("--skip", type=int, default=0, metavar="N", help="leave out the first N rungs")
    args = parser.parse_args(argv)
    if args.steps < 10:
        parser.error(f"expected --steps of at least 10, got {args.steps}")
    return args


def measure(options: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """One run of train.py: its speed after the warm-up and its last loss, or why it failed."""
    every = max(1, args.steps // 20)
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, ROOT / "train" / "train.py", "--stage", 1, "--data", *args.data,
            "--packed", args.packed, "--out", folder, "--batch", args.batch, "--patch", args.patch,
            "--steps", args.steps, "--log_every", every, "--optimizer", "muon", "--lr", 0.02,
            "--warmup", args.steps, "--norm_start", 0.1, "--device", args.device, *options,
        ]  # fmt: skip
        if args.init:
            command += ["--init", args.init]
        compiled = args.output.resolve().parent / ".compiled"
        kept = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(compiled),
                "TRITON_CACHE_DIR": str(compiled)}  # fmt: skip
        began = time.monotonic()
        try:
            done = subprocess.run([str(part) for part in command], capture_output=True, text=True,
                                  timeout=60 * args.minutes, env=kept)  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"failed": f"not done after {args.minutes:g} minutes"}
        if done.returncode:
            return {"failed": (done.stderr.strip() or "no message").splitlines()[-1]}
        lines = [line for line in log.read(Path(folder) / "log.jsonl") if "loss" in line]
    speeds = sorted(x["images_per_s"] / args.batch for x in lines if x["step"] > args.steps / 5)
    return {
        "steps_per_s": statistics.median(speeds), "steps_per_s_p20": speeds[len(speeds) // 5],
        "steps_per_s_p80": speeds[-1 - len(speeds) // 5],
        "patches_per_s": statistics.median(speeds) * args.batch, "loss": lines[-1]["loss"],
        "memory_mib": lines[-1].get("memory_mib"), "seconds": time.monotonic() - began,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
