"""The team's file and the published runs into the factsheet: LaTeX, and PDF where a TeX is."""

import re
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.command import UserError
from utils.report.comparison import by_set, is_scored, published_scores, scores_of
from utils.report.summary import COLUMNS, FACTSHEET_ROW, is_plain, row
from utils.text import machine, number

TEMPLATE = Path(__file__).with_suffix(".tex")
PLACEHOLDER = re.compile(r"@@(\w+)@@")
UNKNOWN = "not measured"
TEX = {
    "pdflatex": ("-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape"),
    "tectonic": (),
    "latexmk": ("-pdf", "-interaction=nonstopmode", "-halt-on-error"),
}
# What LaTeX reads as more than the character, or its default font has another sign for.
ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    **{character: "\\" + character for character in "_%&#${}"},
    "-": "-{}",
}


class TexError(ValueError):
    """A factsheet that TeX does not set; the message holds its first complaint."""


@dataclass(frozen=True)
class Team:
    """Who sends the submission. `email` and `affiliation` may be empty."""

    title: str
    name: str
    id: int
    members: tuple[str, ...]
    affiliation: str
    email: str


def read_team(path: Path) -> Team:
    """The team of a team.toml.

    Raises:
        UserError: it is missing, no TOML, or a field is missing, unknown or wrong.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"expected the team in {path}, got {error}") from error
    fields = Team.__dataclass_fields__
    if misnamed := sorted(set(content) ^ set(fields)):
        raise UserError(
            f"expected the fields {', '.join(fields)} in {path}, got "
            f"{', '.join(content) or 'none'}: see to {', '.join(misnamed)}"
        )
    wrong = {
        "title, a text": not _is_text(content["title"]),
        "name, a text": not _is_text(content["name"]),
        "id, a number of 0 to 99": type(content["id"]) is not int or not 0 <= content["id"] <= 99,
        "members, a list of names": not isinstance(content["members"], list)
        or not content["members"]
        or not all(map(_is_text, content["members"])),
        "affiliation, a text or empty": not isinstance(content["affiliation"], str),
        "email, an address or empty": not isinstance(content["email"], str)
        or not re.fullmatch(r"([^@\s]+@[^@\s]+\.[^@\s]+)?", content["email"]),
    }
    if broken := [field for field, is_wrong in wrong.items() if is_wrong]:
        raise UserError(f"expected in {path}: {'; '.join(broken)}; got another value")
    return Team(**{**content, "members": tuple(content["members"])})


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def latex(
    team: Team, model: str, sha256: str, training: Mapping[str, Any], runs: Sequence[dict[str, Any]]
) -> str:
    """The factsheet.

    Args:
        model: the entry's name in results, 23_LKDN.
        sha256: of the checkpoint that is sent.
        training: the record of its training, which train/export.py writes.
        runs: published runs of test_demo.py with it.
    """
    values = {
        "TITLE": escaped(team.title),
        "TEAM": escaped(team.name),
        "ID": f"{team.id:02}",
        "MEMBERS": escaped(", ".join(team.members)),
        "AFFILIATION": escaped(team.affiliation or "not given"),
        "EMAIL": escaped(team.email or "not given"),
        "STEM": escaped(f"team{model}"),
        "NAME": escaped(model),
        "CLASS": escaped(model.partition("_")[2]),
        "SHA256": sha256,
        "COMPARED": escaped(str(training.get("held_out_images_compared", UNKNOWN))),
        "COUNTS": escaped(_counts(runs)),
        "STAGES": _stages(training),
        "TRAINED": escaped(_trained(training)),
        "COMMANDS": "\n".join(rf"\command{{{escaped(c)}}}" for c in training.get("commands", ())),
        "TABLE1": _table1(runs),
        "TABLE2": _table2(model, runs),
        "DEVICES": escaped(
            "; ".join(sorted({machine(run["environment"]) for run in runs})) or "no machine yet"
        ),
    }
    # In one pass: what stands in the data is never taken for a placeholder.
    return PLACEHOLDER.sub(lambda match: values[match[1]], TEMPLATE.read_text(encoding="utf-8"))


def escaped(text: str) -> str:
    """A text as LaTeX that sets it as it is."""
    return "".join(ESCAPES.get(character, character) for character in " ".join(text.split()))


def _counts(runs: Sequence[dict[str, Any]]) -> str:
    if not runs:
        return UNKNOWN
    run = runs[0]
    return (
        f"{run['num_parameters']:,} parameters, {run['flops'] / 1e9:.4f} G multiply-adds, "
        f"{run['activations'] / 1e6:.4f} M activations and {run['num_conv']} convolutions"
    )


def _stages(training: Mapping[str, Any]) -> str:
    """How the weights were trained: a row a stage."""
    rows = [
        (
            "",
            "HR patch",
            "batch",
            "loss",
            "optimiser",
            "learning rate",
            "steps",
            "EMA",
            "seed",
            "images",
            "hours",
        )
    ]
    for index, record in enumerate(training.get("stages", ()), 1):
        stage, data = record["stage"], record.get("data_summary") or {}
        rows.append(
            (
                f"{index}. {stage['name']}",
                f"{stage['patch']}x{stage['patch']}",
                str(stage["batch"]),
                stage["loss"].upper(),
                stage["optimizer"].capitalize(),
                f"{stage['lr']:g}, {stage['schedule']}",
                f"{record['step']:,}",
                str(stage["ema"]),
                str(record["seed"]),
                str(data.get("images", "not known")),
                f"{sum(work['minutes'] for work in record['history']) / 60:.1f}",
            )
        )
    return tabular(rows)


def _trained(training: Mapping[str, Any]) -> str:
    """One sentence on data and machine, one on the score."""
    records = training.get("stages", ())
    if not records:
        return ""
    data = records[-1].get("data_summary") or {}
    devices = {machine(work["environment"]): 0 for r in records for work in r["history"]}
    sentences = (
        f"Trained on {data.get('images', 'an unknown number of')} images "
        f"({number(data.get('megapixels'), 0, 'unknown')} megapixels, fingerprint "
        f"{records[-1]['data'][:12]}) by {'; '.join(devices)}."
    )
    if scores := training.get("validation"):
        sentences += (
            f" The last score on validation images of its own: "
            f"{scores[-1]['val_psnr']:.3f} dB on RGB, {scores[-1]['val_psnr_y']:.3f} on Y."
        )
    return sentences


def _table1(runs: Sequence[dict[str, Any]]) -> str:
    """Y-PSNR / SSIM on the benchmark sets: published, measured, bicubic."""
    plain = {run["dataset"]: run for run in runs if is_plain(run) and is_scored(run)}
    cells = {
        "factsheet of 2023": published_scores(),
        "these weights": {name: scores_of(run, 2) for name, run in plain.items()},
        "bicubic (Y-PSNR)": {n: number(run["ave_psnr_y_bicubic"], 2) for n, run in plain.items()},
    }
    return tabular(by_set(cells))


def _table2(model: str, runs: Sequence[dict[str, Any]]) -> str:
    """Efficiency: the row of 2023, and every published run of these weights."""
    measured = [row(run) for run in runs]
    if not any(run["dataset"] == "DIV2K_valid" for run in runs):
        counts = measured[0][3:6] if measured else (UNKNOWN,) * 3
        convs = measured[0][-1] if measured else UNKNOWN
        missing = (f"{model}, DIV2K_valid", UNKNOWN, UNKNOWN, *counts, UNKNOWN, convs)
        measured.insert(0, missing)
    return tabular([COLUMNS, FACTSHEET_ROW, *measured])


def tabular(rows: Sequence[Sequence[str]]) -> str:
    """A table, its first row the header, its first column to the left."""
    head, *body = (" & ".join(map(escaped, row)) + r" \\" for row in rows)
    columns = "l" + "c" * (len(rows[0]) - 1)
    line = r"\hline\rule{0pt}{2.4ex}%"  # with room below it
    lines = [rf"\begin{{tabular}}{{{columns}}}", line, head]
    lines += [line, *body] if body else []
    return "\n".join([*lines, r"\hline", r"\end{tabular}"])


def pdf(source: str) -> bytes | None:
    """LaTeX as a PDF; None where no TeX is installed.

    Raises:
        TexError: TeX does not set it.
    """
    program = next((name for name in TEX if shutil.which(name)), None)
    if program is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "factsheet.tex")
        file.write_text(source, encoding="utf-8")
        try:
            done = subprocess.run(
                [program, *TEX[program], file.name],
                cwd=folder,
                timeout=300,
                capture_output=True,
                text=True,
                errors="replace",
            )
        except subprocess.TimeoutExpired as error:
            raise TexError(
                f"expected {program} to end in {error.timeout:.0f} s, it did "
                "not: set factsheet.tex by hand"
            ) from error
        result = file.with_suffix(".pdf")
        if done.returncode or not result.exists():
            lines = (done.stdout + done.stderr).splitlines()
            complaint = next(
                (line for line in lines if line.startswith(("!", "error"))), "no message"
            )
            raise TexError(
                f"expected {program} to set the factsheet, got {complaint}: look at factsheet.tex"
            )
        return result.read_bytes()
