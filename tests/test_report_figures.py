"""What the page draws and crops, without the page."""

from pathlib import Path

import numpy as np
from made_records import a_run

from utils.files import write_json
from utils.report import groups, markup, pictures, training_tables


def test_the_crop_lies_where_the_error_is_largest() -> None:
    error = np.zeros((90, 200), np.float32)
    error[70:80, 150:170] = 1
    error[10, 10] = 5
    rows, columns = pictures.window(error, 32)
    assert rows.stop - rows.start == columns.stop - columns.start == 32
    assert rows.start <= 70 and rows.stop >= 80
    assert columns.start <= 150 and columns.stop >= 170
    assert pictures.window(error, 500) == (slice(0, 90), slice(0, 200))


def test_the_training_curve_counts_every_stage_and_names_the_one_without_scores() -> None:
    stages = [
        {"stage": {"name": f"stage{n}"}, "step": step} for n, step in ((1, 9), (1, 25), (2, 6))
    ]
    scores = [("stage1", 10, 27.0), ("stage1", 20, 28.0), ("stage2", 5, 29.0)]
    validation = [dict(zip(("stage", "step", "val_psnr"), line, strict=True)) for line in scores]
    assert training_tables.curve({"stages": stages, "validation": validation}) == {
        "1. stage1, 9 steps: no validation was recorded": [],
        "2. stage1, 25 steps": [
            (0.019, 27.0, "step 10: 27.000 dB"),
            (0.029, 28.0, "step 20: 28.000 dB"),
        ],
        "3. stage2, 6 steps": [(0.039, 29.0, "step 5: 29.000 dB")],
    }
    assert training_tables.curve({}) == {}


def test_the_least_time_that_json_holds_can_be_drawn() -> None:
    assert "<circle" in markup.chart({"a": [(1.0, 5e-324, "")]}, "pixels", "ms")


def test_a_run_without_scores_hides_no_scores_of_the_others(tmp_path: Path) -> None:
    """The baseline's, whose weights are not shipped and whose name comes first."""
    ours, baseline = a_run("set", "23_LKDN@mine"), a_run("set", "00_RFDN")
    one = ours["images"][0]
    ours["images"] = [one | {"name": n, "psnr": p} for n, p in (("a", 35.0), ("b", 25.0))]
    none = dict.fromkeys(("psnr", "psnr_y", "psnr_bicubic", "psnr_y_bicubic"))
    baseline["images"] = [image | none for image in ours["images"]]
    for run in (baseline, ours):
        write_json(tmp_path / f"{run['model']}.json", run)
    (group,) = groups.by_set(groups.read(tmp_path))
    assert group.runs[0]["model"] == "23_LKDN@mine"
    assert [(image["name"], image["psnr_bicubic"]) for image in group.images] == [
        ("b", 28.0),
        ("a", 28.0),
    ]
