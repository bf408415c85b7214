"""Write LKDN as an ONNX file of any height and width, and run it before it gets its name."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from deploy.runners import need
from models.team23_LKDN import LKDN
from utils import command
from utils.files import whole_file
from utils.memory import is_exhausted
from utils.weights import SHIPPED, load_weights

SIZES = ((37, 64), (50, 41))  # odd, prime, not square: what a graph of one size would get wrong
# Largest difference from the plain float32 network, of random images in 0..1. In fp32 sums are
# taken in another order, in fp16 11 significant bits go through about 40 layers.
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2}


def main(argv: list[str] | None = None) -> int:
    """The command; its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = command.parser(__doc__, "deploy.onnx_export")
    add = parser.add_argument
    add("-o", "--output", type=command.file, default=Path("lkdn.onnx"), help="to write")
    add("--checkpoint", type=command.path, default=SHIPPED, help="weights of the inference form")
    add("--precision", choices=sorted(TOLERANCES), default="fp32", help="of weights and features")
    add(
        "--size",
        type=command.size,
        metavar="HxW",
        help="fix the LR height and width; without it any",
    )
    args = parser.parse_args(argv)
    failures = (ArithmeticError, MemoryError)
    return command.run("deploy.onnx_export", lambda: write(args), failures=failures)


def write(args: argparse.Namespace) -> None:
    """Write the file that was asked for, and say how exact it is."""
    net = LKDN().eval().requires_grad_(False)
    load_weights(net, args.checkpoint)
    size = "any size" if args.size is None else "{}x{}".format(*args.size)
    try:
        error = export(net, args.output, args.precision, args.size)
    except Exception as failure:
        if not is_exhausted(failure):
            raise
        raise MemoryError(
            f"expected memory to run the graph of {size}, too little is free: {args.output} is not "
            "written; give a smaller --size, or none"
        ) from failure
    print(f"{args.output}: {args.precision}, {size}, within {error:.1e} of the network in torch")


def export(
    net: LKDN, path: Path, precision: str = "fp32", size: Sequence[int] | None = None
) -> float:
    """Write the network as ONNX, if it computes what the network does.

    The file is run by onnxruntime, on images of two sizes if its own is not fixed.

    Args:
        net: with its weights, float32, on the CPU.
        path: the file to write.
        precision: fp32 or fp16; input `lr` and output `sr` are float32 in both.
        size: LR height and width to fix, with a batch of one.

    Returns:
        The largest difference from `net` that was seen.

    Raises:
        BackendError: onnx or onnxruntime is not installed.
        ArithmeticError: the file computes something else, or the weights are not usable; it is not
            written.
    """
    need("onnx", "onnxruntime")
    import onnxruntime

    from deploy import onnx_graph

    model = onnx_graph.build(net, precision == "fp16", *(size or ())).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    differences = []
    for height, width in [tuple(size)] if size else SIZES:
        x = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height))
        (y,) = session.run(None, {"lr": x.numpy()})
        with torch.inference_mode():
            differences.append((torch.from_numpy(y) - net(x)).abs().max())
    largest = float(torch.stack(differences).max())  # NaN if one is, unlike max()
    if not largest <= TOLERANCES[precision]:
        raise ArithmeticError(
            f"expected the ONNX graph within {TOLERANCES[precision]} of the network, "
            f"got {largest:.1e}: {path} is not written"
        )
    with whole_file(path) as file:
        file.write(model)
    return largest


if __name__ == "__main__":
    command.start(main)
