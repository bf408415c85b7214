"""Records that anyone may have written: what is none is named, and their texts stay texts."""

import copy
import json
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest
from made_records import a_benchmark, a_run

from deploy.submission.factsheet import latex
from deploy.submission.team import TEAM, read_team
from utils import record
from utils.command import UserError
from utils.files import ROOT, read_json
from utils.record import PUBLISHED, RUN, read_runs
from utils.report import comparison, documents, page, published, summary
from utils.schema import NAME, misfit

EVIL = "\x1b[2J|<!-- end -->\n<script>alert(1)</script>`$x$\\[a](b)\ud800"
VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 10**18, 10**400, 1e-320, 1e300, float("nan"), float("inf")),
    *("", "..", "a/b", EVIL, [], [[]], {}, {"a": 1}, [1], [None], "1", 0.5),
]
PARTS = "".join(f"<!-- generated: {name} -->\n<!-- end -->\n" for name in documents.PARTS)


def a_training() -> dict[str, Any]:
    """The end of the shipped weights' record, and of their teacher's."""
    record = read_json(PUBLISHED / "23_LKDN_training.json")
    ends = {name: record[name][-2:] for name in ("stages", "commands", "validation")}
    for stage in ends["stages"]:
        if teacher := stage.get("teacher"):
            teacher["records"] = [{**last, "teacher": None} for last in teacher["records"][-1:]]
    return record | ends


# A record of each kind that is published, small.
SMALL = {
    "23_LKDN_training.json": a_training(),
    "trials/1.json": read_json(PUBLISHED / "trials" / "8-base.json"),
    "throughput/cpu.json": read_json(PUBLISHED / "throughput" / "cpu.json"),
    "agreement_cpu.json": read_json(PUBLISHED / "agreement_cpu.json"),
    "large_cpu.json": read_json(PUBLISHED / "large_cpu.json"),
    **{
        name: read_json(PUBLISHED / name) for name in ("modelled_3.9.0.json", "compiled_3.9.0.json")
    },
    "benchmark_cpu.json": a_benchmark(),
}


def mutant(content: Any, rng: random.Random) -> Any:
    """The same with up to three places changed, doubled or without what was there."""
    content = copy.deepcopy(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(places_in(content))
        holder, key = rng.choice(places)
        kind = rng.random()
        if kind < 0.2:
            del holder[key]
        elif kind < 0.3 and isinstance(holder, list):
            holder.append(holder[key])
        elif kind < 0.5 and isinstance(holder[key], str):
            holder[key] += EVIL
        else:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
        if not places:
            break
    return content


def places_in(content: Any) -> Any:
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        yield content, key
        if isinstance(value, dict | list):
            yield from places_in(value)


def run_of_baseline(run: dict[str, Any]) -> dict[str, Any]:
    return run | {"model": comparison.BASELINE_2023}


def put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture()
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.usefixtures("unsynced")
def test_mutated_runs_end_nothing(tmp_path: Path) -> None:
    rng, good, whole = random.Random(0), a_run("demo"), 0
    team = read_team(ROOT / TEAM)
    for i in range(300):
        folder = tmp_path / str(i)
        run = mutant(a_run() | {"plain": {"average": 2.0, "median": None}}, rng)
        put(folder / "mutant.json", run)
        whole += misfit(run, RUN) is None
        record.write_run(folder, good)
        runs = read_runs(folder)
        assert [r["dataset"] for r in runs].count("demo") >= 1
        page.write(folder, folder / "report.html", folder)
        shown = comparison.text(runs) + "".join(summary.text(r, "x") for r in runs)
        assert "\x1b" not in shown
        latex(team, "23_LKDN", "0" * 64, {}, [*runs, run_of_baseline(runs[0])])
        try:
            documents.publish([folder / "mutant.json"], folder)
        except UserError as error:
            assert "\n" not in str(error) and "\x1b" not in str(error)
    assert 20 < whole < 200  # of both kinds


@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize("name", SMALL)
def test_mutated_records_end_no_document(name: str, tmp_path: Path) -> None:
    rng = random.Random(1)
    for i in range(60):
        folder = tmp_path / str(i)
        put(folder / "results" / "published" / name, mutant(SMALL[name], rng))
        text = documents.fill_in(PARTS, folder)
        assert_marked(text)
        assert documents.fill_in(text, folder) == text
        training = published.read_training(folder / "results" / "published")
        latex(read_team(ROOT / TEAM), "23_LKDN", "0" * 64, training, [])
        if "benchmark" in name:
            put(folder / "benchmark.json", read_json(folder / "results" / "published" / name))
            try:
                documents.publish([folder / "benchmark.json"], folder)
            except UserError as error:
                assert "\n" not in str(error)


def assert_marked(text: str) -> None:
    """Whether only our own marks are there, and no more lines than they make."""
    marks = re.findall("<!-- .*? -->", text)
    assert marks == re.findall("<!-- .*? -->", PARTS)
    assert "\x1b" not in text and "<script" not in text


def test_what_is_no_run_is_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    named = {
        "list": b"[1]",
        "cut": b'{"model": "a"',
        "latin": b'{"model": "\xe9"}',
        "deep": b"[" * 100_000,
        "digits": b"1" * 5000,
        "other": json.dumps(a_run() | {"flops": "many"}).encode(),
    }
    for name, content in named.items():
        (tmp_path / f"{name}.json").write_bytes(content)
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.json").mkdir()
    put(tmp_path / "benchmark_cpu.json", a_benchmark())  # of another command: nothing to say
    for _ in range(2):
        record.write_run(tmp_path, a_run("demo"))
    assert list(read_json(tmp_path / "results.json")) == ["23_LKDN"]
    lines = [entry.getMessage() for entry in caplog.records]
    assert len(lines) == len(named) and all("\n" not in line for line in lines)
    assert all(sum(f"{name}.json" in line for line in lines) == 1 for name in named)
    assert any(
        line.endswith("expected a whole number of 0 to 999999999999999 for flops, got 'many'")
        for line in lines
    )


def test_names_that_are_not_utf_8_come_back_as_they_were(tmp_path: Path) -> None:
    run = a_run("photos \udcff")
    run["images"][0]["name"] = "\udce4 ö"
    record.write_run(tmp_path, run)
    assert read_runs(tmp_path) == [run]
    assert list(read_json(tmp_path / "results.json")) == ["23_LKDN"]
    assert r"photos \udcff PSNR" in (tmp_path / "results.txt").read_text("utf-8")


def test_publish_copies_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text(PARTS)
    good, empty = tmp_path / "any name.json", tmp_path / "empty.json"
    put(good, a_run("demo"))
    put(empty, a_run() | {"images": []})
    with pytest.raises(UserError, match="a run with images, got none in .*empty.json"):
        documents.publish([good, empty], tmp_path)
    with pytest.raises(UserError, match="leave one out"):
        documents.publish([good, good], tmp_path)
    put(empty, a_run())
    fsync, calls = os.fsync, []

    def fail_second(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_second)
    with pytest.raises(OSError, match="No space"):
        documents.publish([good, empty], tmp_path)
    folder = tmp_path / "results" / "published"
    assert not list(folder.iterdir()) and (tmp_path / "README.md").read_text() == PARTS
    monkeypatch.undo()
    documents.publish([good, empty], tmp_path)
    names = ["23_LKDN_Set5_cpu_eager_fp32.json", "23_LKDN_demo_cpu_eager_fp32.json"]
    assert sorted(path.name for path in folder.iterdir()) == names  # not what the files were called
    assert (folder / names[1]).read_bytes() == good.read_bytes()


@pytest.mark.parametrize(
    ("value", "kind", "problem"),
    [
        ({"a": [1, "x"]}, {"a": [int]}, "expected a whole number for a[1], got 'x'"),
        ({"a": True}, {"a": int}, "expected a whole number for a, got True"),
        ({"a": float("nan")}, {"a": (float, None)}, "expected a number for a, got nan"),
        ({}, {"a": {}}, "expected a, got none"),
        ({"b": {"c": 1}}, {"b": {"*": str}}, "expected a text for b.c, got 1"),
        ([], [int, ...], "expected a list, got []"),
        ([1], [int, str], "expected a list, got [1]"),
        ("a/b", NAME, "expected a name, got 'a/b'"),
        ("\x1b" * 99, None, "expected nothing, got '" + r"\x1b" * 14 + r"\x1…"),
        ({"b": None}, {"a?": int, "b": (float, None)}, None),
        ([1, "x"], [int, str], None),
    ],
)
def test_a_misfit_is_named(value: Any, kind: Any, problem: str | None) -> None:
    assert misfit(value, kind) == problem
