"""Archives of unknown origin: their images and nothing else, or a line that says what is wrong."""

import io
import random
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from utils import download
from utils.download import ArchiveError, unpack

PIXELS = bytes(range(256)) * 8


def member(name: str, content: bytes = PIXELS, **fields: object) -> bytes:
    """A tar's header as it stands in the file, with its content; `fields` change the header."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    header = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    return header + content + bytes(-len(content) % 512)


def sized(header: bytes, size: int) -> bytes:
    """A header that says another size, which may be negative, in base 256."""
    field = b"\xff" if size < 0 else b"\x80"
    header = header[:124] + field + (size % 256**11).to_bytes(11, "big") + header[136:]
    blank = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(blank[:512]) + header[156:]


def pax(name: str, records: bytes) -> bytes:
    return member("pax", records, type=tarfile.XHDTYPE) + member(name)


END = bytes(1024)
HOSTILE = {
    "negative.tar": (sized(member("evil.png"), -512), "-512 for evil.png"),
    "backwards.tar": (member("a.png") + sized(member("evil.png"), -2560), "-2560 for evil.png"),
    "folder.tar": (sized(member("evil", b"", type=tarfile.DIRTYPE), -512), "-512 for evil"),
    "pax.tar": (pax("evil.png", b"14 size=-1024\n"), "evil.png"),
    "long.tar": (sized(member("././@LongLink", type=b"L"), 2**40), "1099511627776 for"),
    "latin.tar": (member("evil\udce4.png"), r"evil\udce4.png"),
    "escape.tar": (member("evil\x1b[2J.png"), r"evil\x1b[2J.png"),
    "lines.tar": (member("evil\nall is well.png"), r"evil\nall is well.png"),
    "nul.tar": (pax("evil.png", b"16 path=a\x00b.png\n"), r"a\x00b.png"),
    "root.tar": (member("/evil.png"), "/evil.png"),
    "drive.tar": (member("c:evil.png"), "c:evil.png"),
    "climbs.tar": (member("a/../../evil.png"), "evil.png"),
    "link.tar": (member("evil.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "evil.png"),
    "hard.tar": (member("evil.png", b"", type=tarfile.LNKTYPE, linkname="/etc/passwd"), "evil.png"),
    "device.tar": (member("evil.png", b"", type=tarfile.CHRTYPE), "evil.png"),
    "pipe.tar": (member("evil.png", b"", type=tarfile.FIFOTYPE), "evil.png"),
    "both.tar": (member("evil.png") + member("evil.png/a.png"), "File exists"),
    "bomb.tar": (sized(member("evil.png"), 2**50), "20 times"),
}


def files_in(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if not path.is_dir()]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tars_are_refused_by_name(name: str, tmp_path: Path) -> None:
    content, named = HOSTILE[name]
    (tmp_path / name).write_bytes(content + END)
    (tmp_path / "scratch").mkdir()
    with pytest.raises(ArchiveError) as refused:
        unpack(tmp_path / name, tmp_path / "scratch")
    message = str(refused.value)
    assert named in message and str(tmp_path / name) in message
    assert message.isprintable()
    assert files_in(tmp_path) in ([name], [name, "evil.png"])  # that only below the scratch folder


def test_a_bomb_is_refused_before_it_is_unpacked_to_look_behind_it(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("evil.png")
        info.size = 64 << 20
        archive.addfile(info, io.BytesIO(bytes(info.size)))
        archive.addfile(tarfile.TarInfo("../behind it"))
    with pytest.raises(ArchiveError, match="20 times the .* evil.png"):
        unpack(tmp_path / "bomb.tar.gz", tmp_path)


def test_more_files_than_a_data_set_has_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MOST_ENTRIES", 3)
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(4):
            archive.writestr(f"{number}.png", PIXELS)
    with pytest.raises(ArchiveError, match="and 3 files, got more with 3.png"):
        unpack(tmp_path / "many.zip", tmp_path)


def packed(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("set/a.png", "set/b.png"):
                archive.writestr(name, PIXELS)
            link = zipfile.ZipInfo("set/c.txt")
            link.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(link, "text")
    else:
        with tarfile.open(fileobj=buffer, mode=kind, format=tarfile.PAX_FORMAT) as tar:
            for name in ("set/a.png", f"set/{'long' * 40}é.png"):
                info = tarfile.TarInfo(name)
                info.size = len(PIXELS)
                tar.addfile(info, io.BytesIO(PIXELS))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["zip", "w:", "w:gz", "w:bz2", "w:xz"])
def test_mutated_archives_give_images_or_one_line(
    kind: str, tmp_path: Path, noise: Callable
) -> None:
    rng, whole, refused = random.Random(kind), packed(kind), 0
    file, scratch = tmp_path / "archive", tmp_path / "scratch"
    scratch.mkdir()
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(len(damaged))
            how = rng.random()
            if how < 0.6:
                damaged[at] = rng.choice((0, 255, damaged[at] ^ 1 << rng.randrange(8)))
            elif how < 0.8:
                damaged[at : at + rng.randrange(1, 600)] = b""
            else:
                damaged[at:at] = damaged[: rng.randrange(1, 600)]
            damaged = damaged or bytearray(b"x")
        file.write_bytes(damaged)
        try:
            unpack(file, scratch)
        except ArchiveError as error:
            refused += 1
            assert str(error).isprintable()
    assert refused > 30
    assert set(tmp_path.iterdir()) == {file, scratch}
