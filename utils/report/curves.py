"""The growth of validation scores with the pixels that training has seen, as a picture."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from utils.report.training_tables import VAL, lr_pixels

Record = dict[str, Any]
Curve = list[tuple[float, float]]  # (LR megapixels seen, Y-PSNR in dB)


def curve(record: Record) -> Curve:
    """The scores of a trial's record on the images of VAL."""
    own = (s for s in record["validation"] if s.get("val", VAL) == VAL)
    scores = [s for s in own if s["val_psnr_y"] is not None]
    return [(lr_pixels(record | s) / 1e6, s["val_psnr_y"]) for s in scores]


def begins_at_random(record: Record) -> bool:
    """Whether a trial started from random weights, so that its pixels are all it has seen."""
    return record["stage"]["name"] == "stage1" and "--init" not in record["command"]


def picture(trials: Sequence[Record], lines: Mapping[str, float]) -> bytes:
    """A PNG: each trial from random weights as a curve over LR megapixels on a logarithmic axis,
    and what others reach as horizontal lines, by name in dB."""
    from matplotlib.figure import Figure  # half a second: only for the picture

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    for trial in filter(begins_at_random, trials):
        points = [point for point in curve(trial) if point[0] > 0]
        if points:
            axes.plot(*zip(*points, strict=True), marker=".", linewidth=1, label=trial["trial"])
    for name, score in lines.items():
        axes.axhline(score, color="#888888", linewidth=1, linestyle="--")
        axes.annotate(name, (1, score), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    axes.set_xscale("log")
    axes.set_xlabel("LR megapixels seen")
    axes.set_ylabel("validation Y-PSNR [dB]")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7, ncols=2)
    memory = io.BytesIO()
    figure.savefig(memory, format="png", dpi=110)
    return memory.getvalue()
