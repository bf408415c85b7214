"""A kernel's machine code, read: one instruction a line, each with its address before it."""

import re
from dataclasses import dataclass

NUMBER = re.compile(r"-?0x[0-9a-f]+")


@dataclass(frozen=True)
class Instruction:
    """text: without its predicate, if it has one; is_conditional says so."""

    at: int
    text: str
    is_conditional: bool

    @property
    def name(self) -> str:
        """As in LDG.E.128."""
        return self.text.split(maxsplit=1)[0]

    @property
    def operands(self) -> list[str]:
        """What it writes, then what it reads."""
        _, _, rest = self.text.partition(" ")
        return [operand.strip().replace(".reuse", "") for operand in rest.split(",")]


def parse(sass: list[str]) -> list[Instruction]:
    """The instructions of `deploy.bench.ahead.Compiled.sass`."""
    instructions = []
    for line in sass:
        at, text = line.split("*/", 1)
        bare = re.sub(r"^@!?U?P\w+\s+", "", text.strip())
        instructions.append(Instruction(int(at, 16), bare, bare != text.strip()))
    return instructions


def loops(instructions: list[Instruction]) -> list[tuple[int, int]]:
    """The first and the last address of each loop, in the order of their ends."""
    found = []
    for jump in instructions:
        goal = next((int(o, 16) for o in jump.operands if NUMBER.fullmatch(o)), jump.at)
        if jump.name.startswith("BRA") and goal < jump.at:
            found.append((goal, jump.at))
    return found
