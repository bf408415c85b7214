"""Photos one after another, while others are read and written: how many are held at once."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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


def test_a_bmp_of_a_deep_photo_needs_half_the_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has 8 bits."""
    photo = Photo(np.zeros((300, 200, 3), np.uint16))
    asked: list[int] = []
    monkeypatch.setattr(pipeline, "check_space", lambda target, size: asked.append(size))
    monkeypatch.setattr(pipeline, "enlarge", lambda photo, upscaler: photo)
    with ThreadPoolExecutor(1) as pool:
        for suffix in (".bmp", ".png"):
            job = Job(Path("a.png"), tmp_path / f"a_x4{suffix}")
            pipeline._restore(job, photo, SimpleNamespace(), pool).done.result()  # type: ignore[arg-type]
    assert asked == [16 * 300 * 200 * 3, 2 * 16 * 300 * 200 * 3]


def test_no_more_photos_are_held_than_threads_may_be(held: Callable) -> None:
    assert all(photos <= THREADS and results <= THREADS for photos, results in held())


def test_a_result_too_large_to_wait_is_written_before_the_next_is_made(
    held: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "WAITING", 8 * 8 * 3 - 1)
    assert [results for _, results in held()] == [0] * COUNT
