"""Data arrive whole or not at all, whatever a server does in between."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from mirror import (
    COMPLETE,
    HR,
    LR,
    SIZE,
    Fetch,
    MakeImage,
    Site,
    assert_complete,
    files_below,
    filled,
    png,
    publish,
    zipped,
)

from data import prepare
from utils import download


@pytest.mark.usefixtures("published")
def test_downloads_unpacks_and_then_leaves_alone(
    site: Site, fetch: Fetch, tmp_path: Path, noise: MakeImage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch() == 0
    assert_complete(tmp_path / "data", noise)
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("DIV2K_valid_HR: 3 images, sha256 as published")
    assert second.endswith("X4: 3 images, sha256 not verified, none is known")
    assert site.asked == [(HR, None), (LR, None)]

    stamps = {path: path.stat() for path in (tmp_path / "data").rglob("*")}
    assert fetch() == 0
    assert len(site.asked) == 2
    assert {path: path.stat() for path in (tmp_path / "data").rglob("*")} == stamps
    assert capsys.readouterr().out.count("complete already") == 2


@pytest.mark.usefixtures("published")
def test_archives_are_kept_on_demand_and_used_again(
    site: Site, fetch: Fetch, tmp_path: Path
) -> None:
    assert fetch("--keep") == 0
    assert files_below(tmp_path / "data") == COMPLETE | {HR, LR}
    assert (tmp_path / "data" / HR).read_bytes() == site.files[HR]
    shutil.rmtree(tmp_path / "data" / "DIV2K_valid_HR")
    assert fetch() == 0
    assert len(site.asked) == 2
    assert files_below(tmp_path / "data") == COMPLETE | {LR}


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("layout", ["DIV2K/DIV2K_valid_HR", "DIV2K_valid_LR"])
def test_set_in_another_layout_is_not_downloaded(
    site: Site, fetch: Fetch, tmp_path: Path, layout: str
) -> None:
    folder = tmp_path / "data" / layout
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.png").touch()
    assert fetch() == 0
    assert [name for name, _ in site.asked] == [HR if layout.endswith("LR") else LR]


@pytest.mark.usefixtures("published")
def test_folder_with_other_content_is_not_touched(
    site: Site, fetch: Fetch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "data" / "DIV2K_valid_HR" / "mine.png"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert fetch() == 1
    assert str(mine.parent) in capsys.readouterr().err
    assert (mine.read_text(), site.asked) == ("mine", [])


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("honours_range", [True, False])
def test_broken_transfer_goes_on(
    site: Site, fetch: Fetch, tmp_path: Path, noise: MakeImage, honours_range: bool
) -> None:
    site.cut, site.cuts, site.honours_range = 4000, 1, honours_range
    assert fetch() == 0
    assert site.asked == [(HR, None), (HR, "bytes=4000-"), (LR, None)]
    assert_complete(tmp_path / "data", noise)


@pytest.mark.usefixtures("published")
def test_next_run_continues_what_broke_each_time(
    site: Site, fetch: Fetch, tmp_path: Path, noise: MakeImage, capsys: pytest.CaptureFixture[str]
) -> None:
    site.cut, site.cuts, site.refusals = 12000, 1, [0, 503, 503]
    assert fetch() == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "20000 bytes" in error and "12000" in error and "run this again" in error
    assert files_below(tmp_path / "data") == {f"{HR}.part", f"{HR}.part.json"}
    assert (tmp_path / "data" / f"{HR}.part").read_bytes() == site.files[HR][:12000]
    site.asked.clear()
    assert fetch() == 0
    assert site.asked == [(HR, "bytes=12000-"), (LR, None)]
    assert_complete(tmp_path / "data", noise)


@pytest.mark.usefixtures("published")
def test_a_way_that_breaks_often_leads_there(
    site: Site, fetch: Fetch, tmp_path: Path, noise: MakeImage
) -> None:
    site.cut, site.cuts = 2000, 9
    assert fetch() == 0
    assert_complete(tmp_path / "data", noise)


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("change", ["tag", "modified", "size", "note lost", "shorter"])
def test_file_that_changed_in_between_is_downloaded_anew(
    site: Site,
    fetch: Fetch,
    tmp_path: Path,
    noise: MakeImage,
    change: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site.cut, site.cuts = 15000, 1
    monkeypatch.setattr(download, "WAITS_S", ())
    assert fetch() == 1
    monkeypatch.setattr(download, "WAITS_S", (0, 0))
    other = zipped({f"0/080{n}.png": png(noise(32, 40, 20 + n)) for n in (1, 2, 3)})
    site.files[HR] = other
    publish(monkeypatch, sha256=None)
    if change == "tag":
        site.tag = '"two"'
    elif change == "modified":
        site.modified = "Sat, 01 Jan 2022 00:00:00 GMT"
    elif change == "note lost":
        (tmp_path / "data" / f"{HR}.part.json").unlink()
    else:
        size = 19000 if change == "size" else 14000
        site.files[HR] = filled(other, size)
        archive, low = prepare.DIV2K["DIV2K_valid"]
        table = {"DIV2K_valid": (replace(archive, size=size), low)}
        monkeypatch.setattr(prepare, "DIV2K", table)
    assert fetch() == 0
    assert (HR, None) in site.asked[1:]
    assert_complete(tmp_path / "data", noise, seed=20)


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("longer", [10, -10])
def test_file_of_another_size_is_refused_before_it_is_downloaded(
    site: Site,
    fetch: Fetch,
    tmp_path: Path,
    noise: MakeImage,
    longer: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    site.longer = longer
    assert fetch() == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert str(SIZE) in error and str(SIZE + longer) in error and HR in error
    assert files_below(tmp_path / "data") == set()
    site.longer = 0
    assert fetch() == 0
    assert_complete(tmp_path / "data", noise)


@pytest.mark.usefixtures("published")
def test_missing_file_is_an_error_at_once_and_a_busy_server_is_asked_again(
    site: Site, fetch: Fetch, tmp_path: Path, noise: MakeImage, capsys: pytest.CaptureFixture[str]
) -> None:
    site.refusals = [404]
    assert fetch() == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "404" in error and f"{site.url}/{HR}" in error
    assert len(site.asked) == 1 and files_below(tmp_path / "data") == set()
    site.refusals = [503, 429]
    assert fetch() == 0
    assert_complete(tmp_path / "data", noise)


@pytest.mark.usefixtures("published")
def test_server_that_is_not_there_is_one_sentence(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["DIV2K_valid", "--url", "http://127.0.0.1:1/", "--data_dir", str(tmp_path / "data")]
    assert prepare.main(options) == 1
    errors = capsys.readouterr().err
    assert "and no more in 2 attempts" in errors.splitlines()[-1]
    assert "connecting to http://" in errors and "trying again in 0 s" in errors
    assert files_below(tmp_path / "data") == set()


@pytest.mark.usefixtures("published")
def test_wrong_checksum_is_removed_and_downloaded_anew(
    site: Site,
    fetch: Fetch,
    tmp_path: Path,
    noise: MakeImage,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good = site.files[HR]
    site.files[HR] = good[:5000] + bytes([good[5000] ^ 1]) + good[5001:]
    assert fetch() == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert HR in error and hashlib.sha256(good).hexdigest() in error
    assert hashlib.sha256(site.files[HR]).hexdigest() in error
    assert files_below(tmp_path / "data") == set()
    site.files[HR] = good
    site.asked.clear()
    assert fetch() == 0
    assert site.asked == [(HR, None), (LR, None)]
    assert_complete(tmp_path / "data", noise)
