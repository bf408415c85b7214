"""Who may import whom, read from the source of every file."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("models", "utils", "kernels", "deploy", "train")
ENTRY_POINTS = {"test_demo", "upscale", "tests", "conftest"}

# Beside the standard library. What a folder may use of the project's own ..
OWN = {
    "models": set(),
    "kernels": {"kernels"},
    "utils": {"utils"},
    "deploy": {"deploy", "models", "kernels", "utils"},
    "train": {"train", "models", "kernels", "utils"},
}
# .. and of others; None: whatever it needs. One file alone may use what stands under its path.
OTHERS: dict[str, set[str] | None] = {
    "models": {"torch"},
    "kernels": {"torch", "triton", "numpy"},
    "utils": {"numpy", "cv2", "torch", "tqdm", "skimage"},
    "deploy": None,
    "train": None,
    "utils/efficiency.py": {"fvcore"},
    "utils/report/speed.py": {"matplotlib"},
}

FILES = sorted(
    p.relative_to(ROOT).as_posix() for name in PACKAGES for p in (ROOT / name).rglob("*.py")
)
ROOT_FILES = sorted(p.name for p in ROOT.glob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Top-level names of every import in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            own = path.relative_to(ROOT).parts[0]
            yield own if node.level else (node.module or "").split(".")[0]


@pytest.mark.parametrize("file", FILES)
def test_file_imports_only_what_its_folder_may(file: str) -> None:
    folder = file.split("/")[0]
    names = set(imported(ROOT / file)) - set(sys.stdlib_module_names)
    local = {name for name in names if name in PACKAGES or name in ENTRY_POINTS}
    assert local <= OWN[folder]
    others = OTHERS[folder]
    if others is not None:
        assert names - local <= others | (OTHERS.get(file) or set())


@pytest.mark.parametrize("file", ROOT_FILES)
def test_entry_points_are_imported_by_nobody(file: str) -> None:
    assert not set(imported(ROOT / file)) & ENTRY_POINTS


@pytest.mark.parametrize("file", [f for f in FILES if f.startswith("models/")])
def test_network_file_is_self_contained(file: str) -> None:
    assert set(imported(ROOT / file)) <= {"torch"}


def test_the_files_are_seen() -> None:
    assert {"models/team23_LKDN.py", "utils/images.py", "train/loop.py"} <= set(FILES)
    assert "test_demo.py" in ROOT_FILES
    assert {"torch", "kernels", "models", "train"} <= set(imported(ROOT / "train/forward.py"))
