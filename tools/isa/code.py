"""Reads what RADV prints of a compiled shader: statistics, and the program as instructions in loops.

Two spellings exist. Where the driver's LLVM knows the chip it is a disassembly (`v_add_u32_e32 v1, v2, v3`), else ACO's
own print of the same program (`v1: %7:v[1] = v_add_u32 %5:v[2], %6:v[3]`). Both become the same `Instruction`s.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_STATISTIC = re.compile(r"^([A-Z][A-Za-z /()-]+): (\d+)$", re.MULTILINE)
_BLOCK = re.compile(r"^(BB\d+):?\s*$")
_PRINTED = "After lowering to hw instructions:"
_DISASSEMBLED = "disasm:"
_TARGET = re.compile(r"^(s_cbranch\w*|s_branch) (?:block:)?(BB\d+)")
_SGPRS = re.compile(r"\bs(?:\[(\d+)(?:[-:](\d+))?\]|(\d+)\b)")
_TYPE = re.compile(r"\bs\d+: ")
_SUFFIX = re.compile(r"_(e32|e64|dpp|sdwa|e64_dpp|dpp8)$")
# Registers of 32 bits that one load fills, by the end of its name.
_WIDTHS = {"dwordx16": 16, "b512": 16, "dwordx8": 8, "b256": 8, "dwordx4": 4, "b128": 4, "dwordx3": 3, "b96": 3}
_WIDTHS |= {"dwordx2": 2, "b64": 2, "dword": 1, "b32": 1}
# Bytes of narrower ones.
_NARROW = {"u16": 2, "i16": 2, "ushort": 2, "sshort": 2, "b16": 2, "u8": 1, "i8": 1, "ubyte": 1, "sbyte": 1}


@dataclass(frozen=True)
class Instruction:
    """op: without encoding suffixes. block: number of its block. sources: SGPR ranges that a load or a
    copy reads, as (first, last)."""

    op: str
    block: int
    text: str
    defined: tuple[tuple[int, int], ...] = ()
    sources: tuple[tuple[int, int], ...] = ()

    @property
    def is_valu(self) -> bool:
        return self.op.startswith("v_")

    @property
    def load_bytes(self) -> int:
        """What a lane (of a scalar load: the wave) takes from memory; 0 for everything that is no load."""
        if not self.op.startswith(("buffer_load", "global_load", "s_buffer_load", "s_load")):
            return 0
        end = self.op.rpartition("_")[2]
        if end in _WIDTHS:
            return 4 * _WIDTHS[end]
        return next((size for name, size in _NARROW.items() if name in self.op), 4)

    @property
    def is_scalar(self) -> bool:
        return self.op.startswith("s_")


@dataclass
class Program:
    """A shader as compiled. loops: (first, last) blocks of each. statistics: by the driver's names."""

    instructions: list[Instruction]
    loops: list[tuple[int, int]]
    statistics: dict[str, int] = field(default_factory=dict)

    def inside(self, loop: tuple[int, int] | None) -> list[Instruction]:
        """Instructions of the loop that are in no loop within it; of the program outside all loops for None."""
        first, last = loop or (0, 1 << 30)
        inner = [other for other in self.loops if other != loop and first <= other[0] and other[1] <= last]
        found = [i for i in self.instructions if first <= i.block <= last]
        return [i for i in found if not any(a <= i.block <= b for a, b in inner)]


def read_program(text: str) -> Program:
    """What stands between two markers on the driver's stderr. ValueError where no compute shader is described."""
    if "SHADER STATS" not in text:
        raise ValueError("the driver printed no statistics")
    body, _, rest = text.partition("*** SHADER STATS ***")
    statistics = {name.strip(): int(value) for name, value in _STATISTIC.findall(rest)}
    at = body.rfind(_PRINTED)
    lines = body[at if at >= 0 else body.rfind(_DISASSEMBLED) :].split("\n")[1:]
    instructions: list[Instruction] = []
    branches: list[tuple[int, int]] = []
    numbers: dict[str, int] = {}
    block = 0
    for line in lines:
        if label := _BLOCK.match(line.strip()):
            block = numbers.setdefault(label[1], len(numbers))
            continue
        for instruction in _instructions(line, block):
            instructions.append(instruction)
            if (target := _TARGET.match(instruction.text)) and target[2] in numbers:
                branches.append((numbers[target[2]], block))  # backwards: forward targets are not known yet
    if not instructions:
        raise ValueError("the driver printed no program")
    loops: dict[int, int] = {}
    for first, last in branches:
        loops[first] = max(last, loops.get(first, last))
    return Program(instructions, sorted(loops.items()), statistics)


def _instructions(line: str, block: int) -> list[Instruction]:
    """One, two where the processor issues two at once, none of an empty line or a comment."""
    if not line.startswith("\t"):
        return []
    text = line.split(";")[0].strip()
    if not text or text.startswith(("/*", "//")):
        return []
    if "%" in text or " = " in text or "block:" in text or "imm:" in text:
        return [_printed(half.strip(), block) for half in text.split(" :: ")[:1]]
    return [_disassembled(text.split(" :: ")[0].strip(), block)]


def _printed(text: str, block: int) -> Instruction:
    """`s4: %8:s[12-15] = s_load_dwordx4 %6:s[2-3], 32`."""
    left, equals, right = text.partition(" = ")
    if not equals:
        left, right = "", text
    op, _, operands = right.partition(" ")
    return Instruction(_plain(op), block, right, _ranges(left), _read(op, operands))


def _disassembled(text: str, block: int) -> Instruction:
    """`s_load_b128 s[12:15], s[2:3], 0x20`; the first operand is what is written, but of stores and the like."""
    name, _, operands = text.partition(" ")
    first, _, others = operands.partition(",")
    if "store" in name or name.startswith(("s_cmp", "s_wait", "s_branch", "s_cbranch", "ds_")):
        first, others = "", operands
    return Instruction(_plain(name), block, text, _ranges(first), _read(name, others))


def _plain(op: str) -> str:
    return _SUFFIX.sub("", op) if op.startswith("v_") else op


def _read(op: str, operands: str) -> tuple[tuple[int, int], ...]:
    """SGPRs that an instruction reads, of those that `bindings` asks: most others are vector instructions."""
    return _ranges(operands) if "load" in op or op.startswith("s_mov") else ()


def _ranges(text: str) -> tuple[tuple[int, int], ...]:
    """SGPRs that a text names: `s[12-15]`, `s[12:15]`, `s[7]` or `s7`; `s4:` is a type of ACO's."""
    if "s" not in text:
        return ()
    found = []
    for first, last, single in _SGPRS.findall(_TYPE.sub("", text)):
        start = int(first or single)
        found.append((start, int(last) if last else start))
    return tuple(found)


def bindings(program: Program) -> list[int | None]:
    """Of every instruction that loads from a buffer, the number of the binding, None of the others.

    A binding's descriptor lies at 16 times its number behind the pointer that the kernel starts with; it is loaded into
    four scalar registers (or with its neighbours into more) before it is used.
    """
    held: dict[int, int] = {}  # register -> which word behind the pointer it holds
    found: list[int | None] = []
    for instruction in program.instructions:
        number = None
        if "buffer_load" in instruction.op:
            for first, last in instruction.sources:
                if last - first == 3 and first in held:
                    number = held[first] // 4
        found.append(number)
        _follow(instruction, held)
    return found


def _follow(instruction: Instruction, held: dict[int, int]) -> None:
    """What the registers hold after an instruction."""
    copied = None
    if instruction.op in ("s_mov_b32", "s_mov_b64") and instruction.sources:
        copied = held.get(instruction.sources[0][0])
    offset = _offset(instruction) if instruction.op.startswith("s_load_") else None
    for first, last in instruction.defined:
        for register in range(first, last + 1):
            held.pop(register, None)
            if offset is not None and offset % 16 == 0 and instruction.load_bytes >= 16:
                held[register] = offset // 4 + register - first
            elif copied is not None:
                held[register] = copied + register - first


def _offset(instruction: Instruction) -> int | None:
    end = instruction.text.rpartition(",")[2].strip()
    match = re.match(r"(?:offset:|imm:)?(0x[0-9a-f]+|\d+)\b", end)
    return int(match[1], 0) if match else 0 if end == "null" else None
