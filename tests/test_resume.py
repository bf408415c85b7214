"""A run that is killed, stopped or out of time, and resumed, ends as if nothing had happened."""

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import native_library
from train.records import training_records
from train.state_check import MOST_RECORDS, check_state
from utils.weights import read_checkpoint

Train = Callable[..., CompletedProcess[str]]
Logged = Callable[[Path], list[dict[str, Any]]]
Accident = Callable[[str, int], list[object]]

# Runs train.py and lets something happen to it at the given call of one of its functions: what
# a kill from outside does at a moment that cannot be chosen, at moments that can.
ACCIDENT = """
import json, os, runpy, signal, sys, threading, time
root, moment, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
sys.argv = [root + "/train/train.py", *sys.argv[4:]]
sys.path.insert(0, root)
import train.log, train.loop, train.updates

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def cut_line(path, line):
    with open(path, "a") as file:
        file.write(json.dumps(line)[:25])
    kill()

def interrupt(*_):
    os.kill(os.getpid(), signal.SIGINT)

def interrupt_twice(*_):
    interrupt()
    interrupt()

def terminate(*_):
    os.kill(os.getpid(), signal.SIGTERM)

def hang_up(*_):
    os.kill(os.getpid(), signal.SIGHUP)

def pass_time(*_):
    clock = time.monotonic
    time.monotonic = lambda: clock() + 3600

def at_call(module, name, happens, concerned=lambda *_: True):
    original, calls = getattr(module, name), 0
    def call(*arguments, **options):
        nonlocal calls
        calls += concerned(*arguments)
        if calls == count and concerned(*arguments):
            happens(*arguments)
        return original(*arguments, **options)
    setattr(module, name, call)

if moment == "hung up under nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
if moment == "killed while it scores":
    at_call(train.loop.evaluate, "validate", kill)
elif moment == "killed before the rename of a checkpoint":
    at_call(os, "replace", kill, lambda source, target: str(target).endswith(".pt"))
elif moment == "killed at some millisecond":
    delay, count = count / 1000, 1
    at_call(train.loop, "_gradients", lambda *_: threading.Timer(delay, kill).start())
elif moment == "killed in the middle of a log line":
    at_call(train.log, "append", cut_line)
else:  # between the optimiser's step and the average's
    at_call(train.updates, "update_ema", {
        "killed between weights and average": kill, "interrupted": interrupt,
        "interrupted twice": interrupt_twice, "terminated": terminate, "hung up": hang_up,
        "hung up under nohup": hang_up, "late": pass_time,
    }[moment])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture()
def accident(place: Path, root: Path) -> Accident:
    """The script that runs train.py until `moment` comes for the `count`th time."""
    (place / "accident.py").write_text(ACCIDENT)
    return lambda moment, count: [place / "accident.py", root, moment, count]


def assert_equal_runs(run: Path, expected: Path, logged: Logged) -> None:
    """Weights, average and optimisers bit for bit, and every logged value once."""
    ours, theirs = (read_checkpoint(folder / "stage1.pt") for folder in (run, expected))
    assert ours["step"] == theirs["step"]

    def assert_equal(a: Any, b: Any) -> None:
        if isinstance(a, Tensor):
            assert torch.equal(a, b)
        elif isinstance(a, dict):
            assert a.keys() == b.keys()
            for key in a:
                assert_equal(a[key], b[key])
        elif isinstance(a, list):
            for x, y in zip(a, b, strict=True):
                assert_equal(x, y)
        else:
            assert a == b

    for key in ("params", "params_ema", "optimizers"):
        assert_equal(ours[key], theirs[key])
    assert logged(run) == logged(expected)


def test_run_killed_again_and_again_ends_bit_for_bit_equal(
    place: Path, train: Train, accident: Accident, uninterrupted: Path, logged: Logged
) -> None:
    rng = random.Random(20)
    accidents = [
        ("killed between weights and average", rng.randint(1, 3)),  # nothing saved yet
        ("killed before the rename of a checkpoint", rng.randint(2, 3)),
        ("killed between weights and average", rng.randint(1, 5)),
        ("killed in the middle of a log line", rng.randint(1, 3)),
    ]
    arguments = ("killed", "--resume", "--val", "held out")
    for moment, count in accidents:
        done = train(*arguments, script=accident(moment, count))
        assert done.returncode == -signal.SIGKILL, done.stderr
        left = list((place / "killed").glob(".*.tmp"))  # until the next run
        assert bool(left) == ("rename" in moment)
    # Otherwise the accidents did not hit what they were meant to.
    assert not (place / "killed" / "log.jsonl").read_text().endswith("\n")
    assert read_checkpoint(place / "killed" / "stage1.pt")["step"] in (3, 6, 9)
    done = train(*arguments)
    assert done.returncode == 0, done.stderr
    assert_equal_runs(place / "killed", uninterrupted, logged)
    assert not list((place / "killed").glob(".*.tmp"))


def test_a_run_killed_while_it_scores_its_last_step_has_saved_it(
    place: Path, train: Train, accident: Accident, uninterrupted: Path, logged: Logged
) -> None:
    scores = [line for line in logged(uninterrupted) if "val_psnr" in line]
    arguments = ("killed at the end", "--resume", "--val", "held out")
    done = train(*arguments, script=accident("killed while it scores", len(scores)))
    assert done.returncode == -signal.SIGKILL, done.stderr
    run = place / "killed at the end"
    assert read_checkpoint(run / "stage1.pt")["step"] == scores[-1]["step"]
    for _ in range(2):
        assert train(*arguments).returncode == 0
        assert_equal_runs(run, uninterrupted, logged)
    assert (run / "curves.png").exists()


@pytest.mark.skipif(
    not any(map(shutil.which, native_library.COMPILERS)), reason="needs a C++ compiler"
)
def test_run_on_compiled_kernels_killed_twice_ends_bit_for_bit_equal(
    place: Path, train: Train, accident: Accident, logged: Logged, random_weights: Path
) -> None:
    """With all that a long run has: a teacher, shrunk images, SOAP."""
    options = ("--kernels", "native", "--optimizer", "soap", "--form", "inference", "--resume")
    options += (
        "--shrink",
        2,
        "--zoom",
        0.5,
        "--mixup",
        0.5,
        "--rotate",
        0.5,
        "--teacher",
        random_weights,
        "--truth",
        0.5,
    )
    assert train("kernels", *options).returncode == 0
    for moment, count in (
        ("killed between weights and average", 5),
        ("killed before the rename of a checkpoint", 2),
    ):
        done = train("kernels killed", *options, script=accident(moment, count))
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert train("kernels killed", *options, "--threads", 2).returncode == 0
    assert read_checkpoint(place / "kernels" / "stage1.pt")["history"][0]["engine"]["kernels"] == (
        "native"
    )
    assert_equal_runs(place / "kernels killed", place / "kernels", logged)


def test_run_killed_at_three_random_times_ends_bit_for_bit_equal(
    place: Path, train: Train, accident: Accident, uninterrupted: Path, logged: Logged
) -> None:
    rng = random.Random(23)
    arguments = ("killed at random", "--resume", "--val", "held out", "--save_every", 1)
    codes = []
    for _ in range(3):  # milliseconds after the first step began, wherever that hits
        script = accident("killed at some millisecond", rng.randint(20, 250))
        codes.append(train(*arguments, script=script).returncode)
    assert codes[0] == -signal.SIGKILL
    assert set(codes) <= {-signal.SIGKILL, 0}  # a fast machine may have finished
    assert train(*arguments).returncode == 0
    assert_equal_runs(place / "killed at random", uninterrupted, logged)


def test_run_stopped_by_signals_and_by_time_ends_bit_for_bit_equal(
    place: Path, train: Train, accident: Accident, uninterrupted: Path, logged: Logged
) -> None:
    def saved_step() -> int:
        return read_checkpoint(place / "stopped" / "stage1.pt")["step"]

    arguments = ("stopped", "--resume", "--val", "held out")
    done = train(*arguments, script=accident("interrupted", 2))
    assert done.returncode == 1 and "--resume" in done.stderr
    assert saved_step() == 2  # the step in progress was done
    done = train(*arguments, script=accident("interrupted twice", 1))
    assert done.returncode == 1 and "--resume" in done.stderr
    assert saved_step() == 2  # stopped at once
    done = train(*arguments, script=accident("terminated", 3))
    assert done.returncode == 1
    assert saved_step() == 5
    done = train(*arguments, script=accident("hung up", 1))
    assert done.returncode == 1 and "--resume" in done.stderr
    assert saved_step() == 6
    done = train(*arguments, "--max_minutes", 30, script=accident("late", 1))
    assert done.returncode == 0 and "--resume" in done.stderr
    assert saved_step() == 7
    done = train(*arguments, script=accident("hung up under nohup", 2))
    assert done.returncode == 0, done.stderr
    assert_equal_runs(place / "stopped", uninterrupted, logged)


def test_finished_run_is_left_as_it_is(
    place: Path, train: Train, uninterrupted: Path, logged: Logged
) -> None:
    shutil.copytree(uninterrupted, place / "finished")
    (place / "finished" / "curves.png").unlink()  # as if it had been killed at its very end
    assert train("finished", "--resume", "--val", "held out").returncode == 0
    assert_equal_runs(place / "finished", uninterrupted, logged)
    assert (place / "finished" / "curves.png").exists()


def test_run_whose_rate_does_not_depend_on_its_end_can_be_lengthened(
    place: Path, train: Train, logged: Logged
) -> None:
    endless = ("--schedule", "inverse_sqrt")
    assert train("long", *endless, "--steps", 9).returncode == 0
    assert train("lengthened", *endless, "--steps", 5).returncode == 0
    done = train("lengthened", *endless, "--steps", 4, "--resume")
    assert done.returncode == 2 and "steps 5, now 4" in done.stderr
    assert train("lengthened", *endless, "--steps", 9, "--resume").returncode == 0
    assert_equal_runs(place / "lengthened", place / "long", logged)
    done = train("lengthened", "--schedule", "cosine", "--steps", 12, "--resume")
    assert done.returncode == 2 and "steps 9, now 12" in done.stderr


def test_a_second_stage_says_that_the_first_went_on_since(place: Path, train: Train) -> None:
    held = ("--schedule", "constant", "--warmup", 0)
    stages = [("--stage", 1, "--steps", 2, *held), ("--stage", 2, "--steps", 1, *held)]
    for stage in stages:
        assert train("went on", *stage).returncode == 0
    again = train("went on", *stages[1], "--resume")
    assert again.returncode == 0 and "began with" not in again.stderr, again.stderr
    assert train("went on", "--stage", 1, "--steps", 3, *held, "--resume").returncode == 0
    again = train("went on", *stages[1], "--resume")
    assert again.returncode == 0
    assert "stage2.pt goes on from what it began with, which is not what went on" in again.stderr


def test_a_run_that_goes_on_says_that_init_is_another_than_it_began_with(
    place: Path, train: Train, uninterrupted: Path, random_weights: Path
) -> None:
    plain = ("--form", "inference", "--steps", 1)
    ours, others = uninterrupted / "stage1.pt", random_weights
    for name, mine, other in (("of ours", ours, others), ("of others", others, ours)):
        assert train(name, *plain, "--init", mine).returncode == 0
        for given, told in ((mine, False), (other, True)):
            again = train(name, *plain, "--init", given, "--resume")
            assert again.returncode == 0, again.stderr
            assert ("goes on from what it began with" in again.stderr) == told, again.stderr
    # A run as the first one but for its rate is another one, too.
    assert train("slower", "--lr", "1e-5").returncode == 0
    again = train("of ours", *plain, "--init", place / "slower" / "stage1.pt", "--resume")
    assert "goes on from what it began with" in again.stderr
    (place / "damaged.pt").write_text("no weights")
    again = train("of ours", *plain, "--init", place / "damaged.pt", "--resume")
    assert again.returncode == 0, again.stderr


def test_a_stage_whose_history_would_be_refused_later_does_not_begin(
    place: Path, train: Train, uninterrupted: Path, tmp_path: Path
) -> None:
    saved = read_checkpoint(uninterrupted / "stage1.pt")
    (record,) = training_records(saved, uninterrupted)
    for kind, stages in (("long enough", MOST_RECORDS - 1), ("too long", MOST_RECORDS)):
        begin = tmp_path / f"{kind}.pt"
        torch.save(saved | {"before": [record] * (stages - 1)}, begin)
        done = train(kind, "--init", begin, "--steps", 1)
        assert (done.returncode == 0) == (kind == "long enough"), done.stderr
    assert done.returncode == 2 and "records of training" in done.stderr, done.stderr
    assert not (place / "too long" / "stage1.pt").exists()
    check_state(read_checkpoint(place / "long enough" / "stage1.pt"), place)
