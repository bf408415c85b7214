"""A crop of one restored image as a picture: bicubic | SR | HR, side by side, with labels.

python -m utils.report.crop astronaut --crop 352 150 104 92 -o results/published/astronaut.png
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from utils import evaluate
from utils.bicubic import upscale
from utils.datasets import DatasetError, find
from utils.files import ROOT
from utils.images import ImageError, read_rgb, write_png
from utils.record import ENTRY

ZOOM = 3
GAP = 6


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("name", help="the image's name in its set")
    add("--dataset", default="demo", help="the set, as for test_demo.py")
    add("--data_dir", type=Path, default=ROOT / "data")
    add("--save_dir", type=Path, default=ROOT / "results", help="that of test_demo.py")
    add("--model", default=ENTRY, help="name of the results")
    add(
        "--crop",
        type=int,
        nargs=4,
        metavar=("X", "Y", "WIDTH", "HEIGHT"),
        required=True,
        help="HR pixels",
    )
    add("-o", "--output", type=Path, required=True, metavar="FILE")
    args = parser.parse_args(argv)
    try:
        image_set = find(args.dataset, args.data_dir)
        pairs = {pair.name: pair for pair in image_set.pairs}
        if args.name not in pairs:
            parser.error(f"expected one of {', '.join(pairs)}, got {args.name}")
        sample = evaluate.load(pairs[args.name])
        sr = read_rgb(args.save_dir / args.model / image_set.name / f"{args.name}.png")
    except (DatasetError, ImageError) as error:
        parser.error(str(error))
    x, y, width, height = args.crop
    if min(args.crop) < 0 or not (0 < width <= sr.shape[1] - x and 0 < height <= sr.shape[0] - y):
        parser.error(f"expected a crop inside {sr.shape[1]}x{sr.shape[0]}, got {args.crop}")
    views = {"bicubic x4": upscale(sample.lr), "LKDN x4": sr}
    if sample.hr is not None:
        views["original"] = sample.hr
    crops = {label: view[y : y + height, x : x + width] for label, view in views.items()}
    write_png(args.output, side_by_side(crops))
    return 0


def side_by_side(crops: dict[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Equal crops (H, W, 3) uint8, enlarged pixel by pixel, each under its label."""
    panels = []
    for label, crop in crops.items():
        panel = crop.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)
        title = np.full((28, panel.shape[1], 3), 255, np.uint8)
        cv2.putText(
            title, label, (4, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (40, 40, 40), 1, cv2.LINE_AA
        )
        panels += [np.vstack((title, panel)), np.full((len(panel) + 28, GAP, 3), 255, np.uint8)]
    return np.hstack(panels[:-1])


if __name__ == "__main__":
    sys.exit(main())
