"""Reads the machine code of a CUDA object file: instructions, loops, and what kind of work each one is.

A loop is what lies between the target of a backward branch and the branch. Which loop of a kernel is its
hottest is a guess from the code alone: the one with the most multiply-adds among its own instructions, which
are those that lie in no loop inside it. It is the innermost one wherever the multiply-adds are innermost.

Where loops tie, they are copies of one: for the usual case without tests, and for the rest with a branch wherever
something may be missing. The one that runs straight through is then taken, of which all instructions are issued
in every round; of the other, the code alone cannot say which are.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# The order is that of the table.
KINDS = (
    "fma",
    "mma",
    "shared load",
    "shared store",
    "global load",
    "global store",
    "conversion",
    "integer",
    "other",
)

_OPCODES = {
    "fma": {"FFMA", "FFMA2", "DFMA", "HFMA2"},
    "mma": {"HMMA", "IMMA", "DMMA", "QMMA", "OMMA", "HGMMA", "IGMMA", "QGMMA", "UTCHMMA", "UTCQMMA"},
    "shared load": {"LDS", "LDSM", "LDTM"},
    "shared store": {"STS", "STSM", "ATOMS"},
    # An asynchronous copy to shared memory is a load from global memory that passes no register.
    "global load": {"LDG", "LD", "LDGSTS", "UBLKCP", "UTMALDG"},
    "global store": {"STG", "ST", "RED", "REDG", "ATOMG", "UTMASTG", "UTMAREDG"},
    "conversion": {"F2F", "F2FP", "F2I", "F2IP", "I2F", "I2FP", "I2I", "FRND", "F2FI"},
    # With addresses, predicates and moves between registers. bfloat16 is widened by one of these too.
    "integer": {
        "BMSK", "CS2R", "FLO", "IABS", "IADD", "IADD3", "IDP", "IMAD", "IMNMX", "IMUL", "ISETP", "LEA",
        "LOP", "LOP3", "MOV", "MOVM", "P2R", "PLOP3", "POPC", "PRMT", "R2P", "R2UR", "S2R", "S2UR", "SEL",
        "SGXT", "SHF", "SHL", "SHR", "UBMSK", "UFLO", "UIADD3", "UIMAD", "UISETP", "ULEA", "ULOP3", "UMOV",
        "UPLOP3", "UPRMT", "USEL", "USHF", "USHL", "USHR", "VIADD", "VIADDMNMX", "VIMNMX", "VIMNMX3",
    },
}  # fmt: skip
_KIND_OF = {opcode: kind for kind, opcodes in _OPCODES.items() for opcode in opcodes}

# What leaves the order of the instructions.
_JUMPS = {"BRA", "BRX", "BRXU", "BREAK", "BSYNC", "CALL", "EXIT", "JMP", "JMX", "JMXU", "RET"}

_SECTION = re.compile(r"^\s*(?:\.section\s+\.text\.(?P<nvdisasm>[^,\s]+),|Function : (?P<cuobjdump>\S+))")
_LABEL = re.compile(r"^(\.L_\w+):")
_INSTRUCTION = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+\{?\s*(?:@!?U?P\w+\s+)?(?P<opcode>[A-Z][\w.]*)\s*(?P<operands>[^;]*);"
)
_TARGET = re.compile(r"`\((\.L_\w+)\)|\b0x([0-9a-f]+)\s*$")


class NoDisassemblerError(RuntimeError):
    """Neither nvdisasm nor cuobjdump was found."""


@dataclass(frozen=True)
class Instruction:
    """One instruction: where it is, what it does, and where it jumps to if it is a branch."""

    address: int
    opcode: str
    operands: str = ""
    target: int | None = None

    @property
    def kind(self) -> str:
        """One of ``KINDS``."""
        base = self.opcode.split(".")[0]
        # The compiler makes constants with a half multiply-add of zeros, and widens float16 by adding zero.
        if base == "HFMA2" and re.match(r"R\d+, -RZ, RZ,", self.operands):
            return "integer"
        if base == "HADD2" and ".F32" in self.opcode:
            return "conversion"
        return _KIND_OF.get(base, "other")


@dataclass(frozen=True)
class Loop:
    """From the target of a backward branch to the branch, without the instructions of loops inside it."""

    start: int
    end: int
    instructions: tuple[Instruction, ...]
    innermost: bool

    @property
    def mix(self) -> Counter[str]:
        """How many instructions of each kind, each counted once, whether a branch skips it or not."""
        return Counter(instruction.kind for instruction in self.instructions)

    @property
    def straight(self) -> bool:
        """Nothing in it is skipped or repeated: its only branch is the one back to its start."""
        jumps = [i for i in self.instructions if i.opcode.split(".")[0] in _JUMPS]
        return self.innermost and [jump.address for jump in jumps] == [self.end]

    @property
    def arithmetic(self) -> int:
        """Multiply-adds, those of the tensor cores included."""
        mix = self.mix
        return mix["fma"] + mix["mma"]

    @property
    def fma_share(self) -> float:
        """The share of multiply-adds in its instructions."""
        return self.arithmetic / len(self.instructions)


def find_disassembler() -> list[str]:
    """The command that prints the machine code of an object file whose path is put behind it.

    Looks on PATH, in CUDA_HOME, in the packages nvidia-cuda-nvdisasm and -cuobjdump, and in Triton.
    """
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    folders = [*os.environ.get("PATH", "").split(os.pathsep), str(Path(home, "bin"))]
    for package, places in {"nvidia": "*/bin", "triton": "backends/nvidia/bin"}.items():
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or []) if spec else []:
            folders += [str(folder) for folder in sorted(Path(root).glob(places))]
    path = os.pathsep.join(folders)
    if nvdisasm := shutil.which("nvdisasm", path=path):
        return [nvdisasm, "-c"]
    if cuobjdump := shutil.which("cuobjdump", path=path):
        return [cuobjdump, "-sass"]
    raise NoDisassemblerError(
        "Neither nvdisasm nor cuobjdump was found on PATH, in CUDA_HOME, or among the Python packages. "
        "They come with the CUDA toolkit; nvdisasm also with `pip install nvidia-cuda-nvdisasm`."
    )


def disassemble(command: list[str], cubin: Path) -> str:
    """The machine code of one object file as text."""
    result = subprocess.run([*command, str(cubin)], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} {cubin} failed:\n{result.stderr or result.stdout}")
    return result.stdout


def parse(text: str) -> dict[str, list[Instruction]]:
    """Every function of nvdisasm's or cuobjdump's output, by its symbol."""
    functions: dict[str, list[tuple[int, str, str]]] = {}
    labels: dict[str, dict[str, int]] = {}
    waiting: list[str] = []  # labels whose instruction has not come yet
    symbol = None
    for line in text.splitlines():
        if section := _SECTION.match(line):
            symbol = section["nvdisasm"] or section["cuobjdump"]
            functions[symbol], labels[symbol], waiting = [], {}, []
        elif symbol is None:
            continue
        elif label := _LABEL.match(line):
            waiting.append(label[1])
        elif match := _INSTRUCTION.match(line):
            address = int(match["address"], 16)
            labels[symbol].update(dict.fromkeys(waiting, address))
            waiting = []
            functions[symbol].append((address, match["opcode"], match["operands"].strip()))
    return {
        name: [Instruction(*row, _target(row[1], row[2], labels[name])) for row in rows]
        for name, rows in functions.items()
        if rows
    }


def _target(opcode: str, operands: str, labels: dict[str, int]) -> int | None:
    """Where a branch goes; None for other instructions and for computed branches."""
    if opcode.split(".")[0] not in ("BRA", "JMP"):
        return None
    found = _TARGET.search(operands)
    if found is None:
        return None
    return labels.get(found[1]) if found[1] else int(found[2], 16)


def loops(instructions: list[Instruction]) -> list[Loop]:
    """The loops of a function, in the order of their addresses."""
    ends: dict[int, int] = {}
    for instruction in instructions:
        # A branch to itself is how a function's code is padded, not a loop.
        if instruction.target is not None and instruction.target < instruction.address:
            ends[instruction.target] = max(ends.get(instruction.target, 0), instruction.address)
    spans = sorted(ends.items())
    result = []
    for start, end in spans:
        inside = [other for other in spans if other != (start, end) and start <= other[0] and other[1] <= end]
        own = tuple(
            instruction
            for instruction in instructions
            if start <= instruction.address <= end
            and not any(first <= instruction.address <= last for first, last in inside)
        )
        result.append(Loop(start, end, own, innermost=not inside))
    return result


def hottest(instructions: list[Instruction]) -> Loop | None:
    """The loop with the most multiply-adds of its own, or None where no loop has any."""
    return next(iter(hottest_copies(instructions)), None)


def hottest_copies(instructions: list[Instruction]) -> list[Loop]:
    """The hottest loop, then the others that have as many multiply-adds as it; nothing where no loop has any."""
    found = loops(instructions)
    most = max((loop.arithmetic for loop in found), default=0)
    copies = [loop for loop in found if loop.arithmetic == most > 0]
    return sorted(copies, key=lambda loop: (not loop.straight, not loop.innermost, len(loop.instructions)))


def most_threads(cubin: bytes) -> dict[str, int]:
    """The most threads a block of each kernel may have, by its symbol, as its launch bounds say.

    An object file keeps this in the section ``.nv.info.SYMBOL``: a list of attributes, of which number 5 is
    the most threads along each axis.
    """
    bounds = {}
    for name, content in _sections(cubin):
        if name.startswith(".nv.info."):
            for attribute, value in _attributes(content):
                if attribute == 0x05:
                    x, y, z = struct.unpack("<3I", value[:12])
                    bounds[name[len(".nv.info.") :]] = x * y * z
    return bounds


def _sections(elf: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of every section of a 64-bit little-endian ELF file."""
    if elf[:6] != b"\x7fELF\x02\x01":
        raise ValueError("This is not a 64-bit little-endian ELF file, as nvcc -cubin writes it.")
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count, names_index = struct.unpack_from("<3H", elf, 58)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + index * size) for index in range(count)]
    names_start = headers[names_index][4]
    for name, kind, _, _, offset, length in headers:
        begin = names_start + name
        text = elf[begin : elf.index(b"\0", begin)].decode()
        yield text, b"" if kind == 8 else elf[offset : offset + length]  # 8: takes no place in the file


def _attributes(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and value of every attribute that has a value with a length of its own."""
    place = 0
    while place + 4 <= len(content):
        form, attribute, size = struct.unpack_from("<BBH", content, place)
        place += 4
        if form == 4:
            yield attribute, content[place : place + size]
            place += size
