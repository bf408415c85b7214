"""The fuzz command tells what it should from what it should not, and a little of it is tried."""

import functools
import sys
from pathlib import Path

import faulty_kind
import pytest

from tests.fuzz import __main__, checkpoints, pictures, records, states, workers
from tests.fuzz.kinds import READ, REFUSED, Kind
from tests.fuzz.workers import try_all, try_input


@pytest.mark.parametrize(
    ("kind", "count"),
    [(pictures.KIND, 40), (checkpoints.KIND, 12), (states.KIND, 3), (records.KIND, 4)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_few_inputs_are_read_or_refused(kind: Kind, count: int, tmp_path: Path) -> None:
    for index in range(count):
        folder = tmp_path / str(index)
        folder.mkdir()
        outcome, said = try_input(kind, 2, index, folder)
        assert outcome in (READ, REFUSED), f"{kind.name} {index}: {said}"


def test_files_that_are_damaged_were_whole(tmp_path: Path) -> None:
    refused = []
    for number, (suffix, data) in enumerate(pictures.seeds()):
        path = tmp_path / f"{number}.{suffix}"
        path.write_bytes(data)
        try:
            pictures.decode.read(path)
        except pictures.ImageError:
            refused.append(path.name)
    assert len(refused) <= 6, refused  # what Pillow does not read: rare TIFFs, PFM in colour
    for name, content in (("w.pth", checkpoints.seeds()[0]), ("stage1.pt", states.seeds()[1])):
        (tmp_path / name).write_bytes(checkpoints.saved(content))
        (checkpoints if name == "w.pth" else states).attack(tmp_path / name)


@pytest.mark.skipif(sys.platform != "linux", reason="memory and time are those of /proc")
def test_what_must_not_happen_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(__main__, "KINDS", ((faulty_kind.KIND, 10),))
    monkeypatch.setattr(__main__, "try_all", functools.partial(try_all, limit_s=1.0, limit_mib=200))
    monkeypatch.setattr(workers, "PATIENCE", 1000)  # on a busy machine too
    assert __main__.main(["--seed", "7", "--processes", "1", "--keep", str(tmp_path)]) == 1
    header, row = capsys.readouterr().out.splitlines()[-2:]
    assert header.split()[:7] == ["read", "refused", "traceback", "wrong", "hang", "memory", "died"]
    assert row.split()[:8] == ["faulty", "2", "2", "1", "2", "1", "1", "1"]
    bad = {i: o for i, o in enumerate(faulty_kind.OUTCOMES) if o not in (READ, REFUSED)}
    assert {path.name for path in tmp_path.iterdir()} == {f"faulty-{i}-{o}" for i, o in bad.items()}
    kept = tmp_path / "faulty-3-traceback"
    assert int((kept / "drawn").read_text()) == faulty_kind.DRAWN[3]
    assert "ZeroDivisionError" in (kept / "said.txt").read_text()
    assert __main__.main(["--faulty", "2", "--seed", "7", "--processes", "1"]) == 0
