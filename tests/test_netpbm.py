"""PBM, PGM and PPM, in digits and in bytes, of every depth, by their specification."""

from pathlib import Path

import numpy as np
import pytest

from utils.imaging.decode import read
from utils.imaging.images import ImageError

H, W = 5, 7


@pytest.mark.parametrize("most", [1, 5, 100, 255, 256, 1000, 65535])
@pytest.mark.parametrize("channels", [1, 3])
def test_shares_of_any_number(tmp_path: Path, channels: int, most: int) -> None:
    values = np.random.default_rng(0).integers(0, most + 1, (H, W, channels))
    header = f"# by hand\n{W} # across\n{H}\n{most}\n"
    digits = "\n".join(" ".join(map(str, row.ravel())) for row in values)
    (tmp_path / "digits").write_text(f"P{2 if channels == 1 else 3}\n{header}{digits}\n")
    data = values.astype(">u2" if most > 255 else "u1").tobytes()
    raw = f"P{5 if channels == 1 else 6}\n{header}".encode() + data
    (tmp_path / "raw").write_bytes(raw)
    texts = {"text": "whatever\n", "dashes": "-- by hand\n", "another": f"P2\n{header}{digits}\n"}
    for name, after in texts.items():
        (tmp_path / name).write_text((tmp_path / "digits").read_text() + after)
    levels = 255 if most < 256 else 65535
    for name in ("digits", "raw", *texts):
        photo = read(tmp_path / name)
        assert photo.pixels.dtype == (np.uint8 if most < 256 else np.uint16) and photo.note == ""
        assert np.abs(photo.pixels - values * levels / most).max() <= 0.51, name  # half a level


@pytest.mark.parametrize("most", [200, 255, 1000, 65535])
def test_values_above_the_maximum_are_the_maximum(tmp_path: Path, most: int) -> None:
    (tmp_path / "a.pgm").write_text(f"P2\n3 1\n{most}\n{most} {most + 45} 70000\n")
    pixels = read(tmp_path / "a.pgm").pixels
    assert pixels.tolist() == [[[255 if most < 256 else 65535]] * 3]


@pytest.mark.parametrize("most", [255, 1000])
def test_missing_pixels_are_an_error(tmp_path: Path, most: int) -> None:
    """Not whatever the memory held before."""
    few = " ".join(map(str, range(H * W - 1)))
    raw = bytes((H * W - 1) * (1 if most < 256 else 2))
    for data in (b"P2", b"P2 1", b"P2 " + few.encode(), b"P2 " + few.encode() + b"\n", b"P5" + raw):
        (tmp_path / "cut").write_bytes(data[:2] + f"\n{W} {H}\n{most}\n".encode() + data[2:])
        for _ in range(3):
            with pytest.raises(ImageError, match="cut$"):
                read(tmp_path / "cut")


@pytest.mark.parametrize("blank", ["", " ", "\n# a comment 1 0\n"])
def test_bits_of_which_1_is_black(tmp_path: Path, blank: str) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (H, W))
    rows = "\n".join(blank.join(map(str, row)) for row in bits)
    (tmp_path / "a.pbm").write_text(f"P1\n{W} {H}\n{rows}\n")
    packed = np.packbits(bits.astype(np.uint8), axis=1).tobytes()
    (tmp_path / "b.pbm").write_bytes(f"P4\n{W} {H}\n".encode() + packed)
    for name in ("a.pbm", "b.pbm"):
        np.testing.assert_array_equal(read(tmp_path / name).pixels[..., 0], 255 * (1 - bits))
    for other in "27a-.":
        damaged = rows[:-1] + other
        (tmp_path / "c.pbm").write_text(f"P1\n{W} {H}\n{damaged}\n")
        with pytest.raises(ImageError, match="expected 0 and 1 in a PBM"):
            read(tmp_path / "c.pbm")
    (tmp_path / "d.pbm").write_text(f"P1\n{W} {H}\n{rows}\nwhatever")  # which may stand there
    np.testing.assert_array_equal(read(tmp_path / "d.pbm").pixels[..., 0], 255 * (1 - bits))
