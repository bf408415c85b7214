"""Where Hopper's products find their matrices in shared memory, as far as machine code says.

A product's descriptor is 64 bits in two uniform registers: below, a place; above, the matrix's
layout, which is known when a kernel is compiled. So following constants through the code has to
find one of three layouts above for every product (PTX ISA, matrix descriptor). ptxas 12.8, which
Triton 3.6 brings, once added the layout to a register that holds something else: fp16 was wrong on
a GPU.
"""

import re
from collections.abc import Iterator

from deploy.bench.sass import NUMBER, Instruction, loops, parse

# Swizzled in 128, 64 or 32 bytes, and the next eight rows 1024, 512 or 256 bytes on.
LAYOUTS = {0x40000040, 0x80000020, 0xC0000010}
PLACES = (0, 0x3FFF)  # the least and the most that the lower half begins with
REGISTER = re.compile(r"(U?R)(\d+)")
PREDICATE = re.compile(r"!?U?P(\d+|T)")
COPIES = {"UMOV", "MOV", "R2UR"}
MULTIPLIED = {"IMAD.U32", "IMAD.MOV.U32", "IMAD.MOV"}  # a copy where the factors are zero
SUMS = {"UIADD3", "UIADD3.X", "IADD3", "IADD3.X"}
WORD = 1 << 32


def doubtful_products(sass: list[str]) -> list[str]:
    """The products, as `address*/ instruction`, of which some matrix has no layout that a product
    can have, or none that can be told.

    Args:
        sass: from deploy.bench.ahead.Compiled.
    """
    instructions = parse(sass)
    changed_in_loop: dict[int, set[str]] = {}
    for first, last in loops(instructions):
        body = [i for i in instructions if first <= i.at <= last]
        changed_in_loop.setdefault(first, set()).update(r for i in body for r in _targets(i))
    known: dict[str, int] = {}
    doubtful = []
    for line, instruction in zip(sass, instructions, strict=True):
        for register in changed_in_loop.get(instruction.at, ()):
            known.pop(register, None)
        if instruction.name.startswith("HGMMA"):
            layouts = {known.get(register) for register in _upper_halves(instruction)}
            if not layouts <= LAYOUTS:
                doubtful.append(line)
        targets = _targets(instruction)
        values = [] if instruction.is_conditional else _run(instruction, known)
        for register in targets:
            known.pop(register, None)
        found = zip(targets, values, strict=False)
        known.update((register, value) for register, value in found if value is not None)
    return doubtful


def _targets(instruction: Instruction) -> list[str]:
    """The registers that it writes, or more."""
    name, operands = instruction.name, instruction.operands
    behind = "SETP" not in name and bool(PREDICATE.fullmatch(operands[0]))
    first = operands[behind : behind + 1]
    target = REGISTER.fullmatch(first[0]) if first else None
    if target is None or name.startswith("ST"):
        return []
    count = 1
    if name.startswith("HGMMA"):
        count = int(name.split(".")[1].split("x")[1]) // 2
    elif name.startswith("LDSM") or ".128" in name:
        count = 4
    elif ".64" in name or "WIDE" in name or name.startswith("CS2R"):
        count = 2
    return [f"{target[1]}{int(target[2]) + i}" for i in range(count)]


def _upper_halves(product: Instruction) -> Iterator[str]:
    """The registers of the layouts: of the second matrix, and of the first, if that is not in
    registers."""
    descriptor = next(o for o in product.operands if o.startswith("gdesc["))
    first = int(re.findall(r"UR(\d+)", descriptor)[0])
    yield f"UR{first + 3}"
    if product.operands[1] == descriptor:
        yield f"UR{first + 1}"


def _run(instruction: Instruction, known: dict[str, int]) -> list[int | None]:
    """What an instruction leaves in its registers, as far as it is known."""
    name = instruction.name
    sources = [o for o in instruction.operands[1:] if not PREDICATE.fullmatch(o)]
    if name in COPIES or (name in MULTIPLIED and sources[:2] == ["RZ", "RZ"]):
        return [_value(sources[-1], known)]
    if name in SUMS:  # no carry: places are far below a word's end
        values = [v for source in sources if (v := _value(source, known)) is not None]
        return [sum(values) % WORD] if len(values) == len(sources) else []
    if name == "UIADD3.64":
        pairs = [pair for source in sources if (pair := _pair(source, known))]
        # Of the least places, and of the most.
        least, most = (sum(pair[end] for pair in pairs) % WORD**2 for end in (0, 1))
        if len(pairs) < len(sources) or least // WORD != most // WORD:
            return []
        return [least % WORD if least == most else None, least // WORD]
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
