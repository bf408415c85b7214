"""The generated tables: what the published records say, in the documents."""

import copy
import json
import re
from pathlib import Path

import pytest
from made_records import a_benchmark, a_run

from utils import record
from utils.command import UserError
from utils.files import ROOT, write_json
from utils.report import documents, summary


@pytest.mark.parametrize("name", documents.DOCUMENTS)
def test_documents_say_what_the_published_runs_say(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "<!-- generated:" in text
    assert documents.fill_in(text) == text, "run python -m utils.report.documents --publish"


def test_checkpoints_of_one_file_name_have_rows_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("<!-- generated: quality -->\n<!-- end -->\n")
    for model, sha in (("00_RFDN@other", "2"), ("23_LKDN@other", "3")):
        run = a_run("Set5" if sha == "2" else "Set14", model)
        run["checkpoint"] = {"name": "other.pth", "sha256": sha * 64}
        documents.publish([record.write_run(tmp_path, run)], tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "| other.pth of 00_RFDN@other, sha256 22222222 | 31.500 / 0.9000 | not" in text
    assert "| other.pth of 23_LKDN@other, sha256 33333333 | not measured | 31.500" in text


def test_the_factsheets_row_stands_beside_runs_of_its_own_set_alone() -> None:
    assert summary.table([a_run("demo")])[1:] == [summary.row(a_run("demo"))]
    table = summary.table([a_run("demo"), a_run("DIV2K_valid")])
    assert table[1][1] == "29.01" and len(table) == 4
    assert "29.01" in summary.text(a_run("DIV2K_valid"), "run.json")
    run = a_run("DIV2K_valid")
    few = run | {"images": run["images"][:2], "images_in_set": 2}
    text = summary.text(few, "run.json")
    assert "29.01" not in text and "(2 of 100 images)" in text
    assert "DIV2K_valid, cpu, 2 of 100 images " in text and "they are of all 100 images" in text


def test_publish_fills_tables_and_drops_runs_of_older_weights(tmp_path: Path) -> None:
    parts = "".join(f"<!-- generated: {name} -->\n<!-- end -->\n" for name in documents.PARTS)
    (tmp_path / "README.md").write_text(f"# A title\n{parts}The end.\n")
    foreign = a_run("Set14", "23_LKDN@other")
    foreign["checkpoint"]["name"] = "other.pth"
    files = [record.write_run(tmp_path, run) for run in (a_run(), a_run("demo"), foreign)]
    documents.publish(files, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("# A title\n") and text.endswith("The end.\n")
    assert "| this repository | 31.500 / 0.9000 | not measured |\n" in text
    assert "| these weights | 31.500 / 0.9000 |\n" in text and "29.01" not in text
    assert "| other.pth | not measured | 31.500 / 0.9000 |" in text
    assert "PSNR (RGB)           30.00 dB, bicubic 28.00 dB, gain +2.00 dB" in text
    assert documents.fill_in(text, tmp_path) == text

    stage = {
        "stage": {"name": "stage1", "steps": 7, "batch": 2, "patch": 32},
        "step": 7,
        "seed": 0,
        "data": "f" * 64,
        "history": [{"minutes": 90.4, "environment": {"device": "a chip", "threads": 2}}],
        "data_summary": {"images": 3, "megapixels": 12.3},
    }
    training = {
        "sha256": "1" * 64,
        "stages": [stage],
        "commands": ["python train/train.py"],
        "validation": [],
    }
    write_json(tmp_path / "results" / "published" / "23_LKDN_training.json", training)
    documents.regenerate(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "| this repository | not measured |\n" in text  # sets that nobody measured are left out
    assert "| other.pth | 31.500 / 0.9000 |\n" in text
    assert "| minutes | 90 |" in text and "3 images, 12 megapixels" in text
    with pytest.raises(UserError, match="others"):
        documents.publish(files[:1], tmp_path)


def test_publish_refuses_what_is_no_whole_run(tmp_path: Path) -> None:
    failed = copy.deepcopy(a_run())
    failed["failed"] = ["b: broken"]
    write_json(tmp_path / "failed.json", failed)
    del (unsaid := a_run())["failed"]  # of before it was recorded
    write_json(tmp_path / "nobody knows how many in unsaid.json", unsaid)
    few = a_run("Set14")
    write_json(tmp_path / "got one of 3.json", few | {"images": few["images"][:3]})
    write_json(tmp_path / "foreign.json", [1])
    (tmp_path / "text.json").write_text("{")
    unsaid = "nobody knows how many in unsaid"
    for name in ("failed", unsaid, "got one of 3", "foreign", "text", "absent"):
        with pytest.raises(UserError, match=name):
            documents.publish([tmp_path / f"{name}.json"], tmp_path)
    assert not (tmp_path / "results").exists()


def test_the_citation_has_what_its_format_requires() -> None:
    """Of version 1.2.0; without one of these GitHub offers no citation."""
    text = (ROOT / "CITATION.cff").read_text()
    keys = set(re.findall(r"^([\w-]+):", text, re.M))
    assert keys >= {"authors", "cff-version", "message", "title", "preferred-citation"}


def test_a_published_benchmark_makes_tables_and_picture(tmp_path: Path) -> None:
    file = tmp_path / "benchmark_cpu.json"
    file.write_text(json.dumps(a_benchmark()))
    document = (
        "<!-- generated: benchmark -->\n<!-- end -->\n<!-- generated: speed -->\n<!-- end -->\n"
    )
    (tmp_path / "README.md").write_text(document)
    documents.publish([file], tmp_path)
    published = tmp_path / "results" / "published"
    assert sorted(p.name for p in published.iterdir()) == [
        "benchmark_cpu.json",
        "benchmark_cpu.png",
    ]
    text = (tmp_path / "README.md").read_text()
    assert "| 340x510, auto fp32: native fp32 | 10.00 | 9.00 | 11.00 | 5.00 | 20 |" in text
    assert "510x340 pixels takes 10 ms with `--backend auto` (native fp32). With eager" in text
    assert "it takes 50 ms, 5.0 times as long. Memory is 20 MiB instead of" in text
    assert "- triton fp16: no GPU" in text and "1 TFLOP/s in fp32, 80 GB/s" in text
    assert text.count("An NVIDIA GPU") == 2 and text.count("not measured") == 2
    (published / "benchmark_cuda.json").write_text(json.dumps(a_benchmark("cuda")))
    documents.publish([], tmp_path)
    assert "not measured" not in (tmp_path / "README.md").read_text()


def test_the_authors_scores_are_those_of_the_plain_network(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("<!-- generated: scores -->\n<!-- end -->\n")
    theirs = a_run("Set5", "23_LKDN@fused") | {"ave_psnr_y": 32.1}
    theirs["checkpoint"] = {"name": documents.AUTHORS_FILE, "sha256": "1" * 64}
    half = theirs | {"backend": "native", "precision": "bf16", "ave_psnr_y": 32.0}
    files = [record.write_run(tmp_path, run) for run in (a_run(), theirs, half)]
    documents.publish(files, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "| the authors' weights, measured here | 32.100 /" in text
