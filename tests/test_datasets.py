"""Sets are found in every layout in which people have them, and absence is said."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from skimage import data as photos

from utils.datasets import (
    BENCHMARKS,
    CHALLENGE,
    AbsentError,
    DatasetError,
    find,
    held_out,
    is_there,
)
from utils.imaging.images import read_rgb

# (set, an HR file, its LR file), as the organisers' template reads them, as DIV2K's archives
# unpack, and as the benchmark sets circulate.
LAYOUTS = [
    ("DIV2K_valid", "DIV2K_valid_HR/0801.png", "DIV2K_valid_LR/0801x4.png"),
    ("DIV2K_valid", "DIV2K_valid_HR/0801.png", "DIV2K_valid_LR_bicubic/X4/0801x4.png"),
    ("DIV2K_valid", "DIV2K/DIV2K_valid_HR/0801.png", "DIV2K/DIV2K_valid_LR/0801x4.png"),
    ("DIV2K_valid", "DIV2K/DIV2K_valid_HR/0801.png", "DIV2K/DIV2K_valid_LR_bicubic/X4/0801x4.png"),
    (  # each archive unpacked into a folder of its name
        "DIV2K_valid",
        "DIV2K_valid_HR/DIV2K_valid_HR/0801.png",
        "DIV2K_valid_LR_bicubic_X4/DIV2K_valid_LR_bicubic/X4/0801x4.png",
    ),
    ("Set5", "Set5/Set5/HR/baby.png", "Set5/Set5/LR/baby.png"),
    ("Set5", "Set5/Set5/baby.png", None),
    ("DIV2K_test", "DIV2K_test_HR/0901.png", "DIV2K_test_LR/0901.png"),
    ("DIV2K_test", None, "DIV2K_test_LR/0901.png"),
    ("LSDIR_DIV2K_test", "LSDIR_DIV2K_test_HR/0000001.png", "LSDIR_DIV2K_test_LR/0000001x4.png"),
    ("Set5", "Set5/HR/baby.png", "Set5/LR/babyx4.png"),
    ("Set5", "Set5/GTmod12/baby.png", "Set5/LRbicx4/baby.png"),
    ("Set14", "Set14/GTmod4/zebra.png", "Set14/LRbicx4/zebra.png"),
    ("Urban100", "Urban100/HR/img_001.png", "Urban100/LR_bicubic/X4/img_001x4.png"),
    ("B100", "B100/original/3096.jpg", None),
    ("Set14", "Set14/image_SRF_4/img_001_SRF_4_HR.png", "Set14/image_SRF_4/img_001_SRF_4_LR.png"),
    ("B100", "B100/image_SRF_4/img_001_SRF_4_HR.png", None),
    ("Manga109", "Manga109/ARMS.png", None),
    ("Set5", "Set5/X4/GT/baby.png", "Set5/X4/LR/baby.png"),
    ("Set5", "HR/Set5/x4/baby_HR_x4.png", "LR/LRBI/Set5/x4/baby_LRBI_x4.png"),
    ("mine", "mine/hr/0001.png", "mine/LQ/0001.png"),
    ("setx4", "setx4/HR/0001.png", "setx4/LR/0001_x4.png"),
    ("setLRBI_x4", "setLRBI_x4/HR/0001.png", "setLRBI_x4/LR/0001_LRBI_x4.png"),
    ("mine", "mine/HR_sub/0001_s001.png", "mine/X4_sub/0001_s001.png"),
    ("my LR", None, "my LR/a.png"),
    ("Set5", "Set5/baby.png", "Set5/LR/babyx4.png"),
    ("my photos", "my photos/HR/a.JPG", "my photos/LR/ax4.png"),
    ("my photos", None, "my photos/LR/ax4.png"),
    ("my photos", "my photos/a.webp", None),
]


def touch(folder: Path, *names: str | None) -> list[Path | None]:
    """Empty files: finding reads no pixel."""
    paths = [folder / name if name else None for name in names]
    for path in paths:
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return paths


@pytest.mark.parametrize(("name", "hr", "lr"), LAYOUTS)
def test_layout_is_found(tmp_path: Path, name: str, hr: str | None, lr: str | None) -> None:
    hr_path, lr_path = touch(tmp_path, hr, lr)
    touch(tmp_path, f"{name}/readme.txt", "Other_HR/x.png", "Set99/HR/x.png")
    found = find(name, tmp_path)
    assert found.name == name
    (pair,) = found.pairs
    assert (pair.hr, pair.lr) == (hr_path, lr_path)
    assert pair.name == (Path(hr).stem if hr else Path(lr or "").stem.removesuffix("x4"))


@pytest.mark.parametrize(("name", "hr", "lr"), LAYOUTS)
def test_what_is_found_as_a_set_to_measure_is_held_out_from_training(
    name: str, hr: str | None, lr: str | None
) -> None:
    for file in filter(None, (hr, lr)):
        is_known = name in (*BENCHMARKS, *CHALLENGE)
        assert bool(held_out(Path(file).parent.parts)) == is_known, file


@pytest.mark.parametrize(
    ("folders", "is_held_out"),
    [
        *[(f, True) for f in ("DIV2K_valid/HR", "DIV2K/valid/HR", "DIV2K_val_HR", "Set5_HR")],
        *[(f, True) for f in ("BSD100", "BSDS100/HR", "set14", "div2k_valid_hr", "val", "val1")],
        *[(f, True) for f in ("DIV2K_valid_HR_sub", "Urban100/image_SRF_4", "my-test")],
        *[(f, False) for f in ("DIV2K_train_HR", "LSDIR/train/HR", "contest", "test charts", "")],
        *[(f, False) for f in ("valley", "interval", "Set50", "DIV2K_train_HR_sub", "Flickr2K")],
    ],
)
def test_validation_test_and_benchmark_sets_are_known_by_their_folders(
    folders: str, is_held_out: bool
) -> None:
    assert bool(held_out(Path(folders).parts)) == is_held_out


def test_lr_images_that_belong_to_no_hr_image_are_an_error_that_names_them(tmp_path: Path) -> None:
    touch(tmp_path, "Set5/HR/baby.png", "Set5/LR/baby_small.png")
    with pytest.raises(DatasetError, match="Set5/LR/baby_small.png .* babyx4.png"):
        find("Set5", tmp_path)
    assert is_there("Set5", tmp_path)  # so that it is not passed over


def test_images_of_another_scale_alone_are_no_set(tmp_path: Path) -> None:
    touch(tmp_path, "Set5/X2/GT/baby.png", "Set5/LRbicx3/baby.png")
    assert not is_there("Set5", tmp_path)


def test_links_to_folders_go_by_their_own_names(tmp_path: Path) -> None:
    for name, place in (("faces", "one/HR"), ("streets", "two/HR")):
        touch(tmp_path, f"{place}/a.png")
        (tmp_path / name).symlink_to(tmp_path / place, target_is_directory=True)
        for given in (name, str(tmp_path / name), f"{tmp_path / name}/"):
            found = find(given, tmp_path)
            assert (found.name, [pair.hr for pair in found.pairs]) == (
                name,
                [tmp_path / name / "a.png"],
            )


@pytest.mark.parametrize("given", ["relative", "absolute"])
def test_folder_is_found_by_its_own_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    touch(tmp_path, "sets/mine/HR/a.png", "sets/mine/LR/ax4.png")
    monkeypatch.chdir(tmp_path)
    name = "sets/mine" if given == "relative" else str(tmp_path / "sets" / "mine")
    found = find(name, tmp_path / "nothing here")
    assert found.name == "mine"
    (pair,) = found.pairs
    assert pair.hr == tmp_path / "sets/mine/HR/a.png"
    assert pair.lr == tmp_path / "sets/mine/LR/ax4.png"


def test_pairs_match_by_name_in_order_and_a_missing_lr_is_not_made_up(tmp_path: Path) -> None:
    for number in (3, 1, 2, 10):
        touch(tmp_path, f"DIV2K_valid_HR/080{number}.png")
    touch(
        tmp_path,
        "DIV2K_valid_LR/0803x4.png",
        "DIV2K_valid_LR/0801x4.png",
        "DIV2K_valid_LR/08010x4.png",
        "DIV2K_valid_LR/0899x4.png",
    )
    pairs = find("DIV2K_valid", tmp_path).pairs
    assert [pair.name for pair in pairs] == ["0801", "08010", "0802", "0803"]
    for pair in pairs:  # 0802 too: the path where it should be, so that reading it fails by name
        assert pair.lr == tmp_path / f"DIV2K_valid_LR/{pair.name}x4.png"


def test_an_empty_name_is_no_set(tmp_path: Path) -> None:
    touch(tmp_path, "HR/a.png")
    with pytest.raises(AbsentError, match="got an empty one"):
        find("", tmp_path)


@pytest.mark.parametrize("name", ["DIV2K_valid", "Set5", "my photos"])
def test_absent_set_is_named_in_one_line(tmp_path: Path, name: str) -> None:
    touch(tmp_path, f"{name}/HR/notes.txt")
    with pytest.raises(
        DatasetError, match=f"^expected images of {name} in .*{re.escape(str(tmp_path))}/{name}/HR"
    ):
        find(name, tmp_path)


def test_absence_has_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "mine/x3/HR/a.png", "mine/x3/HR/b.png", "mine/deep/in/HR/a.png", "mine/c.png")
    monkeypatch.chdir(tmp_path)
    for name, reason in {
        "mine/x3": "got 2 such as .*/mine/x3/HR/a.png, whose names or folders tell another scale",
        # not below data
        "mine/deep": f"in folders such as {re.escape(str(tmp_path))}/mine/deep/HR, found none",
        "mine/c.png": "got the file .*/mine/c.png: name its folder",
    }.items():
        with pytest.raises(AbsentError, match=reason):
            find(name, tmp_path / "data")


def test_folder_below_the_working_directory_is_not_taken_for_a_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "Set5/HR/mine.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError):
        find("Set5", tmp_path / "data")


def test_demo_set_is_four_colour_photographs(tmp_path: Path) -> None:
    found = find("demo", tmp_path)
    assert [pair.name for pair in found.pairs] == ["astronaut", "chelsea", "coffee", "rocket"]
    for pair in found.pairs:
        assert pair.hr is not None and pair.lr is None
        theirs = getattr(photos, pair.name)()
        # Two JPEG decoders may differ by a level or two; PNGs are equal.
        limit = 4 if pair.hr.suffix == ".jpg" else 0
        assert np.abs(read_rgb(pair.hr).astype(int) - theirs).max() <= limit


def test_equal_names_of_two_formats_stay_apart(tmp_path: Path, save: Callable[..., Path]) -> None:
    for name in ("a.png", "a.jpg", "b.png"):
        save(tmp_path / "set" / "HR" / name, np.zeros((8, 8, 3), np.uint8))
    pairs = find(str(tmp_path / "set"), tmp_path).pairs
    assert [pair.name for pair in pairs] == ["a_jpg", "a_png", "b"]


def test_no_two_images_of_a_set_have_one_name(tmp_path: Path, save: Callable[..., Path]) -> None:
    """Also on a disk that knows no upper case, or where a third image has the name of two."""
    for name in ("a.png", "a.jpg", "a_png.png", "B.png", "b.jpg"):
        save(tmp_path / "set" / name, np.zeros((8, 8, 3), np.uint8))
    pairs = find(str(tmp_path / "set"), tmp_path).pairs
    names = {pair.hr.name: pair.name for pair in pairs if pair.hr}
    assert names["a_png.png"] == "a_png" and names["a.jpg"] == "a_jpg"
    assert names["a.png"] == "a_png_2"
    assert len({name.lower() for name in names.values()}) == 5


def test_a_dot_means_the_working_directory(
    tmp_path: Path, save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("data", "here", "data/sub", "here/sub"):
        save(tmp_path / place / f"{place[:4]}.png", np.zeros((8, 8, 3), np.uint8))
    monkeypatch.chdir(tmp_path / "here")
    for name, label, image in (
        (".", "here", "here"),
        ("./sub", "sub", "here"),
        ("../data", "data", "data"),
        ("sub", "sub", "data"),
    ):
        found = find(name, tmp_path / "data")
        assert (found.name, [pair.name for pair in found.pairs]) == (label, [image])


def test_two_dots_mean_the_folder_above(
    tmp_path: Path, save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not HR/.., in which the images of the working directory would be found."""
    save(tmp_path / "all" / "set" / "HR" / "a.png", np.zeros((8, 8, 3), np.uint8))
    monkeypatch.chdir(tmp_path / "all" / "set")
    with pytest.raises(AbsentError):
        find("..", tmp_path)
    save(tmp_path / "all" / "HR" / "b.png", np.zeros((8, 8, 3), np.uint8))
    found = find("..", tmp_path)
    assert (found.name, [pair.name for pair in found.pairs]) == ("all", ["b"])
