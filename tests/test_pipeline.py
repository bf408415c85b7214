"""Photos one after another, while others are read and written: how many are held at once."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tqdm import tqdm

from deploy import pipeline
from deploy.photos.folders import Job
from deploy.pipeline import Tally
from utils.imaging.decode import Photo

COUNT, THREADS = 6, 2


@pytest.fixture()
def held(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[tuple[int, int]]]:
    """Run COUNT jobs of made-up photos; for each, when the network has it: how many photos are read
    and not enlarged yet, it included, and how many results are not written yet."""
    lock, held = threading.Lock(), {"photos": 0, "results": 0}
    seen: list[tuple[int, int]] = []

    def count(what: str, by: int) -> None:
        with lock:
            held[what] += by

    def read(job: Job) -> Photo:
        count("photos", 1)
        return Photo(np.zeros((2, 2, 3), np.uint8))

    def enlarge(photo: Photo, upscaler: object) -> Photo:
        time.sleep(0.01)  # others are read meanwhile, if they may be
        seen.append((held["photos"], held["results"]))
        count("photos", -1)
        count("results", 1)
        return Photo(np.zeros((8, 8, 3), np.uint8))

    def write(target: Path, photo: Photo) -> None:
        time.sleep(0.04)
        count("results", -1)

    def run() -> list[tuple[int, int]]:
        jobs = [Job(Path(f"{i}.png"), Path(f"{i}_x4.png")) for i in range(COUNT)]
        tally = Tally()
        pipeline.run(jobs, SimpleNamespace(), THREADS, tally, tqdm(disable=True))  # type: ignore[arg-type]
        assert tally.written == [job.target for job in jobs] and not held["results"]
        return seen

    monkeypatch.setattr(pipeline, "read", read)
    monkeypatch.setattr(pipeline, "enlarge", enlarge)
    monkeypatch.setattr(pipeline.encode, "write", write)
    return run


def test_no_more_photos_are_held_than_threads_may_be(held: Callable) -> None:
    assert all(photos <= THREADS and results <= THREADS for photos, results in held())


def test_a_result_too_large_to_wait_is_written_before_the_next_is_made(
    held: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "WAITING", 8 * 8 * 3 - 1)
    assert [results for _, results in held()] == [0] * COUNT
