"""Packs are opened whole: moved in parts, damaged, or with pixels unlike their index."""

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from train import packs
from train.packing import pack
from train.recipes import STAGES
from train.records import note_data
from utils.imaging.images import ImageError

Image = NDArray[np.uint8]


@pytest.fixture()
def tree(tmp_path: Path, noise: Callable[..., Image], save: Callable[[Path, Image], Path]) -> Path:
    for seed in range(3):
        save(tmp_path / "photos" / f"{seed}.png", noise(16, 24, seed))
    return tmp_path / "photos"


def harm(index: Path, kind: str) -> None:
    """Damage that leaves all sizes as they were, with the time of the last change set back."""
    file = index if kind in ("offsets", "digest", "names of types") else index.with_suffix(".bin")
    before = file.stat()
    content = json.loads(index.read_text())
    pixels = bytearray(index.with_suffix(".bin").read_bytes())
    whole = len(pixels) // 3
    if kind == "zeroed":
        pixels[whole : whole + 30] = bytes(30)
    elif kind == "one bit of LR":
        pixels[0] ^= 1
    elif kind == "swapped":
        pixels[:whole], pixels[whole : 2 * whole] = pixels[whole : 2 * whole], pixels[:whole]
    elif kind == "offsets":
        one, two = content["images"][:2]
        for key in ("lr_offset", "hr_offset", "sha256"):
            one[key], two[key] = two[key], one[key]
    elif kind == "digest":
        content["fingerprint"] = "0" * 64
    elif kind == "names of types":
        content["images"][0]["height"] = "4"
    if file == index:
        index.write_text(json.dumps(content))
    else:
        file.write_bytes(pixels)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "kind", ["zeroed", "one bit of LR", "swapped", "offsets", "digest", "names of types"]
)
def test_damage_is_noticed(
    tree: Path, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = pack([tree], tmp_path / "cache")
    pixels, fingerprint = whole.pixels.clone(), whole.fingerprint
    (index,) = (tmp_path / "cache").glob("*.json")
    harm(index, kind)
    with pytest.raises(ImageError, match="expected .* pack the images again"):
        pack([index], tmp_path)
    with caplog.at_level(logging.WARNING):  # of the images themselves it is made anew
        again = pack([tree], tmp_path / "cache")
    assert "made anew" in caplog.text
    assert torch.equal(again.pixels, pixels) and again.fingerprint == fingerprint


def test_an_index_of_images_without_pixels_is_damage(tree: Path, tmp_path: Path) -> None:
    pack([tree], tmp_path / "cache")
    (index,) = (tmp_path / "cache").glob("*.json")
    content = json.loads(index.read_text())
    for image in content["images"]:
        image["height"] = 0
    index.write_text(json.dumps(content))
    index.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(ImageError, match="expected the index of a pack"):
        pack([index], tmp_path)


def test_a_pack_is_verified_once(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack([tree], tmp_path / "cache")
    (index,) = (tmp_path / "cache").glob("*.json")
    verified: list[int] = []

    def verify(images: object, fingerprint: object, pixels: Image) -> str:
        verified.append(len(pixels))
        return ""

    monkeypatch.setattr(packs, "_find_damage", verify)
    pack([index], tmp_path)
    assert verified == []
    index.with_suffix(".verified").write_text("{")
    pack([index], tmp_path)
    pack([index], tmp_path)
    assert verified == [3 * 17 * 24]  # pixels: of three images 24 of LR and 16 times as many of HR


def test_damaged_pack_is_packed_again(tree: Path, tmp_path: Path) -> None:
    whole = pack([tree], tmp_path / "cache")
    before = whole.pixels.clone()
    (pixels,) = (tmp_path / "cache").glob("*.bin")
    pixels.write_bytes(pixels.read_bytes()[:-1])
    assert torch.equal(pack([tree], tmp_path / "cache").pixels, before)
    pixels.unlink()
    assert pack([tree], tmp_path / "cache").fingerprint == whole.fingerprint


def test_what_is_trained_on_is_noted_by_its_folders_though_it_comes_as_a_pack(
    tree: Path, tmp_path: Path
) -> None:
    part = tmp_path / "set" / "HR"
    part.parent.mkdir(parents=True)
    tree.rename(part)
    data = pack([part], tmp_path / "cache", first=2)
    stages = [replace(STAGES[number], steps=1) for number in (1, 2)]
    note_data(tmp_path, stages[0], [part], 2, data)
    (index,) = (tmp_path / "cache").glob("*.json")
    for stage in stages:
        note_data(tmp_path, stage, [index], None, pack([index], tmp_path / "cache"))
        note = json.loads((tmp_path / f"{stage.name}_data.json").read_text())
        assert (note["folders"], note["first"]) == (["set/HR"], 2)
        assert note["fingerprint"] == data.fingerprint and len(note["sha256"]) == 2
    other = pack([part], tmp_path / "cache")
    note_data(tmp_path, stages[0], [Path("elsewhere.json")], None, other)  # of other images
    note = json.loads((tmp_path / "stage1_data.json").read_text())
    assert (note["folders"], note["first"]) == (["elsewhere.json"], None)


def test_a_pack_moves_in_parts(tree: Path, tmp_path: Path) -> None:
    """By the commands of train/README.md."""
    original = pack([tree], tmp_path / "cache")
    (index,) = (tmp_path / "cache").glob("*.json")
    here, there = tmp_path / "cache", tmp_path / "there"
    there.mkdir()

    def shell(command: str, folder: Path) -> int:
        done = subprocess.run(command.replace("PACK", index.stem), shell=True, cwd=folder)
        return done.returncode

    cut = "split -b 1000 PACK.bin PACK.bin. && sha256sum PACK.bin > PACK.sha256"
    assert shell(cut, here) == 0
    parts = sorted(here.glob("*.bin.??"))
    assert len(parts) > 3 and max(part.stat().st_size for part in parts) == 1000
    for file in (index, index.with_suffix(".sha256"), *parts):
        shutil.copy(file, there)
    join = "cat PACK.bin.?? > PACK.bin && sha256sum -c PACK.sha256"
    damaged = there / parts[2].name
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert shell(join, there) == 1
    damaged.write_bytes(whole[:-1])
    assert shell(join, there) == 1
    with pytest.raises(ImageError, match="cut short"):
        pack([there / index.name], tmp_path)
    damaged.write_bytes(whole)

    assert shell(join, there) == 0
    moved = pack([there / index.name], tmp_path / "unused")
    assert torch.equal(moved.pixels, original.pixels)
    assert (moved.images, moved.fingerprint) == (original.images, original.fingerprint)
    with pytest.raises(FileNotFoundError, match="absent"):
        pack([tmp_path / "absent.json"], tmp_path)
