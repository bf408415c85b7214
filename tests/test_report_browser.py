"""The page of many runs in a browser: what can be read, and how two pictures are compared."""

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from utils.bicubic import downscale, upscale
from utils.files import sha256, write_json
from utils.imaging.images import write_png
from utils.record import ENTRY, PUBLISHED, read_runs, run_stem
from utils.report import page as report

MODELS = (ENTRY, f"{ENTRY}@a_checkpoint-of_a_long_name")
SIZES = {"small": (40, 52), "wide": (300, 1200)}
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, noise: Callable) -> Path:
    """The page of all published runs, and of two models on sets with and without pictures."""
    folder = tmp_path_factory.mktemp("report")
    for file in PUBLISHED.glob("*.json"):
        shutil.copy(file, folder)
    run = next(run for run in read_runs(PUBLISHED) if run["model"] == ENTRY)
    for i, model in enumerate(MODELS):
        run["model"] = model
        run["environment"] |= {"device": "NVIDIA GeForce RTX 4090 Laptop GPU", "driver": f"550.{i}"}
        images = []
        for name, size in SIZES.items():
            hr = noise(*size)
            sr_file = folder / model / "set" / f"{name}.png"
            write_png(folder / "set" / "HR" / f"{name}.png", hr)
            write_png(sr_file, upscale(downscale(hr)) + np.uint8(i))
            own = {"name": name, "size": size, "png_sha256": sha256(sr_file)}
            images.append(run["images"][0] | own)
        for dataset in ("DIV2K_test", "DIV2K_valid", "set"):
            whole = run | {"dataset": dataset, "images": images}
            write_json(folder / f"{run_stem(whole)}.json", whole)
    report.write(folder, folder / "page.html", folder)
    return folder / "page.html"


class Browser:
    """Chromium by the WebDriver protocol."""

    def __init__(self, port: int) -> None:
        self.base = f"http://127.0.0.1:{port}"
        self.open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def call(self, path: str, content: Any = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.base + path, data)
        with self.open(request, timeout=60) as response:
            return json.load(response)["value"]

    def start(self, profile: Path) -> None:
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={profile}",
        ]
        capabilities = {
            "goog:chromeOptions": {"args": options, "binary": CHROMIUM},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        session = self.call("/session", {"capabilities": {"alwaysMatch": capabilities}})
        self.base += f"/session/{session['sessionId']}"

    def run(self, script: str) -> Any:
        return self.call("/execute/sync", {"script": script, "args": []})

    def window(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call(
            "/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": size}
        )

    def colours(self, scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call(
            "/goog/cdp/execute",
            {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}},
        )

    def act(self, kind: str, *actions: dict[str, Any]) -> None:
        self.call("/actions", {"actions": [{"type": kind, "id": kind, "actions": actions}]})


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not CHROMIUM or not DRIVER:
        pytest.skip("needs chromium and chromedriver, which are not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    profile = tmp_path_factory.mktemp("profile")
    with subprocess.Popen(
        [DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            browser = Browser(port)
            for _ in range(200):
                try:
                    browser.call("/status")
                    break
                except OSError:
                    time.sleep(0.05)
            browser.start(profile)
            yield browser
            request = urllib.request.Request(browser.base, method="DELETE")
            browser.open(request, timeout=60).close()
        finally:
            process.terminate()


@pytest.fixture
def opened(browser: Browser, page: Path) -> Browser:
    """The page, with `at()`: where the first divider is, in parts of the picture in sight."""
    browser.window(1100, 800)
    browser.call("/url", {"url": page.as_uri()})
    browser.run("""
        const picture = document.querySelector("article.picture");
        window.get = (what) => picture.querySelector(what);
        window.set = (what, value, event) => {
          get(what).value = value;
          get(what).dispatchEvent(new Event(event, {bubbles: true}));
        };
        window.at = () => {
          const line = get(".divider").getBoundingClientRect();
          const frame = get(".stage").getBoundingClientRect(), all =
            get(".layers").getBoundingClientRect();
          const from = Math.max(frame.left, all.left), to = Math.min(frame.right, all.right);
          return ((line.left + line.right) / 2 - from) / (to - from);
        };
        picture.scrollIntoView();
    """)
    return browser


def test_it_opens_from_disk_without_errors_and_every_picture_decodes(opened: Browser) -> None:
    widths = opened.run("""
        return Promise.all([...document.images].map(
          (image) => image.decode().then(() => image.naturalWidth, () => 0)))
    """)
    assert len(widths) == 6 * len(SIZES) and all(widths)
    assert opened.call("/se/log", {"type": "browser"}) == []
    assert opened.run("return document.title") == "LKDN report"
    loaded = opened.run("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert not [name for name in loaded if not name.startswith("data:")]
    assert (
        opened.run(
            "return [...document.querySelectorAll('input, select')].filter((control) =>"
            "!control.labels.length && !control.ariaLabel).length"
        )
        == 0
    )
    assert opened.run("return document.querySelectorAll('svg.chart circle').length") >= len(SIZES)


def test_keyboard_mouse_and_events_move_the_divider(opened: Browser) -> None:
    assert opened.run("return at()") == pytest.approx(0.5, abs=0.01)
    opened.run("get('input').focus()")
    for _ in range(3):
        opened.act(
            "key", {"type": "keyDown", "value": "\ue014"}, {"type": "keyUp", "value": "\ue014"}
        )
    assert opened.run("return get('input').value") == "53"
    assert opened.run("return at()") == pytest.approx(0.53, abs=0.01)
    assert opened.run("return get('input').getAttribute('aria-valuetext')").startswith("53 %")
    opened.run("set('input', 20, 'input')")
    assert opened.run("return at()") == pytest.approx(0.2, abs=0.01)
    box = opened.run("return get('.layers').getBoundingClientRect().toJSON()")
    x, y = (int(box["left"] + share * box["width"]) for share in (0.3, 0.8))
    move = {"type": "pointerMove", "duration": 0, "y": int(box["top"] + box["height"] / 2)}
    opened.act(
        "pointer",
        {**move, "x": x},
        {"type": "pointerDown", "button": 0},
        {**move, "x": y},
        {"type": "pointerUp", "button": 0},
    )
    assert opened.run("return at()") == pytest.approx(0.8, abs=0.02)


def test_two_views_are_chosen_and_enlarged_to_pixels(opened: Browser) -> None:
    shown = (
        "return [...get('.layers').querySelectorAll('img')].filter((image) => !image.hidden)"
        ".map((image) => [image.dataset.view, image.classList.contains('over')])"
    )
    assert opened.run(shown) == [["bicubic", False], ["SR 23_LKDN", True]]
    opened.run("set('.left', 3, 'change')")
    assert opened.run(shown) == [["SR 23_LKDN", True], ["HR", False]]
    opened.run("set('.right', 3, 'change')")
    assert opened.run(shown) == [["HR", False]]
    opened.run("set('.right', 0, 'change'); set('.zoom', 16, 'change')")
    assert opened.run(shown) == [["bicubic", True], ["HR", False]]
    width, natural, rendering = opened.run("""
        const image = get(".layers img");
        return [image.clientWidth, image.naturalWidth, getComputedStyle(image).imageRendering]
    """)
    assert (width, rendering) == (16 * natural, "pixelated")
    opened.window(390, 844)  # the smallest picture is wider than this when enlarged
    opened.run("set('input', 30, 'input'); get('.stage').scrollLeft = 37")
    # The scroll event comes with the next frame.
    at = opened.run(
        "return new Promise((done) => requestAnimationFrame(() => "
        "requestAnimationFrame(() => done(at()))))"
    )
    assert at == pytest.approx(0.3, abs=0.03)


def test_a_phone_has_nothing_to_scroll_sideways(opened: Browser) -> None:
    opened.window(390, 844)
    assert opened.run("return innerWidth") == 390
    wide = opened.run("""
        return [...document.querySelectorAll("body *")].filter((element) => {
          const box = element.getBoundingClientRect();
          return box.right > 390.5 && !element.closest(".scroll, .stage");
        }).map((element) => element.outerHTML.slice(0, 80))
    """)
    assert wide == []
    assert opened.run("return document.documentElement.scrollWidth") <= 390
    assert opened.run("return get('.stage').clientWidth") >= 300
    opened.run("set('input', 75, 'input')")
    assert opened.run("return at()") == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_every_figure_is_in_sight_and_stands_out(opened: Browser, width: int, scheme: str) -> None:
    opened.window(width, 900)
    opened.colours(scheme)
    assert opened.run("return matchMedia('(prefers-color-scheme: dark)').matches") == (
        scheme == "dark"
    )
    cut = opened.run("""
        const shown = (cell) => cell.getClientRects().length;
        const cells = [...document.querySelectorAll("th, td, .facts span, .legend li, .chips li")];
        const cut = (cell) => {
          if (cell.scrollWidth > cell.clientWidth) return true;
          const {left, right} = cell.getBoundingClientRect();
          for (let box = cell.parentElement; box; box = box.parentElement) {
            if (box.scrollWidth > box.clientWidth && box.clientWidth) return true;
            const frame = box.getBoundingClientRect();
            if (left < frame.left - 0.5 || right > frame.right + 0.5) return true;
          }
        };
        return cells.filter(shown).filter(cut).map((cell) => cell.textContent);
    """)
    assert cut == []
    labels = opened.run("""
        return [...document.querySelectorAll("td")].map((cell) => {
          const {content} = getComputedStyle(cell, "::before");
          const head = cell.closest("table").querySelectorAll("thead th")[cell.cellIndex];
          return [head.getClientRects().length, content != "none" && content.length > 2];
        });
    """)
    assert labels and all(bool(head) != label for head, label in labels)
    assert any(label for _, label in labels) == (width == 400)
    faint = opened.run("""
        const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
        const light = (colour) => numbers(colour).slice(0, 3).reduce((sum, level, i) => {
          const share = level / 255;
          const linear = share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
          return sum + linear * [0.2126, 0.7152, 0.0722][i];
        }, 0.05);
        const behind = (element) => {
          const colour = getComputedStyle(element).backgroundColor;
          return numbers(colour)[3] === 0 ? behind(element.parentElement) : colour;
        };
        return [...document.querySelectorAll("h1, h2, h3, p, a, b, th, td, li, span, figcaption")]
          .map((element) => {
            const pair = [getComputedStyle(element).color, behind(element)].map(light);
            return [Math.max(...pair) / Math.min(...pair), element.textContent];
          }).filter(([contrast]) => contrast < 4.5);
    """)
    assert faint == []  # the least contrast that WCAG 2 asks for


def test_sets_stand_in_the_order_of_the_challenge(opened: Browser) -> None:
    names = opened.run("return [...document.querySelectorAll('nav a')].map((a) => a.textContent)")
    expected = ["Runs", "DIV2K_valid", "DIV2K_test", "Set5", "set", "Speed, cpu", "Training"]
    assert [name for name in names if name in expected] == expected
