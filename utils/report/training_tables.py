"""Training as tables and curve: trials, speed, and how far ways to compute agree."""

from collections.abc import Sequence
from typing import Any

from utils.datasets import SCALE
from utils.record import ENVIRONMENT, FIGURE
from utils.schema import Kind
from utils.text import device_name, in_code, machine, markdown, number, revision

Record = dict[str, Any]

SCORE: dict[str, Kind] = {"step": int, "val?": str, "val_psnr": FIGURE, "val_psnr_y": FIGURE}
VAL = "val"  # the images that most trials are scored on, and older ones do not name
STAGE: dict[str, Kind] = {
    "stage": {
        "name": str,
        **dict.fromkeys(("steps", "batch", "patch"), int),
        "*": (int, float, str, bool, None),
    },
    "step": int,
    "seed": range(2**63),  # as train.py takes
    "data": str,
    "history": [{"minutes": float, "environment": {"device": str, "threads": int}}],
    "teacher?": (
        {"sha256": str, "records": [{"stage": {"*": (int, float, str, bool, None)}}]},
        None,
    ),
    "data_summary?": ({"images": int, "megapixels": float}, {"*": range(0)}, None),  # or empty
}
# What train/export.py, trial.py, throughput.py and agreement.py record.
TRAINING: dict[str, Kind] = {
    "sha256": str,
    "stages": [STAGE, ...],
    "commands": [str],
    "validation": [{"stage": str, **SCORE}],
}
TRIAL: dict[str, Kind] = {
    **dict.fromkeys(("trial", "note", "command"), str),
    **STAGE,
    "minutes": float,
    "validation": [{**SCORE, "others?": {"*": {"val_psnr_y": FIGURE}}}],
    "failed": (str, None),
}
SPEEDS = ("steps_per_s", "steps_per_s_p20", "steps_per_s_p80", "patches_per_s", "loss")
FAILED: dict[str, Kind] = {"name": str, "failed": str}
THROUGHPUT: dict[str, Kind] = {
    "environment": {**ENVIRONMENT, "torch": str},
    **dict.fromkeys(("batch", "patch", "steps"), int),
    "rungs": [({"name": str, **dict.fromkeys(SPEEDS, float)}, FAILED)],
}
AGREEMENT: dict[str, Kind] = {
    "environment": ENVIRONMENT,
    "steps": int,
    "runs": [({"name": str, "losses": [[int, float], ...], "val_psnr_y": FIGURE}, FAILED), ...],
}


def trials(records: Sequence[Record]) -> str:
    """Every recorded training run: its numbers, its price and its score."""
    rows = [
        [
            "trial",
            "step",
            "LR megapixels",
            "seed",
            "minutes",
            "device",
            "validation Y-PSNR [dB]",
            "structure",
            "note",
        ]
    ]
    for trial in records:
        stage, last = trial["stage"], (trial["validation"] or [{}])[-1]
        score = number(last.get("val_psnr_y"), 3)
        other = f" on {last['val']}" if last.get("val", VAL) != VAL else ""
        structure = last.get("others", {}).get("val_structure", {})
        rows.append(
            [
                trial["trial"],
                f"{trial['step']} of {stage['steps']}",
                f"{lr_pixels(trial) / 1e6:.0f}",
                str(trial["seed"]),
                f"{trial['minutes']:.0f}",
                devices(trial),
                f"{score} at {last.get('step', 0)}{other}",
                number(structure.get("val_psnr_y"), 3),
                f"diverged; {trial['note']}" if trial["failed"] else trial["note"],
            ]
        )
    lines = [in_code(f"    {trial['trial']}: {trial['command']}") for trial in records]
    return "\n".join([markdown(rows), "", *lines])


def lr_pixels(record: Record) -> float:
    """LR pixels that a stage's steps have seen."""
    stage = record["stage"]
    return float(record["step"] * stage["batch"] * (stage["patch"] / SCALE) ** 2)


def throughput(records: Sequence[Record]) -> str:
    """Training speed, a row a change, for each machine that was measured."""
    parts = []
    for record in records:
        environment = record["environment"]
        rows = [["", "steps/s (20th, 80th percentile)", "patches/s", "loss"]]
        for row in record["rungs"]:
            if "failed" in row:
                rows.append([row["name"], f"failed: {row['failed']}", "", ""])
                continue
            spread = f"({row['steps_per_s_p20']:.3g}, {row['steps_per_s_p80']:.3g})"
            rows.append(
                [
                    row["name"],
                    f"{row['steps_per_s']:.3g} {spread}",
                    f"{row['patches_per_s']:.3g}",
                    f"{row['loss']:.5f}",
                ]
            )
        parts.append(
            f"{record['batch']} patches of {record['patch']}x{record['patch']} HR a step, "
            f"{machine(environment)}, torch "
            f"{environment['torch']}, {environment['date'][:10]}, commit "
            f"{revision(environment)}; loss after {record['steps']} steps:\n\n" + markdown(rows)
        )
    return "\n\n".join(parts) or "not measured"


def agreement(records: Sequence[Record]) -> str:
    """The same training steps computed in several ways."""
    parts = []
    for record in records:
        environment, runs = record["environment"], record["runs"]
        rows = [
            [
                "",
                f"loss of the last 10 of {record['steps']} steps",
                "largest difference of a loss",
                "validation Y-PSNR [dB]",
            ]
        ]
        first = runs[0].get("losses", [])
        for run in runs:
            if "failed" in run:
                rows.append([run["name"], f"failed: {run['failed']}", "", ""])
                continue
            pairs = zip(run["losses"], first, strict=False)
            apart = max((100 * abs(a / b - 1) for (_, a), (_, b) in pairs if b), default=None)
            rows.append(
                [
                    run["name"],
                    f"{run['losses'][-1][1]:.5f}",
                    number(apart, 2) + (" %" if apart is not None else ""),
                    number(run["val_psnr_y"], 3),
                ]
            )
        parts.append(
            f"{device_name(environment)}, {environment['date'][:10]}, commit "
            f"{revision(environment)}:\n\n{markdown(rows)}"
        )
    return "\n\n".join(parts) or "not measured"


def curve(training: Record) -> dict[str, list[tuple[float, float, str]]]:
    """The validations of each stage over the steps of all, none of a stage that recorded none.

    The log that a training record is made of is that of its last folder: the validations belong to
    the last stages.

    Returns:
        By the stage's number and name: steps of all stages in thousands, PSNR in dB, a description.
    """
    if not (stages := training.get("stages", [])):
        return {}
    rest: list[Record] = list(training["validation"])
    scores: list[list[Record]] = []
    for record in reversed(stages):
        own: list[Record] = []
        while rest and rest[-1]["stage"] == record["stage"]["name"]:
            if own and rest[-1]["step"] >= own[0]["step"]:
                break  # of a stage of this name before it
            own.insert(0, rest.pop())
        scores.insert(0, own)
    curves, done = {}, 0
    for i, (record, entries) in enumerate(zip(stages, scores, strict=True), 1):
        name = f"{i}. {record['stage']['name']}, {record['step']} steps"
        curves[name if entries else f"{name}: no validation was recorded"] = [
            (
                (done + entry["step"]) / 1000,
                entry["val_psnr"],
                f"step {entry['step']}: {entry['val_psnr']:.3f} dB",
            )
            for entry in entries
            if entry["val_psnr"] is not None
        ]
        done += record["step"]
    return curves


def shipped(training: Record) -> str:
    """How the shipped weights came about: every number of every stage."""
    if not training:
        return "not trained yet"
    lines = [markdown(stages(training)), "", f"sha256 of the file: `{training['sha256']}`"]
    if of_these := score(training):
        lines.append(f"\nValidation images{of_these}.")
    return "\n".join(lines)


def score(training: Record) -> str:
    """The last score of the last stage on validation images, with their name and its step where it
    is not the last; empty where only stages before were scored."""
    final, last = training["stages"][-1], (training.get("validation") or [{}])[-1]
    if last.get("stage") != final["stage"]["name"]:
        return ""
    of = f" of {last['val']}" if "val" in last else ""
    at = f" at step {last['step']}" if last["step"] != final["step"] else ""
    rgb, luma = (number(last[key], 3) for key in ("val_psnr", "val_psnr_y"))
    return f"{of}{at}: {rgb} dB on RGB, {luma} dB on Y"


def stages(training: Record) -> list[list[str]]:
    """A column a stage, a row each of its numbers."""
    records = training["stages"]
    rows = [["", *(f"{i}. {record['stage']['name']}" for i, record in enumerate(records, 1))]]
    rows += [
        [name.replace("_", " "), *(str(record["stage"].get(name, "")) for record in records)]
        for name in records[0]["stage"]
        if name != "name"
    ]
    for name, describe in (
        ("steps done", lambda record: str(record["step"])),
        ("seed", lambda record: str(record["seed"])),
        ("data", _data),
        ("teacher", _teacher),
        ("minutes", lambda record: f"{sum(w['minutes'] for w in record['history']):.0f}"),
        ("device", devices),
    ):
        rows.append([name, *(describe(record) for record in records)])
    return rows


def _data(record: Record) -> str:
    text = f"fingerprint {record['data'][:12]}"
    if data := record.get("data_summary"):
        text = f"{data['images']} images, {data['megapixels']:.0f} megapixels, {text}"
    return text


def _teacher(record: Record) -> str:
    teacher = record.get("teacher")
    if not teacher:
        return "none"
    last = teacher["records"][-1]["stage"] if teacher["records"] else {}
    size = f"{last.get('channels', 42)} channels, {last.get('blocks', 5)} blocks"
    return f"{size}, sha256 {teacher['sha256'][:12]}"


def commands(training: Record) -> str:
    """The commands that trained the shipped weights."""
    lines = training.get("commands", ["not trained yet"])
    return "\n".join(in_code(f"    {line}") for line in lines)


def validation(training: Record) -> str:
    """The score of the fused average on the validation images over the steps."""
    rows = [["stage", "step", "PSNR (RGB) [dB]", "PSNR (Y) [dB]"]]
    rows += [
        [
            line["stage"],
            str(line["step"]),
            number(line["val_psnr"], 3),
            number(line["val_psnr_y"], 3),
        ]
        for line in training.get("validation", [])
    ]
    return markdown(rows)


def devices(record: Record) -> str:
    """The machines that a run was trained on."""
    environments = [work["environment"] for work in record["history"]]
    return "; ".join(dict.fromkeys(map(machine, environments)))
