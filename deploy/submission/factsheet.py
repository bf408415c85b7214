"""The team's file and the published runs into the LaTeX sources of the factsheet."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.submission.entry import PUBLISHED, Entry
from deploy.submission.team import Team
from deploy.submission.typeset import escaped, tabular
from utils.datasets import SCALE
from utils.files import sha256
from utils.record import read_runs
from utils.report import training_tables
from utils.report.comparison import BASELINE_2023, by_set, is_scored, published_scores, scores_of
from utils.report.documents import AUTHORS_FILE
from utils.report.summary import COLUMNS, FACTSHEET_ROW, FACTSHEET_SET, is_plain, row
from utils.text import machine, number

Run = dict[str, Any]  # or the record of a training
HERE = Path(__file__).parent
PLACEHOLDER = re.compile(r"@@(\w+)@@")
UNKNOWN = "not measured"
STAGES_TOGETHER = 5  # columns of a table of stages
# The organisers' row of the same entry, in the report of NTIRE 2023.
REPORT_ROW = ("report, DIV2K_valid, the organisers' GPU", "29.01", "117.33", *FACTSHEET_ROW[3:])
PICTURE = "astronaut.png"  # of results/published/, by utils.report.pictures
TEAM_ROWS = {
    "leader": "Leader",
    "address": "Leader's address",
    "phone": "Leader's phone number",
    "email": "Leader's email",
    "website": "Website",
    "affiliation": "Affiliation",
    "sponsors": "Affiliation with sponsors of NTIRE 2023",
    "users": "User names on CodaLab",
    "entries": "Entries on CodaLab",
    "best": "Best score",
    "code": "Code",
    "results": "Results",
}


def sources(entry: Entry) -> dict[str, bytes]:
    """The files that make the factsheet, by name: factsheet.tex and what it takes in."""
    picture = entry.root / PUBLISHED / PICTURE
    has_picture = f"{PUBLISHED}/{PICTURE}" in entry.files
    card = entry.text("model_zoo/README.md")
    data = re.search(r"^The data are .+?(?=\n\n)", card, re.M | re.S)
    source = latex(
        entry.team,
        entry.name,
        sha256(entry.checkpoint),
        entry.training(),
        read_runs(entry.root / PUBLISHED),
        data[0] if data else "",
        has_picture,
    )
    files = {
        "factsheet.tex": source.encode(),
        "architecture.tex": (HERE / "architecture.tex").read_bytes(),
    }
    return files | ({PICTURE: picture.read_bytes()} if has_picture else {})


def latex(
    team: Team,
    model: str,
    digest: str,
    training: Run,
    published: Sequence[Run],
    data: str = "",
    has_picture: bool = False,
) -> str:
    """The factsheet.

    Args:
        model: the entry's name in results, 23_LKDN.
        digest: sha256 of the checkpoint that is sent.
        training: the record of its training, which train/export.py writes.
        published: runs of test_demo.py; those of other weights are compared, or left out.
        data: the training images in words.
        has_picture: whether PICTURE lies beside it.
    """
    runs = [run for run in published if run["checkpoint"]["sha256"] == digest]
    baseline = [run for run in published if run["model"] == BASELINE_2023]
    missing = "; ".join(team.missing)
    values = {
        "TITLE": escaped(team.title),
        "TEAM": escaped(team.name),
        "ID": f"{team.id:02}",
        "MEMBERS": escaped(", ".join(team.others)),
        "DETAILS": "\n".join(
            rf"{label} & {escaped(getattr(team, field))} \\"
            for field, label in TEAM_ROWS.items()
            if getattr(team, field)
        ),
        "MISSING": escaped(missing and f"Still to be given by the team: {missing}."),
        "SUBJECT": escaped(team.subject),
        "ORGANISERS": escaped(", ".join(team.organisers)),
        "COMMENTS": escaped(team.comments),
        "STEM": escaped(f"team{model}"),
        "NAME": escaped(model),
        "CLASS": escaped(model.partition("_")[2]),
        "SHA256": digest,
        "COMPARED": escaped(str(training.get("held_out_images_compared", UNKNOWN))),
        "COUNTS": escaped(_counts(runs)),
        "RATIO": escaped(_ratio(runs, baseline)),
        "STAGES": _stages(training),
        "TRAINED": escaped(_trained(training)),
        "TEACHER": escaped(_teacher(training)),
        "CURVE": _curve(training),
        "COMMANDS": "\n".join(rf"\command{{{escaped(c)}}}" for c in training.get("commands", ())),
        "DATA": escaped(data.replace("`", "") or "They are named in model_zoo/README.md."),
        "TABLE1": _table1(runs, published),
        "TABLE2": _table2(model, runs, baseline),
        "GAINS": escaped(_gains(runs)),
        "PICTURE": rf"\includegraphics[width=0.8\linewidth]{{{PICTURE}}}" if has_picture else "",
        "DEVICES": escaped(
            "; ".join(sorted({machine(run["environment"]) for run in [*runs, *baseline]}))
            or "no machine yet"
        ),
    }
    # In one pass: what stands in the data is never taken for a placeholder.
    template = (HERE / "factsheet.tex").read_text(encoding="utf-8")
    return PLACEHOLDER.sub(lambda match: values[match[1]], template)


def _counts(runs: Sequence[Run]) -> str:
    """What the network costs, by the challenge's counters and at the size that papers count at."""
    if not runs:
        return f"{UNKNOWN}."
    run = runs[0]
    papers = run["flops"] * (1280 * 720 / SCALE**2) / 256**2 / 1e9
    return (
        f"{run['num_parameters']:,} parameters, {run['flops'] / 1e9:.4f} G multiply-adds, "
        f"{run['activations'] / 1e6:.4f} M activations and {run['num_conv']} convolutions. At an "
        f"output of 1280x720, the size at which papers count, that is {papers:.2f} G multiply-adds."
    )


def _ratio(runs: Sequence[Run], baseline: Sequence[Run]) -> str:
    """The network's cost beside the baseline's."""
    if not runs or not baseline:
        return ""
    ours, theirs = runs[0], baseline[0]
    if not all(theirs[count] for count in ("num_parameters", "flops", "activations")):
        return ""
    name = ours["model"].partition("_")[2]
    return (
        f"{name} has {ours['num_parameters'] / theirs['num_parameters']:.1%} of the parameters of "
        f"the baseline RFDN, {ours['flops'] / theirs['flops']:.1%} of its multiply-adds and "
        f"{ours['activations'] / theirs['activations']:.2f} times its activations."
    )


def _gains(runs: Sequence[Run]) -> str:
    """How far these weights are above bicubic, on each set."""
    parts = [
        f"{run['ave_psnr_y'] - run['ave_psnr_y_bicubic']:+.2f} dB of Y-PSNR on {run['dataset']}"
        for run in runs
        if is_plain(run) and is_scored(run) and run["ave_psnr_y_bicubic"] is not None
    ]
    return f"Over bicubic these weights gain {', '.join(parts)}." if parts else ""


def _stages(training: Run) -> str:
    """How the weights were trained: a column a stage, tables of at most STAGES_TOGETHER."""
    if not training.get("stages"):
        return UNKNOWN
    rows = training_tables.stages(training)
    tables = []
    for first in range(1, len(rows[0]), STAGES_TOGETHER):
        part = [[row[0], *row[first : first + STAGES_TOGETHER]] for row in rows]
        count = len(part[0]) - 1
        width = 0.86 / max(count, 2) - 0.02  # of which the space between columns takes some
        columns = rf">{{\raggedright\arraybackslash}}p{{{width:.3f}\linewidth}}" * count
        tables.append(tabular(part, "l" + columns))
    # Where there are many stages, digests are the widest words.
    half = r"\b([0-9a-f]{6})(?=[0-9a-f]{6}\b)"
    return re.sub(half, r"\1\\allowbreak{}", "\n\n\\medskip\\noindent\n".join(tables))


def _trained(training: Run) -> str:
    """The last score on validation images."""
    score = training_tables.score(training) if training.get("stages") else ""
    return f"The last score on validation images{score}." if score else ""


def _teacher(training: Run) -> str:
    """Whether anything but images was learned from."""
    if not any(record.get("teacher") for record in training.get("stages", ())):
        return "without a teacher"
    return (
        "and so is the teacher of the stages that have one in the table, by the same code; its "
        "training is in the record, too"
    )


def _curve(training: Run) -> str:
    """The validations over the steps as an axis of pgfplots, a line a stage."""
    lines = []
    for name, points in training_tables.curve(training).items():
        if not points:
            continue
        dots = " ".join(f"({x:.3f},{psnr:.4f})" for x, psnr, _ in points)
        lines.append(
            rf"\addplot+[mark size=1pt] coordinates {{{dots}}};\addlegendentry{{{escaped(name)}}}"
        )
    return "\n".join(lines)


def _table1(runs: Sequence[Run], published: Sequence[Run]) -> str:
    """Y-PSNR / SSIM on the benchmark sets: published, the authors' weights, these, bicubic."""
    authors = [run for run in published if run["checkpoint"]["name"] == AUTHORS_FILE]
    ours, theirs = (
        {run["dataset"]: run for run in group if is_plain(run) and is_scored(run)}
        for group in (runs, authors)
    )
    cells = {
        "LKDN, published (2023)": published_scores(),
        "authors' weights, here": {name: scores_of(run, 2) for name, run in theirs.items()},
        "these weights": {name: scores_of(run, 2) for name, run in ours.items()},
        "bicubic (Y-PSNR)": {n: number(run["ave_psnr_y_bicubic"], 2) for n, run in ours.items()},
    }
    costs = [("Params [M]", "Multi-Adds [G]"), (FACTSHEET_ROW[3], FACTSHEET_ROW[4])]
    for group in (authors, runs):
        costs.append((row(group[0])[3], row(group[0])[4]) if group else (UNKNOWN, UNKNOWN))
    costs.append(("", ""))
    rows = zip(by_set(cells), costs, strict=True)
    return tabular([(scores[0], *cost, *scores[1:]) for scores, cost in rows])


def _table2(model: str, runs: Sequence[Run], baseline: Sequence[Run]) -> str:
    """Efficiency: the rows of 2023, every published run of these weights, and the baseline's."""
    measured = [row(run) for run in runs]
    if not any(run["dataset"] == FACTSHEET_SET for run in runs):
        counts = measured[0][3:6] if measured else (UNKNOWN,) * 3
        convs = measured[0][-1] if measured else UNKNOWN
        missing = (f"{model}, {FACTSHEET_SET}", UNKNOWN, UNKNOWN, *counts, UNKNOWN, convs)
        measured.insert(0, missing)
    columns = tuple(column.replace("FLOPs", "Multi-Adds") for column in COLUMNS)
    return tabular([columns, FACTSHEET_ROW, REPORT_ROW, *measured, *map(row, baseline)])
