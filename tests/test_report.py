"""The page of all runs: what stands in it, and how large it is."""

import base64
import json
import re
import shutil
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from utils.bicubic import downscale, upscale
from utils.files import ROOT, sha256, write_json
from utils.imaging.images import read_rgb, write_png
from utils.report import page as report
from utils.report import pictures

# A name that would be a script if it were not escaped; no file of Windows may have it.
EVIL = "<img src=x onerror=document.title='run'>\"&" if sys.platform != "win32" else "a&'b"
SIZES = {
    EVIL: (40, 52),
    "wide": (300, 1200),
    "c": (48, 48),
    "d": (56, 40),
    "e": (64, 64),
    "f": (44, 72),
    "g": (40, 40),
}


class Elements(HTMLParser):
    """Every element of a page: (tag, attributes, the text directly in it)."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, Any], list[str]]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes), []))

    def handle_data(self, data: str) -> None:
        if self.found:
            self.found[-1][2].append(data)

    def all(self, tag: str) -> list[tuple[dict[str, Any], str]]:
        return [(own, "".join(text)) for name, own, text in self.found if name == tag]


def photo(height: int, width: int, seed: int) -> np.ndarray:
    """A colourful image, the finer the larger its seed, so that scores differ."""
    step = 12 - seed
    noise = np.random.default_rng(seed).integers(0, 256, (height // step + 2, width // step + 2, 3))
    return cv2.resize(noise.astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)


def decoded(uri: str) -> np.ndarray:
    head, data = uri.split(",")
    assert head == "data:image/jpeg;base64"
    pixels = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    return pixels[..., ::-1].astype(int)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, python: Callable) -> Path:
    """A working directory with seven images under set/ and a run of the shipped weights in out/."""
    folder = tmp_path_factory.mktemp("report")
    for seed, (name, (height, width)) in enumerate(SIZES.items()):
        write_png(folder / "set" / "HR" / f"{name}.png", photo(height, width, seed))
    done = python(
        folder, ROOT / "test_demo.py", "--dataset", "set", "--save_dir", "out", "--device", "cpu"
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def run(work: Path) -> dict[str, Any]:
    return json.loads((work / "out" / "23_LKDN_set_cpu_eager_fp32.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def page(work: Path) -> Path:
    report.write(work / "out", work / "page.html", work)
    return work / "page.html"


@pytest.fixture
def copy(work: Path, tmp_path: Path) -> Path:
    """A copy of the run to spoil."""
    shutil.copytree(work / "out", tmp_path / "out")
    return tmp_path / "out"


def test_names_are_escaped_and_nothing_is_loaded(page: Path) -> None:
    text = page.read_text("utf-8")
    elements = Elements(text)
    headings = {heading for _, heading in elements.all("h3")}
    assert EVIL in headings and "" not in headings
    for tag, own, _ in elements.found:
        assert not [key for key in own if key.startswith("on")], (tag, own)
        assert tag not in {"link", "iframe", "object", "base", "form"}
        assert own.get("src", "data:").startswith("data:"), (tag, own)
        assert own.get("href", "#").startswith("#"), (tag, own)
    assert not re.search(r"https?://|@import|url\(", text)
    ids = [own["id"] for _, own, _ in elements.found if "id" in own]
    assert len(ids) == len(set(ids))
    assert {own["href"][1:] for own, _ in elements.all("a")} <= set(ids)
    assert ("default-src 'none'" in text) and ("not what was scored" in " ".join(text.split()))
    assert "Speed, cpu" in text and "no validation was recorded" in text
    assert "factsheet, DIV2K_valid" not in text and "LR pixels [thousands]" in text


def test_images_are_sorted_and_the_worst_are_linked(page: Path, run: dict[str, Any]) -> None:
    expected = sorted(run["images"], key=lambda image: image["psnr"])
    assert expected != run["images"]
    elements = Elements(page.read_text("utf-8"))
    start = next(
        i for i, (_, own, _) in enumerate(elements.found) if own.get("aria-label") == "PSNR"
    )
    cells = ["".join(text) for tag, _, text in elements.found[start:] if tag in {"a", "td"}]
    rows = [cells[i : i + 4] for i in range(0, 4 * len(expected), 4)]
    assert rows == [
        [
            image["name"],
            "x".join(map(str, image["size"])),
            f"{image['psnr_bicubic']:.2f}",
            f"{image['psnr']:.2f}",
        ]
        for image in expected
    ]

    found = elements.found  # an article begins with its heading
    articles = {
        own["id"]: "".join(found[i + 1][2])
        for i, (tag, own, _) in enumerate(found)
        if tag == "article"
    }
    worst = next(
        i for i, (_, own, _) in enumerate(elements.found) if own.get("class", "") == "chips"
    )
    links = [
        (own["href"][1:], "".join(text))
        for tag, own, text in elements.found[worst : worst + 11]
        if tag == "a"
    ]
    assert [text for _, text in links] == [
        f"{image['name']} {image['psnr']:.2f} dB" for image in expected[:5]
    ]
    assert [articles[ident] for ident, _ in links] == [image["name"] for image in expected[:5]]
    assert list(articles.values()) == [image["name"] for image in expected]


def test_each_view_shows_what_its_label_says(page: Path, work: Path) -> None:
    images = Elements(page.read_text("utf-8")).all("img")
    views = {own["alt"]: decoded(own["src"]) for own, _ in images}
    assert len(views) == len(images) == 4 * len(SIZES)
    for name in SIZES:
        hr = read_rgb(work / "set" / "HR" / f"{name}.png")
        true = {
            "bicubic": upscale(downscale(hr)),
            "HR": hr,
            "SR 23_LKDN": read_rgb(work / "out" / "23_LKDN" / "set" / f"{name}.png"),
        }
        if name == "wide":  # too large to be shown whole: where it is, the test of the window says
            assert views["wide, HR"].shape == (300, 1024, 3)
            continue
        distances = {
            (a, b): np.abs(views[f"{name}, {a}"] - true[b]).mean() for a in true for b in true
        }
        for label in true:
            assert min(true, key=lambda other: distances[label, other]) == label, distances
        error = np.abs(true["SR 23_LKDN"].astype(int) - hr).mean(2)
        # The map in levels again: inferno grows brighter all along.
        brightness = views[f"{name}, error of SR 23_LKDN"].sum(2)
        assert np.corrcoef(brightness.ravel(), error.clip(0, pictures.LEVELS).ravel())[0, 1] > 0.9


@pytest.mark.parametrize("budget", [200_000, 90_000, 1_000])
def test_the_size_is_bounded_and_the_worst_images_come_first(
    work: Path, page: Path, run: dict[str, Any], tmp_path: Path, monkeypatch: Any, budget: int
) -> None:
    monkeypatch.setattr(report, "PICTURE_BYTES", budget)
    monkeypatch.setattr(report, "SMALLEST_SHARE", 20_000)
    report.write(work / "out", tmp_path / "small.html", work)
    text = (tmp_path / "small.html").read_text("utf-8")
    articles = re.findall(r"<article .*?</article>", text, re.DOTALL)
    assert sum(len(article.encode()) for article in articles) <= budget
    ranks = [int(re.findall(r"id=set-1-(\d+)", article)[0]) for article in articles]
    assert ranks == list(range(len(ranks))) and len(ranks) <= budget // 20_000
    assert (len(ranks) == len(SIZES)) == (budget == 200_000)
    assert ("no room" in text) == (budget < 200_000)
    ids = {own.get("id") for _, own, _ in Elements(text).found}
    assert {own["href"][1:] for own, _ in Elements(text).all("a")} <= ids
    if budget == 90_000:
        crops = [
            decoded(own["src"]).shape
            for own, _ in Elements(text).all("img")
            if own["alt"].startswith("wide,")
        ]
        assert all(max(shape) < 1024 for shape in crops)


def test_a_set_of_two_runs_says_what_is_whose(run: dict[str, Any], tmp_path: Path) -> None:
    other = run | {"model": "23_LKDN@b", "lr_source": "files in LR"}
    lowest = min(run["images"], key=lambda image: image["psnr"])
    mine = run | {"images": [image for image in run["images"] if image is not lowest]}
    for own in (mine, other):
        write_json(tmp_path / f"{own['model']}.json", own)
    report.write(tmp_path, tmp_path / "page.html", tmp_path)
    elements = Elements((tmp_path / "page.html").read_text("utf-8"))
    said = [text for _, text in elements.all("p")]
    assert f"LR: {run['lr_source']}; files in LR." in said
    best = sorted(run["images"], key=lambda image: image["psnr"])[1:5]
    chips = [text for _, text in elements.all("li") if text.endswith(" dB")]
    assert chips == [f"{image['name']} {image['psnr']:.2f} dB" for image in best]


def test_the_page_is_the_same_but_for_the_time(page: Path, work: Path, tmp_path: Path) -> None:
    report.write(work / "out", tmp_path / "again.html", work)
    made = r"page made [-\d]+ [:\d]+ UTC"
    texts = [re.sub(made, "", path.read_text("utf-8")) for path in (page, tmp_path / "again.html")]
    assert texts[0] == texts[1]


def test_what_is_missing_is_said(copy: Path, work: Path, run: dict[str, Any]) -> None:
    def words(data_dir: Path) -> str:
        report.write(copy, copy / "page.html", data_dir)
        return " ".join((copy / "page.html").read_text("utf-8").split())

    run = json.loads(json.dumps(run))
    assert "the originals are not found any more" in words(copy)
    (copy / "23_LKDN" / "set" / "c.png").unlink()
    write_png(copy / "23_LKDN" / "set" / "d.png", photo(12, 12, 0))
    (copy / "23_LKDN" / "set" / "e.png").write_bytes(b"no image")
    for image in run["images"]:
        if image["name"] in ("d", "e"):
            image["png_sha256"] = sha256(copy / "23_LKDN" / "set" / f"{image['name']}.png")
    run["images"][5] |= {"psnr": None}  # equal to HR
    run["images"][6] |= {"psnr": None, "psnr_bicubic": None}  # no HR
    run["images"].append(run["images"][0] | {"name": "gone"})
    run["failed"] = [f"{EVIL}: expected <b>"]
    write_json(copy / "23_LKDN_set_cpu_eager_fp32.json", run)
    write_json(copy / "old.json", {"model": 1, "dataset": 2, "images": [3], "checkpoint": 4})
    (copy / "broken.json").write_text('{"model":')
    text = words(work)
    for said in (
        "c: no restored image of these runs is there",
        "d: what 23_LKDN restored is not of 4 times",
        "e: expected a whole image",
        "gone: the original is not found",
        "<td>infinite</td>",
        "<td>not measured</td>",
        "expected &lt;b&gt;",
        "1 run of",
    ):
        assert said in text, said
    shutil.rmtree(copy / "23_LKDN")
    text = words(work)
    assert text.count("no restored image of these runs is there") == 4 and "and 3 more" in text


def test_a_picture_of_another_run_is_not_shown(copy: Path, work: Path, run: dict[str, Any]) -> None:
    """A run that replaced it in the records may have written no images."""
    run = json.loads(json.dumps(run))
    for name in ("d", "e"):
        write_png(copy / "23_LKDN" / "set" / f"{name}.png", photo(*SIZES[name], 99))
    del next(image for image in run["images"] if image["name"] == "c")["png_sha256"]
    write_json(copy / "23_LKDN_set_cpu_eager_fp32.json", run)
    report.write(copy, copy / "page.html", work)
    text = (copy / "page.html").read_text("utf-8")
    shown = {own["alt"].split(",")[0] for own, _ in Elements(text).all("img")}
    assert {"wide", "f", "g"} < shown and not shown & {"c", "d", "e"}
    assert text.count("no restored image of these runs is there") == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["empty"], 2, "expected runs of test_demo.py in empty, found none"),
        (["no such folder"], 2, "found none"),
        (["out", "-o", "file/report.html"], 2, "got file/report.html: file is a file"),
        (["out", "-o", "empty"], 2, "expected a file to write, got a folder or device: empty"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    copy: Path, python: Callable, arguments: list[str], code: int, message: str
) -> None:
    (copy.parent / "empty").mkdir()
    (copy.parent / "file").touch()
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from utils.report import page; "
    done = python(copy.parent, "-c", f"{script}sys.exit(page.main(sys.argv[1:]))", *arguments)
    assert done.returncode == code
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not [path for path in copy.parent.rglob("*") if path.suffix == ".tmp"]
    assert not list(copy.parent.rglob("report.html"))
