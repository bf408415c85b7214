"""LR images are told from HR images, and paired, in the layouts that circulate, or named."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from utils.layouts import read
from utils.pairing import Pairing, pair

# A tree's files: each HR image, with its LR image where there is one; then what is left alone.
LAYOUTS: dict[str, tuple[dict[str, str | None], list[str]]] = {
    "DIV2K": (
        {"DIV2K_train_HR/0001.png": "DIV2K_train_LR_bicubic/X4/0001x4.png"},
        [
            "DIV2K_train_LR_bicubic/X2/0001x2.png",
            "DIV2K_train_LR_unknown/X4/0001x4.png",
            "DIV2K_train_LR_mild/0001x4m.png",
            "DIV2K_train_LR_x8/0001x8.png",
        ],
    ),
    "DIV2K cut up by BasicSR": (
        {
            "DIV2K_train_HR/0001.png": "DIV2K_train_LR_bicubic/X4/0001x4.png",
            "DIV2K_train_HR_sub/0001_s001.png": "DIV2K_train_LR_bicubic/X4_sub/0001_s001.png",
        },
        ["DIV2K_train_LR_bicubic/X3_sub/0001_s001.png"],
    ),
    "cut up": ({"HR_sub/0001_s002.png": "X4_sub/0001_s002.png"}, []),
    "EDSR": (
        {"benchmark/S/HR/baby.png": "benchmark/S/LR_bicubic/X4/babyx4.png"},
        ["benchmark/S/LR_bicubic/X2/babyx2.png"],
    ),
    "RCAN": (
        {"HR/S/x4/baby_HR_x4.png": "LR/LRBI/S/x4/baby_LRBI_x4.png"},
        [
            "HR/S/x3/baby_HR_x3.png",
            "LR/LRBI/S/x3/baby_LRBI_x3.png",
            "LR/LRBD/S/x4/baby_LRBD_x4.png",
        ],
    ),
    "RCAN, plain names": ({"HR/S/x4/baby.png": "LR/LRBI/S/x4/baby.png"}, ["HR/S/x2/baby.png"]),
    "BasicSR": (
        {"S/GTmod12/baby.png": "S/LRbicx4/baby.png", "S/original/baby.png": None},
        ["S/LRbicx2/baby.png", "S/LRbicx3/baby.png"],
    ),
    "BasicSR, original": ({"S/original/baby.png": "S/LRbicx4/baby.png"}, []),
    "SelfExSR": (
        {"S/image_SRF_4/img_001_SRF_4_HR.png": "S/image_SRF_4/img_001_SRF_4_LR.png"},
        [
            "S/image_SRF_4/img_001_SRF_4_bicubic.png",
            "S/image_SRF_4/img_001_SRF_4_glasner.png",
            "S/image_SRF_2/img_001_SRF_2_HR.png",
            "S/image_SRF_2/img_001_SRF_2_LR.png",
        ],
    ),
    "RealSR": (
        {"Canon/Train/4/Canon_001_HR.png": "Canon/Train/4/Canon_001_LR4.png"},
        ["Canon/Train/2/Canon_001_LR2.png"],
    ),
    "scale above": ({"S/X4/GT/baby.png": "S/X4/LR/baby.png"}, ["S/X2/GT/baby.png"]),
    "DF2K of KAIR": ({"DF2K/HR/1.png": "DF2K/LR_bicubic/X4/1x4.png"}, []),
    "scale behind the set's name": (
        {"DIV2K_HR/0001.png": "DIV2K_X4/0001.png"},
        ["DIV2K_X2/0001.png"],
    ),
    "by exposure": ({"hr_over/a.png": "lr_over/a.png", "hr_under/a.png": "lr_under/a.png"}, []),
    "accents apart": ({"HR/caf\u00e9.png": "LR/cafe\u0301x4.png"}, []),
    "numbers": ({"HR/1.png": "LR/1x4.png", "HR/11.png": "LR/11x4.png"}, []),
    "one of two": ({"HR/a.png": "LR/a_x4.png", "HR/b.png": None}, []),
    "behind a folder's scale": ({"photos_x4/a.png": "photos_x4/a_LR.png"}, []),
    "no LR": ({"low light/a.png": None, "lrs/b.png": None, "photos_x4/c.png": None}, []),
}
for hr, lr in (
    *(("HR", lr) for lr in ("LR_bicubic/X4", "lr", "LRx4", "LR_x4", "LQ", "X4", "low", "x4", "4x")),
    ("GTmod12", "LRbicx4"),
    ("hr", "LQ"),
    ("high", "low"),
    ("train_HR", "train_LR"),
    ("gt", "lq"),
    ("HQ", "LR4"),
    ("High", "lowres"),
):
    LAYOUTS[f"{hr} {lr}"] = ({f"{hr}/0001.png": f"{lr}/0001.png"}, [])
for end in (
    *("x4", "_x4", "X4", "_bicLRx4", "_LRBI_x4", "_LR", "_lr", "-LR.x4", "_LRx4", "_lowres"),
    *("_bicubic_x4", "_SRF_4_LR"),
):
    LAYOUTS[f"named {end}"] = ({"HR/0001.png": f"LR/0001{end}.jpg"}, [])


def paired(tree: Path, names: list[str]) -> Pairing:
    """No file is opened: they need not be there."""
    return pair([read(tree / name, tree) for name in sorted(names)])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pairs_are_found(layout: str) -> None:
    """Whatever the folder is called in which all of them are."""
    pairs, left = LAYOUTS[layout]
    for tree in ("/data/set", "/data/data_HR-LR_bicubic-X4", "/data/setLRBI_x4", "/data/HR"):
        found = paired(Path(tree), [*pairs, *filter(None, pairs.values()), *left])
        assert pairs == {
            str(hr.path.relative_to(tree)): lr and str(lr.relative_to(tree))
            for hr, lr in found.pairs
        }
        assert {str(file.path.relative_to(tree)) for file in found.left} == set(left)
        assert not found.alone and not found.missing()


@pytest.mark.parametrize(
    ("names", "named", "wanted"),
    [
        (["HR/1.png", "LR/1_small.png"], "LR/1_small.png", "1x4.png"),
        (["HR/1.png", "HR/2.png", "LR/1.png", "LR/II.png"], "LR/II.png", "HR/2.png"),
        (["DIV2K_train_LR_bicubic/X4/1x4.png"], "X4/1x4.png", "HR images"),
        (["A/HR/1.png", "B/LR/1.png"], "B/LR/1.png", "HR images"),
        (["photos/1.png", "X4/2.png"], "X4/2.png", "HR images"),
        (["photos/1_LR.png"], "photos/1_LR.png", "HR images"),
        (["HR/1.png", "LR_mine/1.png"], "LR_mine/1.png", "HR images"),
    ],
)
def test_lr_images_without_an_hr_image_are_named(names: list[str], named: str, wanted: str) -> None:
    found = paired(Path("/data/set"), names)
    assert named in found.missing() and wanted in found.missing()
    assert not any("LR" in str(hr.path) or "X4" in str(hr.path) for hr, _ in found.pairs)


def test_lr_images_of_hr_images_that_are_not_there_are_no_error_beside_whole_pairs() -> None:
    found = paired(Path("/data/set"), ["HR/1.png", "LR/1.png", "LR/2.png"])
    assert [file.path.name for file in found.alone] == ["2.png"] and not found.missing()


def test_the_same_name_in_one_folder_is_an_lr_image_by_its_size(
    tmp_path: Path, noise: Callable[..., NDArray[np.uint8]], save: Callable[..., Path]
) -> None:
    for folder, side in (("downscaled", 8), ("enlarged", 128)):
        save(tmp_path / folder / "a.png", noise(32, 32))
        save(tmp_path / folder / "a_x4.png", noise(side, side))
    files = ["downscaled/a.png", "downscaled/a_x4.png", "enlarged/a.png", "enlarged/a_x4.png"]
    found = paired(tmp_path, files)
    assert [(hr.path.relative_to(tmp_path).as_posix(), lr) for hr, lr in found.pairs] == [
        ("downscaled/a.png", tmp_path / "downscaled/a_x4.png"),
        ("enlarged/a.png", None),
        ("enlarged/a_x4.png", None),
    ]
