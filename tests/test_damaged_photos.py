"""What is no picture, an absurd or a damaged one is an ImageError."""

import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from image_files import mutated, noise, png, small_files
from PIL import Image

from deploy.photos.encode import write
from utils.imaging.decode import read
from utils.imaging.formats import LARGEST
from utils.imaging.images import ImageError


def check_refused(path: Path, match: str = "expected") -> None:
    with pytest.raises(ImageError, match=match) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_file_is_an_image_error(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("no picture at all\n" * 50)
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "folder.png").mkdir()
    for name in (
        "empty.png",
        "text.jpg",
        "loop.png",
        "folder.png",
        "missing.png",
        "text.jpg/a.png",
    ):
        check_refused(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.png")
    check_refused(tmp_path / "pipe.png", "folder or device")


@pytest.mark.parametrize("side", [8193, 2**20, 2**31 - 1])
def test_absurd_sizes_are_refused_before_anything_is_decoded(tmp_path: Path, side: int) -> None:
    path = tmp_path / "a.png"
    small = png(noise(1, 1, 3), 2, 8)
    header = struct.pack(">II", side, 8192) + small[24:29]
    checksum = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    path.write_bytes(small[:16] + header + checksum + small[33:])
    check_refused(path, "expected at most 67108864 pixels")


def test_absurd_webp_is_refused_before_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    path = tmp_path / "a.webp"
    for body in (
        b"VP8X" + bytes(8) + b"\xff\xff\0\xff\xff\0",
        b"VP8L" + bytes(4) + b"\x2f\xff\xff\xff\x0f" + bytes(9),
        b"VP8 " + bytes(10) + b"\xff\x3f\xff\x3f",
    ):
        path.write_bytes(b"RIFF" + bytes(4) + b"WEBP" + body)
        check_refused(path, "expected at most 67108864 pixels")


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9])
def test_cut_files_are_image_errors(tmp_path: Path, share: float) -> None:
    for name, data in small_files().items():
        if name in ("12.gif", "14.png", "15.tif"):
            continue  # of several frames the first may be whole
        path = tmp_path / name
        path.write_bytes(data[: int(share * len(data))])
        check_refused(path)


def test_damaged_files_are_photos_or_image_errors(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="needs POSIX")
    rng = np.random.default_rng(2023)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    files = list(small_files().items())
    outcomes = {"photo": 0, "error": 0}
    for i in range(int(os.environ.get("LKDN_FUZZ", "120"))):
        name, data = files[i % len(files)]
        path = tmp_path / name
        path.write_bytes(mutated(data, rng))
        try:
            photo = read(path)
        except ImageError as error:
            assert str(path) in str(error)
            outcomes["error"] += 1
        else:
            outcomes["photo"] += 1
            height, width, channels = photo.pixels.shape
            assert 0 < height * width <= LARGEST and channels in (1, 3)
            assert photo.pixels.dtype in (np.uint8, np.uint16)
            assert photo.alpha is None or photo.alpha.shape == (height, width)
            assert photo.alpha is None or photo.alpha.dtype == photo.pixels.dtype
            if height * width < 10000:
                write(path.with_suffix(".out.png"), photo)
    assert min(outcomes.values()) > 0
    # No header made the process larger than a picture of LARGEST pixels would, decoded and copied.
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1 if sys.platform == "darwin" else 1024) < 16 * LARGEST
