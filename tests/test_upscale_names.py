"""What upscale.py calls its results, and which files it knows as results."""

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from image_files import exif, names, opened, photo
from PIL import Image

from deploy import pipeline


def test_results_of_an_earlier_run_are_no_inputs(
    enlarge: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
) -> None:
    Image.fromarray(photo(8, 9)).save(tmp_path / "a.png")
    assert enlarge(".") == enlarge(".", "--verbose") == 0
    assert "though of none" not in caplog.text
    assert "left out, for it is named like a result: a_x4.png" in caplog.text
    assert names(tmp_path) == ["a.png", "a_x4.png"]
    assert enlarge(".", "-o", "out") == 0
    assert names(tmp_path / "out") == ["a_x4.png"]
    assert enlarge("out", "-o", "twice") == 0  # alone they are images like others
    assert names(tmp_path / "twice") == ["a_x4_x4.png"]
    assert enlarge("a_x4.png") == 0 and (tmp_path / "a_x4_x4.png").exists()
    assert enlarge(".", "--skip_existing") == 0
    assert "0 of 0 images written, 1 were there" in capsys.readouterr().out


def test_a_shells_star_may_be_repeated(
    enlarge: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It names the results of the first time, too, and those of results."""
    for i, name in enumerate(("a.png", "b.png", "b.jpg", "b_png.jpg", "A.v2.png")):
        Image.fromarray(photo(8, 9 + i)).save(tmp_path / name)
    star = names(tmp_path)
    assert enlarge(*star) == 0
    made = names(tmp_path)
    assert len(made) == 10 and enlarge(*made) == enlarge(*made, "--skip_existing") == 0
    assert "results of other inputs are left out: 5, such as A.v2_x4.png" in caplog.text
    assert "0 of 0 images written, 5 were there" in capsys.readouterr().out
    assert enlarge(*made, "-o", "out") == 0
    assert names(tmp_path / "out") == sorted(set(made) - set(star)) and names(tmp_path) == sorted(
        [*made, *(f"out/{name}" for name in set(made) - set(star))]
    )
    Image.fromarray(photo(8, 9)).save(tmp_path / "a_x4.png")  # a picture of another size
    before = (tmp_path / "a_x4.png").read_bytes()
    assert enlarge("a.png", "a_x4.png") == 1
    assert "a.png: the result would overwrite an input" in capsys.readouterr().out
    assert (tmp_path / "a_x4.png").read_bytes() == before and (tmp_path / "a_x4_x4.png").exists()


def test_results_of_one_name_are_both_kept(enlarge: Callable, tmp_path: Path) -> None:
    for i, name in enumerate(("a.jpg", "a.png", "b.png", "one/c.png", "two/c.png", "a_png.png")):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(8, 4 + i)).save(tmp_path / "in" / name)
    assert enlarge("in/one", "in", "in/two/c.png", "in/a.jpg", "-o", "out") == 0
    widths = {name: opened(tmp_path / "out" / name).width // 4 for name in names(tmp_path / "out")}
    assert widths == {
        "a_jpg_x4.png": 4,
        "a_png_x4.png": 5,
        "b_x4.png": 6,
        "c_png_x4.png": 7,
        "c_png_2_x4.png": 8,
        "a_png_2_x4.png": 9,
    }


def test_a_folder_is_the_same_through_a_link(
    enlarge: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its images are taken once, its results known, and none of them written over another."""
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to("in")
    for i, name in enumerate(("a.jpg", "a.png", "b.png")):
        Image.fromarray(photo(8, 9 + i)).save(tmp_path / "in" / name)
    assert enlarge("in/a.jpg", "link/a.png", "in/b.png", tmp_path / "in/b.png", "link/b.png") == 0
    results = {"a_jpg_x4.png": 36, "a_png_x4.png": 40, "b_x4.png": 44}
    assert names(tmp_path / "in") == sorted([*results, "a.jpg", "a.png", "b.png"])
    assert {name: opened(tmp_path / "in" / name).width for name in results} == results
    caplog.clear()
    assert enlarge("in", "-o", "link") == 0 and not caplog.text
    assert len(names(tmp_path / "in")) == 6
    (tmp_path / "in" / "b.png").unlink()
    assert enlarge("in", "-o", "link") == 0 and "such as in/b_x4.png" in caplog.text
    assert len(names(tmp_path / "in")) == 5


def test_the_result_of_a_turned_photo_is_there(
    enlarge: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    Image.fromarray(photo(8, 12)).save(tmp_path / "a.jpg", exif=exif(6))
    assert enlarge("a.jpg") == 0 and opened(tmp_path / "a_x4.png").size == (32, 48)
    assert enlarge("a.jpg", "--skip_existing") == 0
    assert "0 of 0 images written, 1 were there" in capsys.readouterr().out


def test_a_result_of_another_image_is_not_taken_for_this_ones(
    enlarge: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Which has its name where the two are not enlarged together."""
    Image.fromarray(photo(8, 9)).save(tmp_path / "c.jpg")
    Image.fromarray(photo(9, 11)).save(tmp_path / "c.png")
    assert enlarge("c.jpg") == 0 and enlarge("c.png", "--skip_existing") == 1
    assert "got a picture of another size: give another --suffix" in capsys.readouterr().out
    assert opened(tmp_path / "c_x4.png").size == (36, 32)
    assert enlarge("c.jpg", "--skip_existing") == 0
    assert "0 of 0 images written, 1 were there" in capsys.readouterr().out


def test_a_photo_that_is_named_like_a_result_is_not_left_out_without_a_word(
    enlarge: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.png", "a_x4.png", "b_x4.png"):
        Image.fromarray(photo(8, 9)).save(tmp_path / name)
    assert enlarge(".", "--skip_existing") == 1  # a_x4.png is no result of a.png
    assert "though of none of these inputs: 1, such as b_x4.png; give" in caplog.text
    assert names(tmp_path) == ["a.png", "a_x4.png", "b_x4.png"]


def test_results_in_another_format_are_known(
    enlarge: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.fromarray(photo(8, 9)).save(tmp_path / "a.jpg")
    assert enlarge(".") == enlarge(".", "--ext", "jpg") == 0
    assert "though of none" not in caplog.text
    assert names(tmp_path) == ["a.jpg", "a_x4.jpg", "a_x4.png"]
    Image.fromarray(photo(9, 9)).save(tmp_path / "a_x4.webp")  # of another size: no result
    assert enlarge(".") == 0
    assert "none of these inputs: 1, such as a_x4.webp" in caplog.text


def test_numbered_results_are_no_inputs_either(enlarge: Callable, tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a_png.jpg"):
        Image.fromarray(photo(8, 9)).save(tmp_path / name)
    assert enlarge(".") == 0
    made = names(tmp_path)
    assert enlarge(".") == 0 and names(tmp_path) == made and len(made) == 6


def test_inputs_are_never_written_over(
    enlarge: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("a.png", "a_x4.png", "b.jpg"):
        Image.fromarray(photo(8, 9)).save(tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    assert enlarge("a.png", "a_x4.png") == 1  # the result of the first would be the second
    assert (
        "1 of 2 images written to a_x4_x4.png, 1 failed:\n  a.png: the result would overwrite "
        "an input" in capsys.readouterr().out
    )
    assert enlarge("a.png", "a_x4.png", "--skip_existing") == 1  # and is not to be moved away
    assert "1 failed:\n  a.png: the result would overwrite" in capsys.readouterr().out
    for arguments in (
        ["a.png", "--suffix", ""],
        ["b.jpg", "-o", "b.jpg"],
        ["b.jpg", "--ext", "auto", "--suffix", "", "-o", "link"],
    ):
        assert enlarge(*arguments) == 1
        assert "0 of 1 images written, 1 failed:" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before


def test_names_that_cannot_be_printed(
    enlarge: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "_one_line", lambda source, error: "\udcff.png: broken")
    (tmp_path / "a.png").touch()
    assert enlarge("a.png") == 1
    assert "  \\udcff.png: broken" in capsys.readouterr().out


def test_results_have_names_that_differ_on_every_disk(tmp_path: Path, enlarge: Callable) -> None:
    """Disks of Macs and memory cards know no upper case, Macs accents as two characters."""
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    inputs = ("in/IMG_1.JPG", "in/img_1.png", f"in/{composed}.png", f"in/{decomposed}.jpg")
    for number, name in enumerate((*inputs, "other/x.png", "more/X.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(photo(8, 9 + number)).save(tmp_path / name)
    assert enlarge("in", "other", "more", "-o", "out") == 0
    found = names(tmp_path / "out")
    assert len({unicodedata.normalize("NFC", name).casefold() for name in found}) == 6
    assert {"IMG_1_JPG_x4.png", "img_1_png_x4.png"} <= set(found)
    for case, where in (("Trip", "one"), ("trip", "two")):
        (tmp_path / where / case).mkdir(parents=True)
        Image.fromarray(photo(8, 9)).save(tmp_path / where / case / "a.png")
    assert enlarge("one", "two", "-o", "stick", "--recursive") == 0
    found_there = names(tmp_path / "stick")
    assert len({name.casefold() for name in found_there}) == 2
    sizes = sorted(opened(tmp_path / "out" / name).size for name in found)
    assert sizes == [(4 * (9 + number), 32) for number in range(6)]
