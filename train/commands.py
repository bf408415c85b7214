"""The commands that repeat what was trained."""

from dataclasses import asdict, dataclass, field
from typing import Any

from train.recipes import RECIPES, idle_numbers


@dataclass
class _Command:
    """What trains a stage. key: its data, options and first weights, which make it this one. used:
    after how many steps its weights were."""

    text: str
    run: str
    number: int
    key: tuple[str, ...]
    steps: int
    used: set[int] = field(default_factory=set)

    @property
    def file(self) -> str:
        return f"{self.run}/stage{self.number}.pt"

    def __str__(self) -> str:
        if self.used == {self.steps}:
            return self.text
        return f"{self.text}  # used after {' and '.join(map(str, sorted(self.used)))} steps"


def commands(records: list[dict[str, Any]]) -> list[str]:
    """The train.py command of each stage, without the numbers that are a recipe's; those of a
    stage's teacher before it, if no stage before has the same. A shell's comment says after how
    many steps a stage was used, if that was not at its end alone."""
    found: list[_Command] = []
    _find_commands(records, found)
    return list(map(str, found))


def _find_commands(records: list[dict[str, Any]], found: list[_Command]) -> str:
    """Add the commands of a chain of stages to those that were found; the last one's checkpoint."""
    run, before, file, at = "", 0, "", ""
    for trained in records:
        stage = trained["stage"]
        number = int(stage["name"].removeprefix("stage"))
        options = options_of(stage, number)
        if trained["seed"]:
            options.append(f"--seed {trained['seed']}")
        if teacher := trained.get("teacher"):
            taught_by = _find_commands(teacher["records"], found) or "TEACHER"
            options.append(f"--teacher {taught_by}")
        if first := (trained.get("data_summary") or {}).get("first"):
            options.append(f"--first {first}")
        key = (file, at, str(number), trained.get("data", ""), *options)
        if foreign := trained.get("init"):
            file, key = foreign["name"], (foreign["sha256"], *key)
        own = next((other for other in found if other.key == key), None)
        if own is None:  # else the same run, maybe earlier or later
            # The stage that follows by itself in a folder; else a run of its own.
            is_taken = any((other.run, other.number) == (run, number) for other in found)
            if number <= before or not run or is_taken:
                if file:
                    options.append(f"--init {file}")
                count = len({other.run for other in found})
                run = f"RUN{count + 1}" if count else "RUN"
            start = f"python train/train.py --stage {number} --data DIR --val VAL --out {run}"
            own = _Command(" ".join((start, *options)), run, number, key, stage["steps"])
            found.append(own)
        own.used.add(trained["step"])
        run, before, file, at = own.run, number, own.file, str(trained["step"])
    return file


def options_of(stage: dict[str, Any], number: int) -> list[str]:
    """What to give train.py for this stage: the recipe that it is, or its numbers, where they are
    not the factsheet's. Other recipes may change, and the command is to stay true."""
    for recipe, content in RECIPES.items():
        if number in content.stages and asdict(content.stages[number]) == stage:
            return [f"--recipe {recipe}"] if recipe != "factsheet" else []
    factsheet = asdict(RECIPES["factsheet"].stages[number])
    idle = idle_numbers(stage["optimizer"])
    return [
        f"--{name} {value}"
        for name, value in stage.items()
        if value != factsheet[name] and name not in idle
    ]
