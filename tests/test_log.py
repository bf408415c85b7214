"""The log of a run: what a cut or damaged line does to it, and what a resumed run writes again."""

import json
from pathlib import Path

import pytest

from train import log


def test_damaged_lines_of_a_log_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log.jsonl"
    bad = ['{"stage": "stage1", "st', "", "\0" * 40, "[1]", "3", "[" * 100_000]
    bad += ['{"stage": "stage1"}', '{"stage": "stage1", "step": "2"}', '{"stage": 1, "step": 2}']
    bad += ['{"stage": "stage1", "step": 2, "loss": "0.5"}']
    good = [{"stage": "stage1", "step": step, "loss": 0.5} for step in (1, 2)]
    content = [json.dumps(good[0]), *bad, json.dumps(good[1]), ""]
    path.write_bytes("\n".join(content).encode() + b"\xff\n")
    assert log.read(path) == good and f"{len(bad) + 1} of" in caplog.text
    log.trim(path, "stage1", 2)
    caplog.clear()
    assert log.read(path) == good and not caplog.text
    log.plot(path, tmp_path / "curves.png")


def test_log_drops_a_cut_line_and_what_a_resumed_run_writes_again(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for stage, step in (("stage1", 1), ("stage1", 2), ("stage2", 1), ("stage2", 2)):
        log.append(path, {"stage": stage, "step": step, "loss": 0.5})
    with path.open("a") as file:
        file.write('{"stage": "stage2", "step": 3, "lo')
    assert [(x["stage"], x["step"]) for x in log.read(path)][-1] == ("stage2", 2)
    log.trim(path, "stage2", 1)
    log.append(path, {"stage": "stage2", "step": 2, "loss": 0.25})
    steps = [(x["stage"], x["step"], x["loss"]) for x in log.read(path)]
    assert steps == [
        ("stage1", 1, 0.5),
        ("stage1", 2, 0.5),
        ("stage2", 1, 0.5),
        ("stage2", 2, 0.25),
    ]
    with pytest.raises(ValueError):  # NaN is no JSON
        log.append(path, {"stage": "stage2", "step": 3, "loss": float("nan")})


def test_a_resumed_run_drops_that_it_failed_where_it_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    failed = {"failed": "diverged", "loss": 0.5}
    for stage, step, more in (("stage1", 4, failed), ("stage2", 2, {"loss": 0.25})):
        log.append(path, {"stage": stage, "step": step, **more})
    for step in (2, 3):
        log.append(path, {"stage": "stage2", "step": step, **failed})
    log.trim(path, "stage2", 2)
    kept = [(x["stage"], x["step"], "failed" in x) for x in log.read(path)]
    assert kept == [("stage1", 4, True), ("stage2", 2, False)]
