"""What upscale.py says before the work: names, formats, sizes, files it leaves out or has done."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_files import names, noise, opened, photo, small_files
from PIL import Image

from deploy import pipeline
from deploy.photos import encode, suffixes
from deploy.photos.suffixes import BY_PLUGIN
from utils.imaging.decode import Photo
from utils.imaging.formats import PLUGINS


@pytest.fixture()
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is tried, the network does not run."""
    monkeypatch.setattr(pipeline, "enlarge", lambda *_: pytest.fail("the network ran"))


@pytest.mark.parametrize("letter", ["n", "é", "日"])
def test_names_up_to_the_last_byte(
    enlarge: Callable, tmp_path: Path, capsys: pytest.CaptureFixture, letter: str
) -> None:
    picture, width = Image.fromarray(photo(4, 5)), len(letter.encode())
    stem = letter * (248 // width)
    stem += "a" * (248 - len(stem.encode()))
    for name in (stem, f"{stem}b"):
        picture.save(f"{name}.png")
    assert enlarge(".", "-o", "out") == 1
    assert names(tmp_path / "out") == [f"{stem}_x4.png"]
    said = capsys.readouterr().out
    assert "expected at most 255 bytes for the result's name, got 256: give a shorter" in said
    assert enlarge(f"{stem}b.png", "-o", "out", "--suffix", "x") == 0
    assert names(tmp_path / "out") == sorted([f"{stem}_x4.png", f"{stem}b_x.png"])


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("wide.png", "--ext", "webp"), "expected at most 16383 pixels a side for .webp, got 1638"),
        (("wide.png", "-o", "o.webp"), "expected at most 16383 pixels a side for .webp"),
        (("tall.png", "-o", "o.jpe"), "expected at most 65500 pixels a side for .jpe, got 4x65504"),
        (("clear.png", "--ext", "jpg"), "expected a format with transparency"),
        (("clear.gif", "-o", "o.bmp"), "expected a format with transparency"),
        (("n" * 249 + ".png",), "expected at most 255 bytes"),
    ],
)
def test_what_cannot_be_written_is_said_before_the_work(
    enlarge: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    options: tuple[str, ...],
    message: str,
) -> None:
    Image.new("RGB", (4096, 2)).save("wide.png")
    Image.new("RGB", (1, 16376)).save("tall.png")
    Image.new("RGBA", (3, 2), (9, 8, 7, 6)).save("clear.png")
    Image.new("RGBA", (3, 2), (9, 8, 7, 0)).save("clear.gif")
    Image.new("RGB", (3, 2)).save("n" * 249 + ".png")
    before = names(tmp_path)
    assert enlarge(*options) == 1
    assert message in capsys.readouterr().out
    assert names(tmp_path) == before


@pytest.mark.parametrize("name", ["o.gif", "o.AVIF", "new/o.heic", "o.ppm"])
def test_an_output_of_a_format_that_is_not_written(
    enlarge: Callable, tmp_path: Path, capsys: pytest.CaptureFixture, name: str
) -> None:
    Image.new("RGB", (3, 2)).save("a.png")
    assert enlarge("a.png", "-o", name) == 2
    assert f"or a folder, got {name}" in capsys.readouterr().err
    assert names(tmp_path) == ["a.png"]


def test_results_have_their_inputs_format_or_become_png(
    enlarge: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in").mkdir()
    picture = Image.fromarray(photo(3, 4))
    for name in ("a.jfif", "b.jpe", "c.gif", "d.ppm", "e.dib", "f.TIF", "g.bmp", "c.png"):
        picture.save(tmp_path / "in" / name)
    Image.new("RGB", (4096, 1)).save("in/wide.webp")
    clear = picture.copy()
    clear.putalpha(99)
    clear.save("in/named.jpg", "PNG")
    clear.save("in/clear.webp")
    assert enlarge("in", "-o", "out", "--ext", "auto") == 0
    written = {name: opened(tmp_path / "out" / name).format for name in names(tmp_path / "out")}
    assert written == {
        "a_x4.jfif": "JPEG",
        "b_x4.jpe": "JPEG",
        "c_gif_x4.png": "PNG",
        "c_png_x4.png": "PNG",
        "clear_x4.webp": "WEBP",
        "d_x4.png": "PNG",
        "e_x4.png": "PNG",
        "f_x4.TIF": "TIFF",
        "g_x4.bmp": "BMP",
        "named_x4.png": "PNG",
        "wide_x4.png": "PNG",
    }
    said = "\n".join(caplog.messages)
    assert "inputs' formats are not written: 1 .dib, 1 .gif, 1 .ppm" in said
    assert "in/wide.webp: the result becomes a PNG: expected at most 16383" in said
    assert "in/named.jpg: the result becomes a PNG: expected a format with transp" in said
    assert enlarge("in", "-o", "out", "--ext", "auto", "--skip_existing") == 0


def test_images_of_a_folder_are_taken_or_counted(
    enlarge: Callable,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture,
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "raw").mkdir()
    taken = [".gif", ".jfif", ".jpe", ".JPEG", ".ppm", ".pgm", ".pbm", ".pnm", ".dib", ".apng"]
    taken += [".avif"] if ".avif" in suffixes.readable() else []
    picture = Image.fromarray(photo(3, 4)).convert("L")
    for suffix in taken:
        kind = Image.registered_extensions()[suffix.lower()]
        picture.save(f"in/of{suffix[1:]}{suffix}", kind)
    for name in ("a.heic", "b.HEIC", "c.jxl", "d.tga", "e.CR2", ".hidden.heic", "n.txt", "m.json"):
        (tmp_path / "in" / name).touch()
        (tmp_path / "raw" / name).touch()
    assert enlarge("in", "-o", "out") == 0
    assert len(names(tmp_path / "out")) == len(taken)
    assert caplog.messages == ["5 files left out: 1 .cr2, 2 .heic, 1 .jxl, 1 .tga"]
    assert enlarge("raw") == 2
    assert "found none but 5 files left out: 1 .cr2, 2" in capsys.readouterr().err


def test_images_of_a_folder_are_taken_where_a_plugin_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, (module, _, _) in PLUGINS.items():
        monkeypatch.setitem(sys.modules, module, None)
        assert not BY_PLUGIN[name] & suffixes.readable.__wrapped__()
        (tmp_path / f"{module}.py").touch()
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    assert set.union(*BY_PLUGIN.values()) <= suffixes.readable.__wrapped__()


def test_a_result_that_cannot_be_read_is_made_again(
    enlarge: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("whole", "empty", "zeros", "text"):
        Image.fromarray(photo(3, 4)).save(f"{name}.png")
    assert enlarge(".", "-o", "out") == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for name, content in (("empty", b""), ("zeros", bytes(4096)), ("text", b"<html></html>")):
        (tmp_path / "out" / f"{name}_x4.png").write_bytes(content)
    changed = (tmp_path / "out" / "whole_x4.png").stat().st_mtime_ns
    capsys.readouterr()
    assert enlarge(".", "-o", "out", "--skip_existing") == 0
    assert "3 of 3 images written to out, 1 were there" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert (tmp_path / "out" / "whole_x4.png").stat().st_mtime_ns == changed


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp", "jfif"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_is_written_is_known_to_be_there(
    tmp_path: Path, suffix: str, channels: int, dtype: type
) -> None:
    pixels = noise(3, 4, channels, dtype=dtype)
    alpha = None if suffix in ("jpg", "bmp", "jfif") else pixels[..., 0]
    encode.write(tmp_path / f"a.{suffix}", Photo(pixels, alpha))
    assert suffixes.peek(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_result_of_more_pixels_than_pillow_opens_is_there(tmp_path: Path, suffix: str) -> None:
    Image.new("1", (16000, 12000)).save(tmp_path / f"a.{suffix}")  # of 12 megapixels
    assert suffixes.peek(tmp_path / f"a.{suffix}")


def test_headers_are_read_as_pillow_has_them(tmp_path: Path) -> None:
    for name, data in small_files().items():
        path = tmp_path / name
        path.write_bytes(data)
        with Image.open(path) as picture:  # not loaded: Pillow may turn it upright then
            expected = (*picture.size, picture.mode == "RGBA" or "transparency" in picture.info)
        assert suffixes.peek(path) == suffixes.Header(*expected), name
        path.write_bytes(data[:6])
        assert suffixes.peek(path) is None
    assert suffixes.peek(tmp_path / "missing.png") is None
    assert suffixes.peek(tmp_path) is None
