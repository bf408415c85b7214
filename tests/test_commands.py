"""The commands that repeat what was trained."""

from dataclasses import asdict, replace
from typing import Any

from train.commands import commands
from train.options import parse, stages_of
from train.recipes import RECIPES, STAGES, Stage


def test_commands_of_stages_and_recipes() -> None:
    def trained(stage: Stage, seed: int = 0) -> dict[str, Any]:
        return {"stage": asdict(stage), "seed": seed, "step": stage.steps}

    start = "python train/train.py --stage {} --data DIR --val VAL --out {}"
    first, second = start.format(1, "RUN"), start.format(2, "RUN")
    assert commands([trained(STAGES[1]), trained(STAGES[2])]) == [first, second]
    cpu = RECIPES["cpu"].stages[1]
    longer = replace(STAGES[1], steps=5)
    assert commands([trained(cpu, 3), trained(longer), trained(RECIPES["fast"].stages[2])]) == [
        f"{first} --recipe cpu --seed 3",
        f"{start.format(1, 'RUN2')} --steps 5 --init RUN/stage1.pt",
        f"{start.format(2, 'RUN2')} --recipe fast",
    ]
    # A pupil of its own first stage, cooled down; then of a larger network, then of nobody's.
    begun, cooled = trained(longer), trained(replace(STAGES[2], steps=6))
    pupil = {**trained(cpu), "teacher": {"records": [begun, cooled]}}
    larger = trained(replace(cpu, channels=8))
    other = {**trained(cpu), "teacher": {"records": [larger]}}
    foreign = {**trained(cpu), "teacher": {"records": []}}
    assert commands([begun, pupil, other, foreign]) == [
        f"{first} --steps 5",
        f"{second} --steps 6",
        f"{start.format(1, 'RUN2')} --recipe cpu --teacher RUN/stage2.pt --init RUN/stage1.pt",
        commands([larger])[0].replace("RUN", "RUN3"),
        f"{start.format(1, 'RUN4')} --recipe cpu --teacher RUN3/stage1.pt --init RUN2/stage1.pt",
        f"{start.format(1, 'RUN5')} --recipe cpu --teacher TEACHER --init RUN4/stage1.pt",
    ]
    # Another end of the teacher's run has a folder of its own, as have other data.
    ending = {**trained(replace(STAGES[2], steps=7)), "teacher": {"records": [begun, cooled]}}
    assert commands([begun, ending])[1:] == [
        f"{second} --steps 6",
        f"{start.format(2, 'RUN2')} --steps 7 --teacher RUN/stage2.pt --init RUN/stage1.pt",
    ]
    assert commands([begun, {**begun, "data": "other"}])[1] == (
        f"{start.format(1, 'RUN2')} --steps 5 --init RUN/stage1.pt"
    )
    # So have two endings that began at other steps: README's way to cool a long run down.
    late = {**begun, "step": 4}
    ending["teacher"] = {"records": [late, cooled]}
    assert commands([begun, cooled, ending])[1:] == [
        f"{second} --steps 6",
        f"{start.format(2, 'RUN2')} --steps 6 --init RUN/stage1.pt",
        f"{start.format(2, 'RUN3')} --steps 7 --teacher RUN2/stage2.pt --init RUN/stage2.pt",
    ]
    # Used early, once by its own next stage and once as a teacher, and again at its end.
    early, later = {**begun, "step": 2}, {**pupil, "teacher": {"records": [{**begun, "step": 4}]}}
    assert commands([early, later])[0] == f"{first} --steps 5  # used after 2 and 4 steps"
    later["teacher"]["records"] = [begun]
    assert commands([early, later])[0] == f"{first} --steps 5  # used after 2 and 5 steps"


def test_the_command_of_a_stage_has_its_foreign_weights_and_its_share_of_the_images() -> None:
    def begun(sha256: str, first: int | None) -> dict[str, Any]:
        record = {"stage": asdict(STAGES[1]), "seed": 0, "step": STAGES[1].steps}
        init = {"name": "released.pth", "sha256": sha256}
        return {**record, "init": init, "data_summary": {"first": first}}

    line = "python train/train.py --stage 1 --data DIR --val VAL --out RUN"
    assert commands([begun("a", None)]) == [f"{line} --init released.pth"]
    assert commands([begun("a", 20)]) == [f"{line} --first 20 --init released.pth"]
    taught = {**begun("b", None), "teacher": {"records": [begun("a", None)]}}
    assert len(commands([taught])) == 2  # two files of one name


def test_the_command_of_a_stage_is_taken_whatever_its_recipe_had_for_others() -> None:
    adams = replace(RECIPES["cpu"].stages[1], optimizer="adam")  # with momentum and decay
    (line,) = commands([{"stage": asdict(adams), "seed": 0, "step": adams.steps}])
    (again,) = stages_of(parse(line.split()[2:])).values()
    numbers = ("lr", "batch", "patch", "loss", "schedule", "draw", "precision", "optimizer")
    assert [getattr(again, n) for n in numbers] == [getattr(adams, n) for n in numbers]
