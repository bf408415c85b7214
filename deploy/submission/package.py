"""What is sent: code and results as ZIPs, the factsheet with its sources, the email."""

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from deploy.submission.entry import Entry
from deploy.submission.factsheet import sources
from deploy.submission.team import TEAM, email
from deploy.submission.typeset import pdf
from utils.command import UserError
from utils.files import whole_file, write_bytes
from utils.text import encoded
from utils.weights import NESTED_UNDER, named_weights, read_checkpoint

Files = Mapping[str, bytes | Path]  # contents, or where they lie, by name


def build(entry: Entry, output: Path, no_zip: bool = False) -> Iterator[str]:
    """Write the package, with a sentence on each part.

    Raises:
        UserError: an image is a link out of the run's folder.
        OSError: a file cannot be written.
        TexError: TeX does not set the factsheet.
    """
    tex = sources(entry)
    if not no_zip:
        yield _zipped(output / "code.zip", code_files(entry))
        yield _zipped(output / "factsheet.zip", tex)
        if results := result_files(entry):
            yield _zipped(output / "results.zip", results)
        else:
            (output / "results.zip").unlink(missing_ok=True)  # of an earlier call
            yield (
                "no results.zip: "
                + (
                    f"no images of {entry.name} in {entry.results}"
                    if entry.results
                    else "give --results SAVE_DIR, of a run of test_demo.py"
                )
            )
    for name, content in tex.items():
        write_bytes(output / "factsheet" / name, content)
    write_bytes(output / "email.txt", email(entry.team).encode())
    yield f"{output / 'email.txt'}: {entry.team.subject}"
    if missing := entry.team.missing:
        yield f"asked for in factsheet and email, missing in {TEAM}: {', '.join(missing)}"
    (output / "factsheet.pdf").unlink(missing_ok=True)
    if document := pdf(tex):
        write_bytes(output / "factsheet.pdf", document)
        yield f"{output / 'factsheet.pdf'}: {_size(output / 'factsheet.pdf')}"
    else:
        yield (
            "no factsheet.pdf: install pdflatex, in Debian by apt-get install "
            "texlive-latex-recommended texlive-pictures"
        )


def code_files(entry: Entry) -> Files:
    """What is unpacked over a clone of the organisers' template, where each name is new: network,
    weights and the lines for select_model in its places, and the whole repository in a folder."""
    own = (entry.models[0], entry.own_checkpoints[0])
    return {
        f"{entry.stem}_select_model.txt": branch(entry).encode(),
        **{file: entry.root / file for file in own},
        **{f"{entry.stem}/{file}": entry.root / file for file in entry.sent},
    }


def branch(entry: Entry) -> str:
    """What an entry adds to select_model of the organisers' test_demo.py, before its last else."""
    line = entry.selected
    module, _, network = line.network.partition(":")
    _, key = named_weights(line.file)
    saved = read_checkpoint(entry.checkpoint)
    key = key or next((key for key in NESTED_UNDER if key in saved), None)
    state = "torch.load(model_path)" + (f'["{key}"]' if key else "")
    text = f"""\
    elif model_id == {line.model_id}:
        from {module} import {network}
        name, data_range = f"{{model_id:02}}_{line.name}", {line.data_range}
        model_path = os.path.join("model_zoo", "{entry.checkpoint.name}")
        model = {network}()
        model.load_state_dict({state}, strict=True)
"""
    if (method := line.after_loading) is None:
        return text
    return f"""{text}\
        for module in [model] if hasattr(model, "{method}") else list(model.modules()):
            if hasattr(module, "{method}"):
                module.{method}()
"""


def result_files(entry: Entry) -> Files:
    """SR images by their names in the package, the challenge's sets or else all, and the
    template's results; nothing where there are no images. UserError if one is a link out of the
    run's folder."""
    if entry.results is None:
        return {}
    files = {
        f"{entry.name}/{name}/{path.name}": path
        for name, paths in entry.images_sent().items()
        for path in paths
    }
    tables = {name: entry.results / name for name in ("results.json", "results.txt")}
    files = files and files | {name: path for name, path in tables.items() if path.is_file()}
    for path in files.values():
        if not path.resolve().is_relative_to(entry.results.resolve()):
            raise UserError(
                f"expected files of {entry.results}, got a link out of it in {path}: put the file "
                "there"
            )
    return files


def _zipped(path: Path, files: Files) -> str:
    write_zip(path, files)
    return f"{path}: {len(files)} files, {_size(path)}"


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.2f} MB"


def write_zip(path: Path, files: Files) -> None:
    """Write files under their names in a ZIP; equal files make equal bytes."""
    with whole_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(encoded(name).decode())  # dated 1980
            info.create_system = 3  # Unix, on any system
            info.external_attr = 0o644 << 16
            compressed = name.endswith(".png")
            info.compress_type = zipfile.ZIP_STORED if compressed else zipfile.ZIP_DEFLATED
            content = files[name]
            archive.writestr(info, content.read_bytes() if isinstance(content, Path) else content)
