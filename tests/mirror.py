"""A mirror of data sets that misbehaves on demand, and the archives it has: for data/prepare.py."""

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from data import prepare
from utils import download
from utils.datasets import find
from utils.imaging.images import read_rgb

Image = NDArray[np.uint8]
MakeImage = Callable[..., Image]
Fetch = Callable[..., int]
SIZE = 20_000  # every archive here is filled up to it, so that one can take another's place
HR, LR = "DIV2K_valid_HR.zip", "DIV2K_valid_LR_bicubic_X4.zip"


@dataclass
class Site:
    """What the server has, how it misbehaves, and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    tag: str | None = '"one"'
    modified: str | None = None
    honours_range: bool = True
    cut: int | None = None  # bytes of a response after which the connection is closed ..
    cuts: int = 0  # .. so many times
    refusals: list[int] = field(default_factory=list)  # status codes of the next responses
    longer: int = 0  # than true is Content-Length
    asked: list[tuple[str, str | None]] = field(default_factory=list)


@pytest.fixture()
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, span = self.path.removeprefix("/mirror/"), self.headers["Range"]
            site.asked.append((name, span))
            refusal = site.refusals.pop(0) if site.refusals else 0
            if refusal or name not in site.files:
                return self.send_error(refusal or 404)
            content, start = site.files[name], 0
            if span and site.honours_range:
                start = int(span.removeprefix("bytes=").removesuffix("-"))
                if start >= len(content):
                    return self.send_error(416)
                self.send_response(206)
                last = len(content) - 1
                self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(content) - start + site.longer))
            for header, value in (("ETag", site.tag), ("Last-Modified", site.modified)):
                if value:
                    self.send_header(header, value)
            self.end_headers()
            end = len(content)
            if site.cuts:
                site.cuts -= 1
                end = start + site.cut
            self.wfile.write(content[start:end])

        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "WAITS_S", (0, 0))
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}/mirror"
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


def png(rgb: Image, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, rgb[..., ::-1])[1].tobytes()


def zipped(files: dict[str | zipfile.ZipInfo, bytes]) -> bytes:
    """A zip of SIZE bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return filled(buffer.getvalue(), SIZE)


def filled(archive: bytes, size: int) -> bytes:
    """A zip with a comment that makes it `size` bytes; it may have one already."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        bare = len(archive) - len(file.comment)
    assert bare <= size
    return archive[: bare - 2] + (size - bare).to_bytes(2, "little") + b" " * (size - bare)


def tarred(files: dict[str, bytes], mode: str = "w") -> bytes:
    """A tar; a file whose content is b"->" is a link out of it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as file:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if content == b"->":
                info.type, info.linkname, info.size = tarfile.SYMTYPE, "../../evil.png", 0
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture()
def hr(noise: MakeImage) -> dict[str, bytes]:
    """What is in the archive of HR images, a folder and a hidden file among them."""
    pictures = {f"DIV2K_valid_HR/080{n}.png": png(noise(32, 40, n)) for n in (1, 2, 3)}
    return {"DIV2K_valid_HR/": b"", "DIV2K_valid_HR/._0801.png": b"no image", **pictures}


@pytest.fixture()
def published(
    site: Site, hr: dict[str, bytes], noise: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three pairs in place of DIV2K; of the LR images no checksum is known."""
    low = {f"DIV2K_valid_LR_bicubic/X4/080{n}x4.png": png(noise(8, 10, 10 + n)) for n in (1, 2, 3)}
    site.files = {HR: zipped(hr), LR: zipped(low)}
    publish(monkeypatch, sha256=hashlib.sha256(site.files[HR]).hexdigest())


def publish(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """Publish the HR archive with other size, number of images or checksum."""
    archive = replace(prepare.DIV2K["DIV2K_valid"][0], images=3, size=SIZE, **changes)
    other = prepare.Archive(LR, "DIV2K_valid_LR_bicubic/X4", 3, SIZE, None)
    monkeypatch.setattr(prepare, "DIV2K", {"DIV2K_valid": (archive, other)})


@pytest.fixture()
def fetch(site: Site, tmp_path: Path) -> Fetch:
    """Run prepare.py DIV2K_valid into data/; the exit code."""

    def run(*options: object) -> int:
        arguments = ["DIV2K_valid", "--url", site.url, "--data_dir", tmp_path / "data", *options]
        return prepare.main(list(map(str, arguments)))

    return run


def files_below(folder: Path) -> set[str]:
    """All files, hidden ones too, and empty folders."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if not path.is_dir() or not any(path.iterdir())
    }


COMPLETE = {f"DIV2K_valid_HR/080{n}.png" for n in (1, 2, 3)} | {
    f"DIV2K_valid_LR_bicubic/X4/080{n}x4.png" for n in (1, 2, 3)
}


def assert_complete(folder: Path, noise: MakeImage, seed: int = 0) -> None:
    """The three pairs are there, and nothing else."""
    assert files_below(folder) == COMPLETE
    for number, pair in enumerate(find("DIV2K_valid", folder).pairs, 1):
        assert pair.hr and pair.lr
        np.testing.assert_array_equal(read_rgb(pair.hr), noise(32, 40, seed + number))
        np.testing.assert_array_equal(read_rgb(pair.lr), noise(8, 10, 10 + number))


def lay_out(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder
