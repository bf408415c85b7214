"""What is no whole image, or not read, is named for what it is, before it costs much."""

import io
import struct
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
from image_files import noise, png, smooth
from numpy.typing import NDArray
from PIL import Image, ImageCms

from deploy.photos.encode import write
from utils.imaging import formats
from utils.imaging.decode import read
from utils.imaging.images import ImageError, read_rgb


def encoded(pixels: NDArray | Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def check_refused(path: Path, match: str) -> None:
    for reader in (read, read_rgb):
        with pytest.raises(ImageError, match=match) as caught:
            reader(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def chunk(name: bytes, data: bytes) -> bytes:
    checked = name + data
    return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))


RGB = noise(33, 21, 3)
UNSUPPORTED = {
    "JPEG 2000": encoded(RGB, "JPEG2000"),
    "TGA": encoded(RGB, "TGA", compression="tga_rle"),
    "an icon": encoded(RGB, "ICO", sizes=[(16, 16)]),
    "PCX": encoded(RGB, "PCX"),
    "DirectDraw": encoded(RGB, "DDS"),
    "PDF": encoded(RGB, "PDF"),
    "HEIC: pip install pillow-heif": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99),
    "JPEG XL: pip install pillow-jxl-plugin": b"\xff\x0a" + bytes(99),
    "a web page: download the image": b"<!DOCTYPE html>\n<html><body>404</body></html>",
    "a pointer of Git LFS: run git lfs pull": b"version https://git-lfs.github.com/spec/v1\n",
    "a film": b"\0\0\0\x18ftypmp42" + bytes(99),
    "Photoshop": b"8BPS\0\1" + bytes(99),
    "OpenEXR": b"\x76\x2f\x31\x01\x02\0\0\0" + bytes(99),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_read_is_named_with_advice(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, _, _ in formats.PLUGINS.values():
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    path = tmp_path / "picture.png"
    path.write_bytes(UNSUPPORTED[name])
    check_refused(path, f"cannot read {name}")


def test_a_plugin_for_heic_is_used_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes(UNSUPPORTED["HEIC: pip install pillow-heif"])

    def opener(*_: object) -> Image.Image:
        return Image.open(io.BytesIO(encoded(RGB, "PNG")))

    def register() -> None:
        monkeypatch.setitem(Image.OPEN, "HEIF", (opener, lambda head: True))
        Image.ID.append("HEIF")

    plugin = types.ModuleType("pillow_heif")
    monkeypatch.setattr(plugin, "register_heif_opener", register, raising=False)
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    np.testing.assert_array_equal(read(path).pixels, RGB)


@pytest.mark.parametrize("tail", [bytes(5000), b"\xff", b"IEND" + bytes(7), b"\xff\xd8\xff\xd9"])
def test_data_behind_the_end_are_not_looked_at(tmp_path: Path, tail: bytes) -> None:
    for kind, options in (("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True})):
        data = encoded(RGB, kind, **options)
        (tmp_path / "plain").write_bytes(data)
        (tmp_path / "more").write_bytes(data + tail)
        np.testing.assert_array_equal(read_rgb(tmp_path / "plain"), read_rgb(tmp_path / "more"))


@pytest.mark.parametrize("rows", [0, 1, 20, 32, 32.9])
@pytest.mark.parametrize("bits, kind, channels", [(8, 2, 3), (16, 6, 4), (8, 0, 1), (16, 0, 1)])
def test_a_png_that_lacks_rows_is_refused(
    tmp_path: Path, rows: float, bits: int, kind: int, channels: int
) -> None:
    pixels = noise(33, 21, channels, dtype=np.uint16 if bits == 16 else np.uint8)
    whole = png(pixels, kind, bits)
    raw = zlib.decompress(whole[41:-16])
    part = zlib.compress(raw[: int(rows * len(raw) / 33)])
    path = tmp_path / "a.png"
    path.write_bytes(whole[:33] + chunk(b"IDAT", part) + chunk(b"IEND", b""))
    check_refused(path, "lacks")


def test_a_png_that_ends_in_black_is_whole(tmp_path: Path) -> None:
    for pixels, kind in ((np.zeros((9, 7, 3), np.uint8), 2), (noise(9, 7, 1) * 0, 0)):
        (tmp_path / "a.png").write_bytes(png(pixels, kind, 8))
        assert not read(tmp_path / "a.png").pixels.any()


def test_an_interlaced_png_is_read_and_refused_without_its_end(tmp_path: Path) -> None:
    rgb = noise(13, 11, 3)
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
    passes.append((0, 1, 1, 2))
    raw = b"".join(
        b"\0" + row.tobytes()
        for x, y, across, down in passes
        for row in rgb[y::down, x::across]
        if row.size
    )
    head = png(rgb, 2, 8)[:33]
    head = head[:8] + chunk(b"IHDR", head[16:28] + b"\1")
    path = tmp_path / "a.png"
    path.write_bytes(head + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b""))
    np.testing.assert_array_equal(read(path).pixels, rgb)
    path.write_bytes(head + chunk(b"IDAT", zlib.compress(raw[:-1])) + chunk(b"IEND", b""))
    check_refused(path, "expected a whole")


def test_a_damaged_chunk_of_a_png_is_noticed(tmp_path: Path) -> None:
    data = bytearray(png(noise(33, 21, 3), 2, 8))
    path = tmp_path / "a.png"
    for at in (20, 60, len(data) // 2, len(data) - 17, len(data) - 1):
        data[at] ^= 1
        path.write_bytes(data)
        check_refused(path, "damaged|at most|lacks")
        data[at] ^= 1
    path.write_bytes(data)
    assert read(path).pixels.shape == (33, 21, 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_jpeg_that_lacks_rows_is_refused(tmp_path: Path, mode: str, share: float) -> None:
    data = encoded(Image.fromarray(smooth()).convert(mode), "JPEG", quality=90)
    start = data.index(b"\xff\xda") + 14
    path = tmp_path / "a.jpg"
    cut = data[: start + int(share * (len(data) - start))] + b"\xff\xd9"
    for behind in (b"", data, b"video\xff\xd9"):  # as phones put behind a picture
        path.write_bytes(cut + behind)
        check_refused(path, "lacks rows")


def test_a_grey_jpeg_is_whole(tmp_path: Path) -> None:
    for mode, options in (("RGB", {}), ("L", {}), ("RGB", {"progressive": True})):
        grey = Image.new("RGB", (40, 33), (128, 128, 128)).convert(mode)
        (tmp_path / "a.jpg").write_bytes(encoded(grey, "JPEG", **options))
        assert (read_rgb(tmp_path / "a.jpg") == 128).all()


def test_a_jpeg_of_a_thousand_scans_is_refused(tmp_path: Path) -> None:
    data = encoded(smooth(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    (tmp_path / "a.jpg").write_bytes(data[:last] + data[last:-2] * 1000 + data[-2:])
    check_refused(tmp_path / "a.jpg", "scans")


def sparse_files() -> dict[str, bytes]:
    header = png(noise(3, 3, 3), 2, 8)[:33]
    jpeg = encoded(smooth(), "JPEG")
    files = {"zeros.png": b"", "header.png": header, "start.jpg": jpeg[:4], "cut.jpg": jpeg[:-99]}
    files["data.png"] = header + b"\x7f\xff\xff\xffIDAT"
    files["text.png"] = header + b"\x7f\xff\xff\xfftEXt"
    files["whole.png"] = png(noise(3, 3, 3), 2, 8)
    files["whole.jpg"] = jpeg
    for name, kind in (("webp", "WEBP"), ("tif", "TIFF"), ("gif", "GIF"), ("avif", "AVIF")):
        if kind in Image.SAVE:
            files[f"whole.{name}"] = encoded(RGB, kind)
            files[f"start.{name}"] = files[f"whole.{name}"][:14]
    tiff = encoded(RGB, "TIFF", icc_profile=b"a" * 99)
    at = tiff.index(struct.pack("<HHI", 34675, 7, 99)) + 4
    files["tag.tif"] = tiff[:at] + b"\xff\xff\xff\xff" + tiff[at + 4 :]
    return files


@pytest.mark.parametrize("name", sparse_files())
def test_a_file_of_100_gib_is_never_read_whole(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    class Counted(formats.ImageReader):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            taken.append(len(data))
            return data

    monkeypatch.setattr("utils.imaging.decode.ImageReader", Counted)
    monkeypatch.setattr(formats, "MOST_READS", 20000)  # quick
    path = tmp_path / name
    with path.open("wb") as file:
        file.write(sparse_files()[name])
        file.truncate(100 << 30)
    try:
        read(path)
    except ImageError as error:
        assert str(path) in str(error)
    assert sum(taken) < 64 << 20


def test_a_comment_of_a_pnm_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "MOST_READS", 200_000)
    path = tmp_path / "a.ppm"
    path.write_bytes(b"P6\n#" + b"x" * 1_000_000 + b"\n1 1 255\n123")
    check_refused(path, "small pieces")


def large_profile(size: int) -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile += np.random.default_rng(0).bytes(size)
    return struct.pack(">I", len(profile)) + profile[4:]


def test_a_large_profile_is_read_and_never_written_where_pillow_does_not_open_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    icc, path = large_profile(1_500_000), tmp_path / "a.png"
    whole = png(RGB, 2, 8)
    path.write_bytes(whole[:33] + chunk(b"iCCP", b"a\0\0" + zlib.compress(icc)) + whole[33:])
    photo = read(path)
    assert photo.icc == icc and photo.note == ""
    for name in ("b.png", "b.tif", "b.jpg"):
        write(tmp_path / name, photo)
        assert (read(tmp_path / name).icc is None) == (name == "b.png")
    assert "colour profile of" in caplog.text and "b.png" in caplog.text
    assert len(caplog.records) == 1


@pytest.mark.parametrize("before", [True, False])
def test_texts_without_end_are_left_out_with_a_note(tmp_path: Path, before: bool) -> None:
    whole, path = png(RGB, 2, 8), tmp_path / "a.png"
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(20 << 20)))
    at = 33 if before else len(whole) - 12
    path.write_bytes(whole[:at] + text + whole[at:])
    photo = read(path)
    np.testing.assert_array_equal(photo.pixels, RGB)
    assert "left out" in photo.note


def test_gain_maps_and_previews_in_a_jpeg_are_no_frames(tmp_path: Path) -> None:
    picture, small = Image.fromarray(smooth()), Image.fromarray(smooth()[::2, ::2])
    path = tmp_path / "a.jpg"
    picture.save(path, "MPO", save_all=True, append_images=[small])
    assert read(path).note == "its HDR gain map is left out"
    data = path.read_bytes()
    for kind, note in ((b"\2\0\2\0", "first of 2 frames"), (b"\1\0\1\0", "")):
        at = data.index(b"\0\0\3\0", data.index(b"MPF\0") + 16) + 16  # of the second picture
        path.write_bytes(data[:at] + kind + data[at + 4 :])
        assert read(path).note == note


def test_alpha_of_a_bmp_that_is_0_everywhere_is_none(tmp_path: Path) -> None:
    rgba = noise(9, 7, 4)
    for alpha in (0, 7):
        rgba[..., 3] = alpha
        header = struct.pack(
            "<IiiHHIIiiII4I",
            108,
            7,
            -9,
            1,
            32,
            3,
            252,
            0,
            0,
            0,
            0,
            255 << 16,
            255 << 8,
            255,
            255 << 24,
        ) + bytes(52)
        pixels = rgba[..., [2, 1, 0, 3]].tobytes()
        path = tmp_path / "a.bmp"
        path.write_bytes(
            b"BM" + struct.pack("<IIIi", 14 + 108 + 252, 0, 122, 108)[:12] + header + pixels
        )
        photo = read(path)
        np.testing.assert_array_equal(photo.pixels, rgba[..., :3])
        assert (photo.alpha is None) == (alpha == 0)
