"""What the Triton kernels' compiler said, from its JSON to the document."""

import json
from pathlib import Path

import pytest
import torch

from utils.command import UserError
from utils.record import environment
from utils.report.documents import publish

ROW = {"architecture": "sm_90", "precision": "fp16"}
MODEL = {
    "precision": "fp16",
    "size": [1, 34, 51],
    "ms": 0.5,
    "held_mib": 12.4,
    "rows": [{"kernel": "merge", "launches": 4, "registers": 99, "ms": 0.5, "bound_by": "L1 | L2"}],
}


def put(folder: Path, name: str, **content: object) -> Path:
    file = folder / f"{name}.json"
    known = {"environment": environment(torch.device("cpu")), "triton": name}
    file.write_text(json.dumps(known | content))
    return file


def test_modelled_and_compiled_kernels_are_published(tmp_path: Path) -> None:
    document = tmp_path / "kernels" / "README.md"
    document.parent.mkdir()
    document.write_text(
        "<!-- generated: modelled -->\n<!-- end -->\n<!-- generated: compiled -->\n<!-- end -->\n"
    )
    whole = {"kernels": 9, "registers": [64, 128], "stack_bytes": 8, "on_tensor_cores": 7}
    whole |= {"doubtful_products": 3}
    rows = [ROW | whole, ROW | {"failed": "PassManagerError"}]
    publish([], tmp_path)
    assert document.read_text().count("\nnot measured\n") == 2
    files = [put(tmp_path, "3.9.0", rows=[MODEL])]
    files += [put(tmp_path, version, compiled=rows) for version in ("3.6.0", "4.0.0")]
    publish(files, tmp_path)
    lines = document.read_text().splitlines()
    assert "| merge | 4 | 99 | 125.0 | L1 &#124; L2 |" in lines
    assert lines.count("| sm_90 | fp16 | 9 | 64 to 128 | 8 | 7 | 3 |") == 2
    assert lines.count("| sm_90 | fp16 | fails | PassManagerError |  |  |  |") == 2
    words = next(line for line in lines if line.startswith("Modelled, not measured"))
    assert "34x51" in words and "0.50 ms a forward, 12 MiB held" in words
    published = {file.name for file in (tmp_path / "results" / "published").iterdir()}
    assert published == {"modelled_3.9.0.json", "compiled_3.6.0.json", "compiled_4.0.0.json"}


@pytest.mark.parametrize("version", ["../3.9.0", "", 3.9])
def test_a_version_that_is_no_name_is_not_published(version: object, tmp_path: Path) -> None:
    file = put(tmp_path, "odd", rows=[MODEL])
    file.write_text(json.dumps(json.loads(file.read_text()) | {"triton": version}))
    with pytest.raises(UserError, match="expected the JSON of a run"):
        publish([file], tmp_path)
    assert not (tmp_path / "results").exists()
