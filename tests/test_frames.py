"""Files of several pictures: the first is read, and what is said of the others."""

import struct
from pathlib import Path

import numpy as np
import pytest
from image_files import H, W, noise, repeated, save
from PIL import Image

from deploy.photos.enlarge import enlarge
from utils.imaging import formats
from utils.imaging.decode import read


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_of_several_frames_the_first_is_read_with_a_note(tmp_path: Path, suffix: str) -> None:
    frames = [
        Image.new("RGB", (W, H), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    ]
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(
        tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:], **options
    )
    photo = read(path)
    assert photo.note == "first of 3 frames" == enlarge(photo, repeated).note
    assert (photo.pixels == (255, 0, 0)).all()


def test_the_first_of_more_frames_than_are_counted_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [Image.new("L", (W, H), grey) for grey in range(200)]
    path = save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    monkeypatch.setattr(formats, "MOST_READS", 1000)
    photo = read(path)
    assert photo.note == "first of very many frames" and not photo.pixels.any()


@pytest.mark.parametrize(
    ("kinds", "note"),
    [
        ((0,), "its HDR gain map is left out"),
        ((0x010001, 0x010002), ""),  # large thumbnails
        ((0x020002,), "first of 2 frames"),  # the other eye's view
        ((0x010001, 0), "its HDR gain map is left out"),
    ],
)
def test_what_phones_put_behind_a_photo_is_no_frame(
    tmp_path: Path, kinds: tuple[int, ...], note: str
) -> None:
    image, first = Image.fromarray(noise(H, W, 3)), 0x030000  # the code of a primary image
    others = [image.resize((9, 7))] * len(kinds)
    image.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=others, quality=95)
    data = bytearray((tmp_path / "phone.jpg").read_bytes())
    at = data.rindex(struct.pack("<L", first), 0, 200)  # the first entry of its index
    for i, kind in enumerate(kinds, 1):  # of an entry of 16 bytes, the first four
        struct.pack_into("<L", data, at + 16 * i, kind)
    (tmp_path / "phone.jpg").write_bytes(data)
    photo = read(tmp_path / "phone.jpg")
    assert photo.note == note
    with Image.open(tmp_path / "phone.jpg") as expected:
        np.testing.assert_array_equal(photo.pixels, np.asarray(expected))
