"""Where Hopper's products find their matrices in shared memory, as far as machine code says.

A product's descriptor is 64 bits in two uniform registers: below, a place; above, the matrix's
layout, which is known when a kernel is compiled. So following constants through the code has to
find one of three layouts above for every product (PTX ISA, matrix descriptor). ptxas 12.8, which
Triton 3.6 brings, once added the layout to a register that holds something else: fp16 was wrong on
a GPU.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Swizzled in 128, 64 or 32 bytes, and the next eight rows 1024, 512 or 256 bytes on.
LAYOUTS = {0x40000040, 0x80000020, 0xC0000010}
PLACES = (0, 0x3FFF)  # the least and the most that the lower half begins with
REGISTER = re.compile(r"(U?R)(\d+)")
PREDICATE = re.compile(r"!?U?P(\d+|T)")
NUMBER = re.compile(r"-?0x[0-9a-f]+")
COPIES = {"UMOV", "MOV", "R2UR"}
MULTIPLIED = {"IMAD.U32", "IMAD.MOV.U32", "IMAD.MOV"}  # a copy where the factors are zero
SUMS = {"UIADD3", "UIADD3.X", "IADD3", "IADD3.X"}
WORD = 1 << 32


@dataclass(frozen=True)
class _Instruction:
    at: int
    name: str
    operands: tuple[str, ...]
    is_conditional: bool

    def targets(self) -> list[str]:
        """The registers that it writes."""
        behind = "SETP" not in self.name and bool(PREDICATE.fullmatch(self.operands[0]))
        first = self.operands[behind : behind + 1]
        target = REGISTER.fullmatch(first[0]) if first else None
        if target is None or self.name.startswith("ST"):
            return []
        count = 1
        if self.name.startswith("HGMMA"):
            count = int(self.name.split(".")[1].split("x")[1]) // 2
        elif self.name.startswith("LDSM") or ".128" in self.name:
            count = 4
        elif ".64" in self.name or "WIDE" in self.name or self.name.startswith("CS2R"):
            count = 2
        return [f"{target[1]}{int(target[2]) + i}" for i in range(count)]

    def sources(self) -> list[str]:
        """What it computes with, predicates left out."""
        return [operand for operand in self.operands[1:] if not PREDICATE.fullmatch(operand)]


def doubtful_products(sass: list[str]) -> list[str]:
    """The products, as `address*/ instruction`, of which some matrix has no layout that a product
    can have, or none that can be told.

    Args:
        sass: from deploy.bench.ahead.Compiled.
    """
    instructions = [_parse(line) for line in sass]
    changed_in_loop = _loops(instructions)
    known: dict[str, int] = {}
    doubtful = []
    for line, instruction in zip(sass, instructions, strict=True):
        for register in changed_in_loop.get(instruction.at, ()):
            known.pop(register, None)
        if instruction.name.startswith("HGMMA"):
            layouts = {known.get(register) for register in _upper_halves(instruction)}
            if not layouts <= LAYOUTS:
                doubtful.append(line)
        targets = instruction.targets()
        values = [None] * len(targets) if instruction.is_conditional else _run(instruction, known)
        for i, register in enumerate(targets):
            value = values[i] if i < len(values) else None
            if value is None:
                known.pop(register, None)
            else:
                known[register] = value
    return doubtful


def _parse(line: str) -> _Instruction:
    at, text = line.split("*/", 1)
    predicate, name, operands = re.match(  # type: ignore[union-attr]
        r"\s*(@!?U?P\w+ )?\s*(\S+)\s*(.*)", text
    ).groups()
    parts = tuple(part.strip().replace(".reuse", "") for part in operands.split(","))
    return _Instruction(int(at, 16), name, parts, bool(predicate))


def _loops(instructions: list[_Instruction]) -> dict[int, set[str]]:
    """Where a loop begins, the registers that are written in it."""
    found: dict[int, set[str]] = {}
    for jump in instructions:
        goal = next((o for o in jump.operands if NUMBER.fullmatch(o)), None)
        if jump.name.startswith("BRA") and goal and int(goal, 16) < jump.at:
            body = [i for i in instructions if int(goal, 16) <= i.at <= jump.at]
            written = found.setdefault(int(goal, 16), set())
            written.update(register for i in body for register in i.targets())
    return found


def _upper_halves(product: _Instruction) -> Iterator[str]:
    """The registers of the layouts: of the second matrix, and of the first, if that is not in
    registers."""
    descriptor = next(o for o in product.operands if o.startswith("gdesc["))
    first = int(re.findall(r"UR(\d+)", descriptor)[0])
    yield f"UR{first + 3}"
    if product.operands[1] == descriptor:
        yield f"UR{first + 1}"


def _run(instruction: _Instruction, known: dict[str, int]) -> list[int | None]:
    """What an instruction leaves in its registers, None where that is not known."""
    name, sources = instruction.name, instruction.sources()
    if name in COPIES or (name in MULTIPLIED and sources[:2] == ["RZ", "RZ"]):
        return [_value(sources[-1], known)]
    if name in SUMS:  # no carry: places are far below a word's end
        values = [_value(source, known) for source in sources]
        return [sum(v for v in values if v is not None) % WORD if None not in values else None]
    if name == "UIADD3.64":
        pairs = [_pair(source, known) for source in sources]
        ends = [
            sum(p[end] for p in pairs if p is not None) % (WORD * WORD) for end in (0, 1)
        ]  # of the least places, and of the most
        if None in pairs or ends[0] // WORD != ends[1] // WORD:
            return [None, None]
        return [ends[0] % WORD if ends[0] == ends[1] else None, ends[0] // WORD]
    if name.startswith("CS2R") and sources == ["SRZ"]:
        return [0, 0]
    return []


def _value(source: str, known: dict[str, int]) -> int | None:
    if source in ("RZ", "URZ"):
        return 0
    return int(source, 16) % WORD if NUMBER.fullmatch(source) else known.get(source)


def _pair(source: str, known: dict[str, int]) -> tuple[int, int] | None:
    """The least and the most that 64 bits in two registers are, or a constant, or their negative;
    None if the upper half is not known."""
    if source in ("RZ", "URZ"):
        return 0, 0
    if NUMBER.fullmatch(source):
        return int(source, 16), int(source, 16)
    negative, register = source.startswith("-"), source.lstrip("-")
    upper = known.get(f"UR{int(register[2:]) + 1}")
    if upper is None:
        return None
    lower = known.get(register)
    least, most = PLACES if lower is None else (lower, lower)
    least, most = least + upper * WORD, most + upper * WORD
    return (-most, -least) if negative else (least, most)
