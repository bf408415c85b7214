"""Records of training: trials and the speed of training, and the tables made of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from deploy.gpu_check import parts
from train import throughput, trial
from utils.command import UserError
from utils.files import read_json
from utils.imaging.images import read_rgb
from utils.record import ENTRY, PUBLISHED
from utils.report import curves, documents
from utils.report.training_tables import curve, shipped
from utils.weights import CheckpointError

Run = Callable[..., CompletedProcess[str]]
TRIALS = "<!-- generated: trials -->\n<!-- end -->"
SPEED = "<!-- generated: throughput -->\n<!-- end -->"


def publish(root: Path, kind: str, name: str, content: object) -> None:
    folder = root / "results" / "published" / kind
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(content))


def test_trials_are_drawn_over_all_pixels_that_they_have_seen(tmp_path: Path) -> None:
    stage = {"name": "stage1", "steps": 9, "batch": 6, "patch": 64}
    scores = [
        {"step": step, "val_psnr": 27.0, "val_psnr_y": y} for step, y in ((5, 28.5), (10, 29.0))
    ]
    record = {"trial": "a", "stage": stage, "validation": scores, "command": "train.py --stage 1"}
    record |= {"note": "", "step": 9, "seed": 0, "data": "", "history": []}
    record |= {"minutes": 1.0, "failed": None}
    assert curves.curve(record) == [(5 * 6 * 256 / 1e6, 28.5), (10 * 6 * 256 / 1e6, 29.0)]
    assert curves.begins_at_random(record)
    assert not curves.begins_at_random(record | {"command": "train.py --init RUN/stage1.pt"})
    publish(tmp_path, "trials", "1-a", record)
    trial.draw(tmp_path / "results" / "published")
    height, width, _ = read_rgb(tmp_path / "results" / "published" / "trials.png").shape
    assert height > 400 < width


def test_a_score_of_equal_images_is_no_number_and_loses_no_record(
    uninterrupted: Path, tmp_path: Path
) -> None:
    """A set of a black image is restored as it is: its PSNR is infinite, which JSON has not."""
    unknown = {"val_psnr": None, "val_psnr_y": None}
    record = trial.trial(uninterrupted, "black", "")
    known = curves.curve(record)
    record["validation"][-1] |= unknown | {"others": {"val_structure": unknown}}
    publish(tmp_path, "trials", "black", record)
    assert "| not measured at 12 on held out | not measured |" in documents.fill_in(
        TRIALS, tmp_path
    )
    assert curves.curve(record) == known[:-1]
    training = read_json(PUBLISHED / f"{ENTRY}_training.json")
    training["validation"][-1] |= unknown
    publish(tmp_path, "", f"{ENTRY}_training", training)
    for table in ("training", "validation"):
        text = documents.fill_in(f"<!-- generated: {table} -->\n<!-- end -->", tmp_path)
        assert "not measured" in text and "not trained yet" not in text
    assert curve(training).keys() == curve(read_json(PUBLISHED / f"{ENTRY}_training.json")).keys()


def test_a_trial_says_what_its_run_was_and_scored(uninterrupted: Path, tmp_path: Path) -> None:
    record = trial.trial(uninterrupted, "small", "as expected")
    assert record["command"] == (
        "python train/train.py --stage 1 --data DIR --val VAL --out RUN --steps 12 --batch 2 "
        "--patch 32 --lr 0.01 --optimizer muon --schedule cosine --warmup 2 --ema 0.9 --seed 4"
    )
    assert (record["step"], record["seed"], record["failed"]) == (12, 4, None)
    assert [line["step"] for line in record["validation"]] == [4, 8, 12]
    assert record["data_summary"]["images"] == 4 and "sha256" not in record["data_summary"]
    assert record["minutes"] == sum(work["minutes"] for work in record["history"]) > 0

    publish(tmp_path, "trials", "small", record)
    table = documents.fill_in(TRIALS, tmp_path)
    score = f"{record['validation'][-1]['val_psnr_y']:.3f} at 12"
    assert "| small | 12 of 12 | 0 | 4 | 0 | " in table and score in table
    assert "small: python train/train.py --stage 1" in table
    with pytest.raises(CheckpointError):
        trial.trial(tmp_path, "none", "")


def test_notes_and_commands_of_trials_are_shown_as_they_are(
    uninterrupted: Path, tmp_path: Path
) -> None:
    record = trial.trial(uninterrupted, "a", "batch*2, rate*2 | ~3 & [4]")
    record["command"] = "train.py --data '/a [b]*' # 1 < 2 <!-- end -->"
    publish(tmp_path, "trials", "a", record)
    *_, row, empty, command, end = documents.fill_in(TRIALS, tmp_path).splitlines()
    shown = "batch&#42;2, rate&#42;2 &#124; &#126;3 &#38; &#91;4]"
    assert row.endswith(f"| {shown} |") and (empty, end) == ("", "<!-- end -->")
    assert command == "    a: train.py --data '/a [b]*' # 1 &#60; 2 &#60;!-- end -->"


def test_a_trial_has_no_paths_of_this_machine(uninterrupted: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    note = read_json(run / "stage1_data.json")
    note["skipped"] = ["/home/me/b.png: no image"] * 2
    (run / "stage1_data.json").write_text(json.dumps(note))
    assert trial.trial(run, "a", "")["data_summary"]["skipped"] == 2


def test_a_trial_has_no_scores_of_steps_after_its_checkpoint(
    uninterrupted: Path, tmp_path: Path
) -> None:
    """A killed run's log may be ahead of it."""
    shutil.copytree(uninterrupted, run := tmp_path / "run")
    known = trial.trial(run, "known", "")
    with (run / "log.jsonl").open("a") as file:
        file.write('{"stage": "stage1", "step": 13, "val_psnr": 50.0, "val_psnr_y": 51.0}\n')
    assert trial.trial(run, "known", "") == known and known["validation"]


def test_a_trial_has_the_scores_of_one_set(uninterrupted: Path, tmp_path: Path, train: Run) -> None:
    """Of the one that decided last: a finished run is scored on it, once."""
    shutil.copytree(uninterrupted, run := tmp_path / "run")
    before = trial.trial(run, "known", "")["validation"]
    assert [(x["val"], x["step"]) for x in before] == [("held out", n) for n in (4, 8, 12)]
    for sets in (("images", "held out"), ("images", "held out"), ("images",)):
        done = train(run, "--resume", "--val", *sets)
        assert done.returncode == 0, done.stderr
        if sets[1:] and len(before) == 3:
            assert "was scored on held out, from here on it is on images" in done.stderr
            before = before[-1:]
        (score,) = trial.trial(run, "known", "")["validation"]
        assert (score["val"], score["step"], list(score["others"])) == ("images", 12, ["held out"])
        assert score["others"]["held out"]["val_psnr_y"] == before[0]["val_psnr_y"]
    logged = (run / "log.jsonl").read_text()
    assert logged.count('"val": "images"') == 1


def test_a_trial_replaces_that_of_its_own_run_alone(
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(trial, "TRIALS", tmp_path)
    monkeypatch.setattr(documents, "regenerate", lambda: None)
    monkeypatch.setattr(trial, "draw", lambda: None)
    file = tmp_path / "a.json"
    for note in ("first", "second"):
        assert trial.main([str(uninterrupted), "a", "--note", note]) == 0
        assert json.loads(file.read_text())["note"] == note
    assert trial.main([str(uninterrupted), "a"]) == 0  # without --note it stays
    assert json.loads(file.read_text())["note"] == "second"
    others = json.loads(file.read_text()) | {"seed": 5}
    for content in (json.dumps(others), '{"history": []}', "no JSON"):
        file.write_text(content)
        assert trial.main([str(uninterrupted), "a"]) == 2
        assert "got a, which is another run's: give another NAME" in capsys.readouterr().err
        assert file.read_text() == content


def test_a_diverged_run_is_a_trial_until_it_goes_on(
    uninterrupted: Path, tmp_path: Path, train: Run
) -> None:
    run = tmp_path / "diverged"
    shutil.copytree(uninterrupted, run)
    with (run / "log.jsonl").open("a") as file:
        file.write('{"stage": "stage1", "step": 13, "failed": "expected a finite loss"}\n')
    record = trial.trial(run, "high", "too high")
    assert record["failed"] == "expected a finite loss"
    publish(tmp_path, "trials", "high", record)
    assert "diverged; too high" in documents.fill_in(TRIALS, tmp_path)
    assert train(run, "--resume").returncode == 0
    assert trial.trial(run, "high", "")["failed"] is None


def test_throughput_records_speed_and_failures(
    place: Path, root: Path, python: Run, tmp_path: Path
) -> None:
    def measure(name: str, patch: int, *rows: int | str) -> tuple[int, dict]:
        file = tmp_path / f"{name}.json"
        options = f"--data images --packed packed --batch 2 --patch {patch} --steps 10 --device cpu"
        script = root / "train/throughput.py"
        done = python(place, script, *options.split(), "-o", file, "--rows", *rows)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, json.loads(file.read_text())

    assert measure("a", 32, "+ denormals flushed, freed memory kept")[0] == 0
    code, measured = measure("a", 32, 1)  # in several calls, and in the table's order
    assert code == 0
    first, second = measured["rungs"]
    assert first["options"] == ["--no-channels_last", "--no-tuned_cpu"]
    assert second["options"] == []
    for row in (first, second):
        assert 0 < row["steps_per_s_p20"] <= row["steps_per_s"] <= row["steps_per_s_p80"]
        assert row["patches_per_s"] == pytest.approx(2 * row["steps_per_s"])
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)  # the same steps
    publish(tmp_path, "throughput", "cpu", measured)
    table = documents.fill_in(SPEED, tmp_path)
    assert "2 patches of 32x32 HR" in table and "| + branches folded at each step | " in table

    code, measured = measure("b", 1024, 0)
    assert code == 1
    assert "--patch" in measured["rungs"][0]["failed"]
    publish(tmp_path, "throughput", "cpu", measured)
    assert "failed: expected images of at least 1024" in documents.fill_in(SPEED, tmp_path)


def test_a_round_that_fails_late_costs_no_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = [{"speeds": [2.0, 4.0], "loss": 0.5}, {"failed": "not done after 10 minutes"}]
    monkeypatch.setattr(throughput, "measure", lambda options, args: dict(results.pop(0)))
    file = tmp_path / "a.json"
    options = ["--data", tmp_path, "-o", file, "--rounds", 2, "--rows", 0, "--device", "cpu"]
    assert throughput.measure_all(throughput.parse([*map(str, options)])) == 1
    (row,) = json.loads(file.read_text())["rungs"]
    assert row["steps_per_s"] == 3 and "failed" not in row and not results

    def measure(row: int, data: Path, result: dict) -> int:
        results.extend([result] * 2)
        options = ["--data", data, "-o", file, "--rounds", 2, "--rows", row, "--device", "cpu"]
        return throughput.measure_all(throughput.parse([*map(str, options)]))

    assert measure(0, tmp_path, {"failed": "no memory"}) == 1  # nor one of a call before
    assert json.loads(file.read_text())["rungs"] == [row]
    assert measure(1, tmp_path, {"failed": "no memory"}) == 1
    assert measure(0, tmp_path, {"speeds": [5.0], "loss": 0.5}) == 0  # whatever others did
    with pytest.raises(UserError, match="got none: .*imagse"):
        measure(1, tmp_path / "imagse", {})


def test_what_has_nothing_to_be_compared_with_is_not_equal_to_it(tmp_path: Path) -> None:
    record = read_json(PUBLISHED / "agreement_cpu.json")
    record["runs"][0] = {"name": "torch fp32", "options": [], "failed": "no memory"}
    (tmp_path / "results" / "published").mkdir(parents=True)
    (tmp_path / "results" / "published" / "agreement_cpu.json").write_text(json.dumps(record))
    text = documents.fill_in("<!-- generated: agreement -->\n<!-- end -->", tmp_path)
    assert text.count("| not measured |") == 2 and " %" not in text


def test_scores_of_other_images_are_marked(uninterrupted: Path, tmp_path: Path) -> None:
    record = trial.trial(uninterrupted, "a", "")
    for name, shown in (("val", "at 12 |"), ("Set5", "at 12 on Set5 |")):
        record["validation"][-1]["val"] = name
        publish(tmp_path, "trials", "a", record)
        assert shown in documents.fill_in(TRIALS, tmp_path)
        assert len(curves.curve(record)) == (name == "val")  # the others are on "held out"


def test_scores_of_an_earlier_stage_or_step_are_not_those_of_shipped_weights() -> None:
    training = read_json(PUBLISHED / f"{ENTRY}_training.json")
    last, step = training["validation"][-1], training["stages"][-1]["step"]
    assert last["step"] == step
    shown = "Validation images{}: 29.000 dB on RGB"
    for change, expected in (
        ({"val": "val"}, shown.format(" of val")),
        ({"val": "val", "step": 7}, shown.format(" of val at step 7")),
        ({"stage": "stage1"}, None),
    ):
        training["validation"] = [last | {"val_psnr": 29.0} | change]
        text = shipped(training)
        assert (expected in text) if expected else ("Validation images" not in text)


def test_rows_of_throughput_go_by_number_or_name() -> None:
    names = list(throughput.ROWS["cuda"])
    assert set(parts.TRAINING_ROWS) <= set(names)
    assert [throughput.row_of(asked, names) for asked in ("0", "7", "+ bf16")] == [
        *(names[0], "+ CUDA graphs", "+ bf16")
    ]
    for wrong in (str(len(names)), "-1", "+ bf17", ""):
        with pytest.raises(UserError, match=r"of 0 \(branches run as they are, NCHW\), 1 "):
            throughput.row_of(wrong, names)


def test_throughput_takes_no_rows_from_a_file_of_something_else_nor_no_rounds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "other.json").write_text("[1]")
    assert throughput.earlier_rows(tmp_path / "other.json", {"environment": {}}) == []
    assert "no record of train/throughput.py" in caplog.text
    with pytest.raises(SystemExit):
        throughput.parse(["--data", "d", "-o", "o.json", "--rounds", "0"])
