"""Records of runs, damaged in bytes or values, beside good ones, and what reads folders of them."""

import functools
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tests.fuzz.damage import Rng, damaged, pick, restructured
from tests.fuzz.kinds import Kind, Refused, Unfit, check_text
from utils import record
from utils.command import UserError
from utils.record import PUBLISHED
from utils.report import comparison, documents, groups, page, summary

GOOD = ("00_RFDN_demo_cpu_eager_fp32.json", "23_LKDN_demo_cpu_eager_fp32.json")
SET5 = ("23_LKDN_Set5_cpu_native_fp32.json", "23_LKDN@LKDN-S_x4_fused_Set5_cpu_eager_fp32.json")
BENCHMARKS = ("benchmark_cpu.json", "large_cpu.json")
# Made of runs, and nothing else that a damaged one could be among.
PARTS = ("output", "scores", "quality", "efficiency", "costs", "costs_in_words", "benchmark")
DOCUMENT = "\n\n".join(
    f"<!-- generated: {part} -->\n<!-- end -->" for part in (*PARTS, "large", "speed")
)


@functools.cache
def seeds() -> list[tuple[str, bytes]]:
    """Published runs of test_demo.py and of the benchmarks, by name."""
    return [(name, (PUBLISHED / name).read_bytes()) for name in (*GOOD, *SET5, *BENCHMARKS)]


def make(rng: Rng, folder: Path) -> Path:
    """A damaged record: its bytes, or more often a value in it."""
    name, data = pick(rng, seeds())
    path = folder / f"{Path(name).stem}_damaged.json"
    if rng.random() < 0.25:
        path.write_bytes(damaged(data, rng))
    elif rng.random() < 0.1:
        depth = int(rng.choice([100, 100_000]))
        nested = pick(rng, [(b"[", b"]"), (b'{"a":', b"}")])
        path.write_bytes(nested[0] * depth + b"1" + nested[1] * depth)
    else:
        changed = restructured(json.loads(data), rng)
        path.write_text(json.dumps(changed), encoding="utf-8")  # with NaN, which readers take
    return path


def attack(path: Path) -> None:
    """The report and the results of a folder with it, then the documents where it is published."""
    with tempfile.TemporaryDirectory(dir=path.parent.parent) as folder:
        save_dir, root = Path(folder, "results"), Path(folder, "root")
        save_dir.mkdir()
        for name in GOOD:
            shutil.copy(PUBLISHED / name, save_dir)
        good = record.read_runs(save_dir)
        shutil.copy(path, save_dir / path.name)
        runs = record.read_runs(save_dir)
        if len(runs) < len(good):
            raise Unfit("a good run was left out")
        printed(runs)
        record.write_run(save_dir, good[0])
        json.loads((save_dir / "results.json").read_text(encoding="utf-8"), parse_constant=_none)
        if groups.read(save_dir):
            page.write(save_dir, save_dir / "report.html", Path(folder, "no data"))
            check_page((save_dir / "report.html").read_text(encoding="utf-8"))
        shutil.rmtree(save_dir)
        published(path, root)
        if len(runs) == len(good) and not path.name.startswith(("benchmark", "large")):
            raise Refused("left out")


def _none(constant: str) -> None:
    raise Unfit(f"{constant} in results.json")


def printed(runs: list[dict[str, Any]]) -> None:
    """What test_demo.py prints of runs."""
    for text in (*(summary.text(run, "results/run.json") for run in runs), comparison.text(runs)):
        if text:
            check_text(text, lines=True, most=200_000)


def published(path: Path, root: Path) -> None:
    """documents --publish, of the record after good runs; raises UserError where it is refused."""
    target = root / "results" / "published"
    target.mkdir(parents=True)
    for name in (*GOOD, *SET5, *BENCHMARKS, f"{record.ENTRY}_training.json"):
        shutil.copy(PUBLISHED / name, target)
    document = root / "README.md"
    document.write_text(f"Before.\n\n{DOCUMENT}\n\nAfter.\n", encoding="utf-8")
    try:
        documents.publish([path], root)
    except UserError:
        documents.regenerate(root)  # which what was refused does not change
        raise
    finally:
        text = document.read_text(encoding="utf-8")
        check_document(text)


def check_document(text: str) -> None:
    """Tables whose rows have as many cells as their header, and nothing after the parts' ends."""
    if not (text.startswith("Before.\n") and text.endswith("\nAfter.\n")):
        raise Unfit("a document that lost its own text")
    if text.count("<!-- generated: ") != DOCUMENT.count("<!-- generated: "):
        raise Unfit("a document with other generated parts")
    for table in tables(text):
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
        if len(cells) > 1:
            raise Unfit(f"a table with rows of {sorted(cells)} lines: {table[0][:80]}")
    if bad := re.search(r"<(script|img|iframe)|\x1b|\]\(javascript:", text):
        raise Unfit(f"a document with {bad[0]!r}")


def tables(text: str) -> Iterator[list[str]]:
    """The lines of each table in Markdown."""
    table: list[str] = []
    for line in [*text.split("\n"), ""]:
        if line.startswith("|"):
            table.append(line)
        elif table:
            yield table
            table = []


class _Tags(HTMLParser):
    """Counts scripts and looks for what loads or runs by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts, self.bad = 0, ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        for name, value in attrs:
            if name.startswith("on") or (value or "").strip().lower().startswith("javascript:"):
                self.bad = f"{tag} {name}={value}"


@functools.cache
def scripts() -> int:
    """How many the page's own frame has."""
    tags = _Tags()
    tags.feed(Path(page.__file__).with_suffix(".html").read_text(encoding="utf-8"))
    return tags.scripts


def check_page(html: str) -> None:
    """No script but the page's own, and no text of the record that became an element."""
    tags = _Tags()
    tags.feed(html)
    if tags.bad or tags.scripts != scripts():
        raise Unfit(f"a page with {tags.scripts} scripts, {tags.bad[:200]}")


KIND = Kind("runs", make, attack, (UserError,))
