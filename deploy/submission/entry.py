"""What is entered: the repository's files, its weights and their records."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.submission.team import Team
from utils import networks
from utils.command import UserError
from utils.datasets import CHALLENGE
from utils.files import read_json
from utils.record import read_runs
from utils.report.training_tables import TRAINING
from utils.schema import misfit

NOT_SENT = ("train/state/", ".")  # of the repository: a run that goes on, what git and CI need
PUBLISHED = "results/published"


@dataclass(frozen=True)
class Entry:
    """What is entered: the repository's files, relative to `root`, and who sends them.

    `models` are those of the team's ID, of which there should be one, as of `own_checkpoints`;
    `results` is the --save_dir of a run of test_demo.py, if its images are sent.
    """

    root: Path
    team: Team
    files: tuple[str, ...]
    results: Path | None = None

    @property
    def models(self) -> list[str]:
        """Network files of the team's ID."""
        return [f for f in self.files if re.fullmatch(rf"models/team{self.team.id:02}_.*\.py", f)]

    @property
    def checkpoints(self) -> list[str]:
        """All files of weights."""
        return [f for f in self.files if re.fullmatch(r"model_zoo/.*\.(pth|pt|ckpt)", f)]

    @property
    def own_checkpoints(self) -> list[str]:
        """Files of weights that are called like the network's file."""
        return [file for file in self.checkpoints if Path(file).stem == self.stem]

    @property
    def stem(self) -> str:
        """The network's file without suffix: team23_LKDN."""
        return Path(self.models[0]).stem

    @property
    def name(self) -> str:
        """As in results: 23_LKDN."""
        return self.stem.removeprefix("team")

    @property
    def checkpoint(self) -> Path:
        """The file of weights that is sent."""
        return self.root / self.own_checkpoints[0]

    @property
    def selected(self) -> networks.Entry:
        """What test_demo.py knows of the network: the line of the team's ID in MODELS. Raises
        UserError where there is none."""
        for node in ast.walk(ast.parse(self.text("test_demo.py"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Entry":
                values = {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}
                line = networks.Entry(*map(ast.literal_eval, node.args), **values)
                if line.model_id == self.team.id:
                    return line
        raise UserError(f"expected a line Entry({self.team.id}, ..) in test_demo.py, got none")

    @property
    def sent(self) -> list[str]:
        """The files that are sent."""
        return [file for file in self.files if not file.startswith(NOT_SENT)]

    def text(self, file: str) -> str:
        """What stands in a file."""
        return (self.root / file).read_text(encoding="utf-8")

    def training(self) -> dict[str, Any]:
        """The record of the weights' training. Raises OSError or ValueError where there is none."""
        file = self.root / f"{PUBLISHED}/{self.name}_training.json"
        training = read_json(file)
        if problem := misfit(training, TRAINING):
            raise ValueError(f"{problem}: {file}")
        return training

    def images_sent(self) -> dict[str, list[Path]]:
        """SR images in `results` by set: the challenge's sets, or else all."""
        by_set: dict[str, list[Path]] = {}
        for path in sorted((self.results / self.name).glob("*/*.png") if self.results else ()):
            by_set.setdefault(path.parent.name, []).append(path)
        challenge = {name: by_set[name] for name in CHALLENGE if name in by_set}
        return challenge or by_set

    def runs(self, folder: Path | None = None) -> list[dict[str, Any]]:
        """Of this entry, published or in `folder`."""
        runs = read_runs(folder or self.root / PUBLISHED)
        return [run for run in runs if run["model"] == self.name]
