"""One image in its forms: beside each other in the report, or a crop of it as one picture.

python -m utils.report.pictures astronaut --crop 352 150 104 92 -o results/published/astronaut.png
"""

import argparse
import base64
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from utils import command, evaluate
from utils.bicubic import Convention, upscale
from utils.command import UserError
from utils.datasets import SCALE, Pair, find
from utils.files import ROOT
from utils.imaging.images import ImageError, read_rgb, write_png
from utils.record import ENTRY
from utils.report import markup

MAP_SIDE = 320  # of an error map
SIDES = (1024, 768, 512, 384, 320, 256, 192, 128, 96, 64)  # of an article's crop, HR pixels
ZOOM, GAP = 3, 6  # of a crop, pixels
LEVELS = 64  # of 255, at the bright end of an error map
JPEG = (
    cv2.IMWRITE_JPEG_QUALITY,
    92,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
)


@dataclass(frozen=True)
class Picture:
    """One image in all its forms, of equal size.

    views: (H, W, 3) uint8: bicubic, what each model restored, HR if public. errors: (H, W) float32,
    0..255: how far each restored one is from HR, or from bicubic without HR, mean over RGB.
    """

    views: dict[str, NDArray[np.uint8]]
    errors: dict[str, NDArray[np.float32]]


def read(pair: Pair, convention: Convention, restored_files: Mapping[str, Path]) -> Picture:
    """Read an image and what each model restored of it, where it did.

    Raises:
        ImageError: something is missing or does not fit.
    """
    sample = evaluate.load(pair, convention)
    views = {"bicubic": upscale(sample.lr)}
    reference = views["bicubic"] if sample.hr is None else sample.hr
    errors = {}
    for model, path in restored_files.items():
        if path.is_file():
            restored = read_rgb(path)
            if restored.shape != reference.shape:
                raise ImageError(f"what {model} restored is not of {SCALE} times the LR size")
            views[f"SR {model}"] = restored
            error = np.subtract(restored, reference, dtype=np.float32)
            errors[f"SR {model}"] = np.abs(error).mean(2)
    if not errors:
        raise ImageError("no restored image of these runs is there")
    return Picture(views if sample.hr is None else {**views, "HR": sample.hr}, errors)


def article_within(
    most: int, ident: str, name: str, scores: Mapping[str, str], picture: Picture
) -> str | None:
    """The article of the largest crop that takes at most so many bytes, if any does."""
    tried = (article(ident, name, scores, picture, side) for side in SIDES)
    return next((html for html in tried if size_of(html) <= most), None)


def size_of(html: str) -> int:
    """Bytes of a piece of the page; names of files may hold what UTF-8 cannot."""
    return len(html.encode(errors="replace"))


def article(ident: str, name: str, scores: Mapping[str, str], picture: Picture, side: int) -> str:
    """The pictures of one image, cut to `side` HR pixels where the error is largest."""
    name = escape(name)
    rows, columns = window(next(iter(picture.errors.values())), side)
    whole_height, whole_width = picture.views["bicubic"].shape[:2]
    height, width = rows.stop - rows.start, columns.stop - columns.start
    part, frame = "", ""
    if (width, height) != (whole_width, whole_height):
        part = f", shown are {width}x{height} where the error is largest"
        frame = (
            f"<i style='left:{columns.start / whole_width:.2%};top:"
            f"{rows.start / whole_height:.2%};width:{width / whole_width:.2%};"
            f"height:{height / whole_height:.2%}'></i>"
        )
    views = "".join(
        f"<img alt='{name}, {escape(view)}' data-view='{escape(view)}' "
        f"src='{_jpeg(pixels[rows, columns])}'>"
        for view, pixels in picture.views.items()
    )
    scale = f"<span class=scale>0 <i></i> {LEVELS}+ of 255</span>"
    maps = "".join(
        f"<figure><div class=map><img alt='{name}, error of {escape(view)}' "
        f"src='{_jpeg(_error_map(error, min(side, MAP_SIDE)))}'>{frame}</div><figcaption>"
        f"|{escape(view)} &minus; HR|, the whole image{scale}</figcaption></figure>"
        for view, error in picture.errors.items()
        if "HR" in picture.views
    )
    return (
        f"<article class=picture id={ident}><h3>{name}</h3><p class=soft>{whole_width}x"
        f"{whole_height} pixels{part}. PSNR [dB]:</p>{markup.facts(scores)}"
        "<div class=columns><div class=viewer>"
        f"<div class=stage tabindex=0 role=group aria-label='{name}, scrolls when enlarged'>"
        f"<div class='layers fit' style='--w:{width};--h:{height}'>{views}</div></div></div>"
        f"<div class=maps>{maps}</div></div></article>"
    )


def window(error: NDArray[np.float32], side: int) -> tuple[slice, slice]:
    """The rows and columns of the crop, `side` at most, with the largest sum of errors."""
    height, width = (min(side, size) for size in error.shape)
    total = cv2.integral(error)
    strips = total[height:] - total[:-height]
    sums = strips[:, width:] - strips[:, :-width]
    y, x = (int(at) for at in np.unravel_index(sums.argmax(), sums.shape))
    return slice(y, y + height), slice(x, x + width)


def _error_map(error: NDArray[np.float32], side: int) -> NDArray[np.uint8]:
    """(H, W) float32, 0..255 -> (H, W, 3) uint8 of `side` pixels at most, averaged down to it."""
    scale = min(1, side / max(error.shape))
    height, width = (max(1, round(scale * size)) for size in error.shape)
    small = cv2.resize(error, (width, height), interpolation=cv2.INTER_AREA)
    return apply_colours((small * 255 / LEVELS).clip(0, 255).astype(np.uint8))


def apply_colours(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W) uint8 -> (H, W, 3) uint8, from black over red to yellow."""
    return cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO)[..., ::-1].astype(np.uint8)


def _jpeg(rgb: NDArray[np.uint8]) -> str:
    _, encoded = cv2.imencode(".jpg", np.ascontiguousarray(rgb[..., ::-1]), JPEG)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()


def main(argv: list[str] | None = None) -> int:
    """The command; its exit code."""
    parser = command.parser(__doc__, "utils.report.pictures")
    add = parser.add_argument
    add("name", help="the image's name in its set")
    add("--dataset", default="demo", help="the set, as for test_demo.py")
    add("--data_dir", type=command.path, default=ROOT / "data")
    add("--save_dir", type=command.path, default=ROOT / "results", help="that of test_demo.py")
    add("--model", default=ENTRY, help="name of the results")
    add(
        "--crop",
        type=int,
        nargs=4,
        metavar=("X", "Y", "WIDTH", "HEIGHT"),
        required=True,
        help="HR pixels",
    )
    add("-o", "--output", type=command.file, required=True, metavar="FILE")
    args = parser.parse_args(argv)
    return command.run("utils.report.pictures", lambda: write_crop(args), wrong=(ImageError,))


def write_crop(args: argparse.Namespace) -> None:
    """Write the picture that was asked for.

    Raises:
        UserError: there is no such image, result or crop.
        ImageError: one of them cannot be read, or they do not fit.
    """
    image_set = find(args.dataset, args.data_dir)
    pairs = {pair.name: pair for pair in image_set.pairs}
    if args.name not in pairs:
        raise UserError(f"expected one of {', '.join(pairs)}, got {args.name}")
    sr_file = args.save_dir / args.model / image_set.name / f"{args.name}.png"
    if not sr_file.is_file():
        raise UserError(f"expected what test_demo.py restored, found none: {sr_file}")
    views = read(pairs[args.name], "double", {args.model: sr_file}).views
    rows, columns = views["bicubic"].shape[:2]
    x, y, width, height = args.crop
    if min(args.crop) < 0 or not (0 < width <= columns - x and 0 < height <= rows - y):
        raise UserError(f"expected a crop inside {columns}x{rows}, got {args.crop}")
    name = args.model.partition("_")[2] or args.model  # 23_LKDN without its ID
    labels = ("bicubic x4", f"{name} x4", "original")  # of what `read` has in this order
    crops = [view[y : y + height, x : x + width] for view in views.values()]
    write_png(args.output, side_by_side(dict(zip(labels, crops, strict=False))))


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
    command.start(main)
