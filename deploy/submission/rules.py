"""The organisers' rules: each a function that names what breaks it in a repository."""

import ast
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deploy.submission.entry import PUBLISHED, Entry
from utils import efficiency
from utils.datasets import IMAGES, SCALE, held_out
from utils.files import sha256
from utils.imaging.images import EXTENSIONS
from utils.networks import call
from utils.report.summary import is_complete
from utils.weights import load_weights, named_weights

LIMIT_MB = 100  # of what is sent, without SR images, unpacked
# What is imported from the repository; all else is a library's.
FOLDERS = ("models", "utils", "train", "kernels", "deploy", "data")
CHALLENGE_IMAGE = re.compile(rf"\d{{4,7}}(x{SCALE})?")  # DIV2K's 0801x4, LSDIR's 0000001
CREDITED = (
    "Chengxing Xie",
    "Xiaoming Zhang",
    "Linze Li",
    "Haiteng Meng",
    "Tianlin Zhang",
    "Tianrui Li",
    "Xiaole Zhao",
    "BSRN",
    "VapSR",
    "RFDN",
    "NTIRE 2023 organisers",
    "Timofte",
    "Keller Jordan",
)


def check(entry: Entry) -> list[str]:
    """Every broken rule with what breaks it. Those on the model are left out where not exactly
    one model and checkpoint are there."""
    is_one = len(entry.models) == len(entry.own_checkpoints) == 1
    broken = []
    for name, rule in (FILE_RULES | MODEL_RULES if is_one else FILE_RULES).items():
        try:
            broken += [f"{name}: {reason}" for reason in rule(entry)]
        except Exception as error:  # of whatever kind: rules read, and run, what they are given
            broken.append(f"{name}: {error or type(error).__name__}")
    return broken


def _model_file(entry: Entry) -> Iterator[str]:
    if len(entry.models) != 1:
        found = ", ".join(entry.models) or "none"
        yield f"expected one file models/team{entry.team.id:02}_NAME.py, got {found}"
    for file in entry.models:
        names = {name.split(".")[0] for name in _imports(entry.text(file))}
        for name in sorted(names - {"torch"} - sys.stdlib_module_names):
            yield f"expected {file} to import torch and Python's own alone, got {name or 'its own'}"


def _imports(source: str) -> Iterator[str]:
    """Modules that a file imports, also inside functions; `a.b` for `from a import b` too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (module, *(f"{module}.{alias.name}" for alias in node.names))


def _checkpoint_file(entry: Entry) -> Iterator[str]:
    models = {Path(file).stem for file in entry.files if file.startswith("models/")}
    if entry.models and len(entry.own_checkpoints) != 1:
        yield (
            f"expected one model_zoo/{entry.stem}.pth, .pt or .ckpt, got "
            f"{', '.join(entry.checkpoints) or 'none'}"
        )
    for file in entry.checkpoints:
        if Path(file).stem not in models:
            yield f"expected models/{Path(file).stem}.py beside {file}, got none: rename it"


def _network(entry: Entry) -> nn.Module:
    """The entry's network with its weights, loaded strictly."""
    path = entry.root / entry.models[0]
    spec = importlib.util.spec_from_file_location(f"entry {path.stem}", path)
    assert spec and spec.loader  # as for any .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    line = entry.selected
    net = getattr(module, line.network.partition(":")[2])()
    load_weights(net, entry.checkpoint, named_weights(line.file)[1])
    if line.after_loading:
        call(net, line.after_loading)
    return net.eval().requires_grad_(False)


def _counters(entry: Entry) -> Iterator[str]:
    """Whether the weights load, restore, and cost what the published runs say."""
    net = _network(entry)
    with torch.inference_mode():
        sr = net(torch.rand(1, 3, 12, 20))
    if sr.shape != (1, 3, 12 * SCALE, 20 * SCALE) or not torch.isfinite(sr).all():
        yield f"expected finite (1, 3, 48, 80) of (1, 3, 12, 20), got {tuple(sr.shape)}, or NaN"
    runs = entry.runs()
    for key, value in asdict(efficiency.count(net)).items():
        counted = {run[key] for run in runs if run.get(key) is not None}
        if value is not None and (others := counted - {value}):
            yield f"expected the {key} of the published runs, {min(others):,}, got {value:,}"
    digest = sha256(entry.checkpoint)
    if not any(run["checkpoint"]["sha256"] == digest for run in runs):
        yield (
            f"expected a run of these weights in {PUBLISHED}/, got {len(runs)} of others: run "
            "test_demo.py and python -m utils.report.documents --publish FILE"
        )


def _no_images(entry: Entry) -> Iterator[str]:
    for file in (f for f in entry.files if Path(f).suffix.lower() in EXTENSIONS):
        if CHALLENGE_IMAGE.fullmatch(Path(file).stem):
            yield f"expected no image of the challenge, got {file}: remove it"
        elif not (file.startswith(f"{PUBLISHED}/") and file.endswith(".png")):
            yield f"expected no image but PNG pictures in {PUBLISHED}/, got {file}: remove it"


def _training_data(entry: Entry) -> Iterator[str]:
    """What can be verified of the comparison that train/export.py makes before it ships."""
    training, digest = entry.training(), sha256(entry.checkpoint)
    if training.get("sha256") != digest:
        yield (
            f"expected the training record of the checkpoint, sha256 {digest[:12]}, got that of "
            f"{str(training.get('sha256'))[:12]}: ship weights with train/export.py"
        )
    if not training.get("held_out_images_compared"):
        yield (
            "expected held-out images compared with the training data, got none: run "
            "train/export.py with --held_out DIR"
        )
    if not training["stages"]:
        yield "expected the stages of the training, got none: ship with train/export.py"
    for stage in _stages_behind(training["stages"]):
        name, data = stage["stage"]["name"], stage["data_summary"] or {}
        if stage["init"]:
            yield f"expected {name} to begin with weights of known training, got {stage['init']}"
        if (teacher := stage.get("teacher")) and not teacher["records"]:
            yield f"expected a teacher of known training for {name}, got one of unknown training"
        if data.get("fingerprint") != stage["data"]:
            yield f"expected a record of the images of {name}, got that of others or none"
        for folder in data.get("folders", ()):
            if part := held_out(Path(folder).parts):
                yield f"expected no validation or test images under {name}, got the folder {part}"
    if digest not in entry.text("model_zoo/README.md"):
        yield "expected the sha256 of the checkpoint in model_zoo/README.md, got another or none"


def _stages_behind(stages: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The records of stages, and those of their teachers."""
    for stage in stages:
        yield stage
        yield from _stages_behind((stage.get("teacher") or {"records": ()})["records"])


def _credits(entry: Entry) -> Iterator[str]:
    found = re.search(r"^#+ Credits$(.*?)(?=^#|\Z)", entry.text("README.md"), re.M | re.S)
    credits = " ".join(found[1].split()) if found else ""
    if missing := [name for name in CREDITED if name not in credits]:
        yield f"expected Credits in README.md that name {', '.join(missing)}, got none"


def _size(entry: Entry) -> Iterator[str]:
    size = sum((entry.root / file).stat().st_size for file in entry.sent) / 1e6
    if size > LIMIT_MB:
        yield f"expected at most {LIMIT_MB} MB of code and weights, got {size:.0f} MB"


def _runs_after_clone(entry: Entry) -> Iterator[str]:
    """Whether test_demo.py selects the model, and all that the sent code imports is sent."""
    source = entry.text("test_demo.py")
    for needed, is_there in (
        ("a function select_model", re.search(r"^def select_model\(", source, re.M)),
        (f"an import of models.{entry.stem}", f"models.{entry.stem}" in source),
        (entry.checkpoint.name, entry.checkpoint.name in source),
    ):
        if not is_there:
            yield f"expected {needed} in test_demo.py, got none: let select_model know the model"
    own = tuple(f"{folder}." for folder in FOLDERS)
    modules = {file.removesuffix(".py").replace("/", ".") for file in entry.sent}
    packages = {name.removesuffix(".__init__") for name in modules if name.endswith(".__init__")}
    missing = {}
    for file in (f for f in entry.sent if f.endswith(".py")):
        for name in filter(lambda name: name.startswith(own), _imports(entry.text(file))):
            if name not in modules | packages and name.rpartition(".")[0] not in modules:
                missing[name] = file
    for module, file in missing.items():
        yield f"expected {module}, which {file} imports, among the files, got none: git add it"


def _results(entry: Entry) -> Iterator[str]:
    digest = sha256(entry.checkpoint)
    runs = entry.runs(entry.results) if entry.results else []
    for run in runs:
        if run["checkpoint"]["sha256"] != digest:
            yield (
                f"expected results of the weights sent, got those of others on "
                f"{run['dataset']} in {entry.results}: run test_demo.py again"
            )
    for run in runs:
        if not is_complete(run):
            name = run["dataset"]
            yield (
                f"expected results of the {IMAGES[name]} images of {name}, got those of "
                f"{len(run['images'])} in {entry.results}: complete the set and run test_demo.py "
                "again"
            )
    for name, files in entry.images_sent().items():
        written: dict[str, set[str | None]] = {}  # digests; backends write images of one name
        for image in (i for run in runs if run["dataset"] == name for i in run["images"]):
            written.setdefault(image["name"], set()).add(image.get("png_sha256"))
        other = [file.name for file in files if sha256(file) not in written.get(file.stem, ())]
        missing = sorted(written.keys() - {file.stem for file in files})
        for what, found in (("others", other), ("none of", missing)):
            if found:
                yield (
                    f"expected the images of {name} that the runs in {entry.results} wrote, got "
                    f"{what} {', '.join(found[:3])}{', ..' * (len(found) > 3)}: remove them, and "
                    "run test_demo.py again without --no_images"
                )


Rule = Callable[[Entry], Iterator[str]]
FILE_RULES: dict[str, Rule] = {
    "one self-contained model file": _model_file,
    "one checkpoint, named like the model": _checkpoint_file,
    "no images but published pictures": _no_images,
    "credit to what the work is based on": _credits,
    f"a package of at most {LIMIT_MB} MB": _size,
}
MODEL_RULES: dict[str, Rule] = {
    "weights that load and cost what is claimed": _counters,
    "no training on validation or test images": _training_data,
    "test_demo.py works after a clone": _runs_after_clone,
    "results of the weights that are sent": _results,
}
