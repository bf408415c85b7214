"""Who may import whom, read from the source of every file."""

import ast
import functools
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (".", "models", "utils", "kernels", "deploy", "train", "data")
    for path in ROOT.glob("*.py" if folder == "." else f"{folder}/**/*.py")
)
ENTRY_POINTS = {"test_demo", "upscale", "data.prepare", "train.train"}

# What a room may use of the project's own, beside itself; the innermost room that is named counts.
OWN = {
    "models": set(),
    "kernels": set(),
    "utils": set(),
    "utils/report": {"utils"},
    "deploy": {"models", "kernels", "utils", "deploy/photos"},
    "deploy/photos": {"utils"},
    "deploy/submission": {"utils"},
    "train": {"models", "kernels", "utils"},
}
# .. and of others' packages, beside the standard library; a room without a line: what it needs.
# A room inside a room, or one file, may also use what stands under its path.
OTHERS: dict[str, set[str]] = {
    "models": {"torch"},
    "kernels": {"torch", "triton"},
    "utils": {"numpy", "cv2", "torch", "tqdm", "skimage"},
    "utils/imaging": {"PIL"},
    "utils/efficiency.py": {"fvcore"},
    "utils/report/speed.py": {"matplotlib"},
    "utils/report/curves.py": {"matplotlib"},
}


def module_of(file: str) -> str:
    return file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


MODULES = {module_of(file): file for file in FILES}


def imported(tree: ast.AST, late: bool = True) -> Iterator[str]:
    """Modules that a file imports: the project's own by their full names, others by their
    packages'. Without `late` only those that are imported with it, not inside functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide where a module lies"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in inner]
        elif late or not isinstance(node, ast.FunctionDef):
            yield from imported(node, late)
            continue
        else:
            continue
        yield from (name if name in MODULES else name.split(".")[0] for name in names)


@functools.cache
def read(file: str) -> ast.AST:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def room_of(file: str) -> str:
    folders = [parent.as_posix() for parent in Path(file).parents]
    return next((folder for folder in folders if folder in OWN), "")


@pytest.mark.parametrize("file", [f for f in FILES if room_of(f)])
def test_file_imports_only_what_its_room_may(file: str) -> None:
    names, room = set(imported(read(file))), room_of(file)
    own = names & set(MODULES)
    for other in {room_of(MODULES[name]) for name in own} - {room}:
        assert any(f"{other}/".startswith(f"{allowed}/") for allowed in OWN[room]), other
    if file.split("/")[0] in OTHERS:
        theirs = names - own - set(sys.stdlib_module_names)
        places = (file, *(parent.as_posix() for parent in Path(file).parents))
        assert theirs <= set().union(*(OTHERS.get(place, set()) for place in places))


@pytest.mark.parametrize("file", FILES)
def test_nobody_imports_entry_points_or_tests(file: str) -> None:
    for name in set(imported(read(file))):
        assert name not in ENTRY_POINTS and not name.endswith("__main__")
        assert name not in ("tests", "conftest") and not (ROOT / "tests" / f"{name}.py").exists()


def test_there_is_no_circle() -> None:
    """Of imports that happen when a module is imported."""
    graph = {m: set(imported(read(file), late=False)) & set(MODULES) for m, file in MODULES.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_the_files_are_seen() -> None:
    assert {"models/team23_LKDN.py", "utils/report/page.py", "data/prepare.py"} <= set(FILES)
    assert {"torch", "models.team23_LKDN", "train.reparam"} <= set(
        imported(read("train/forward.py"))
    )
    late = set(imported(read("deploy/runners.py")))
    assert {"deploy.onnx_graph", "onnxruntime"} <= late
    assert "deploy.onnx_graph" not in set(imported(read("deploy/runners.py"), late=False))
    assert room_of("deploy/photos/encode.py") == "deploy/photos"
