"""Executes the integer part of a kernel's machine code, to count the instructions that its warps issue.

No GPU is needed: control flow and addresses of the kernels depend on their parameters, the block and the thread alone,
so every value that is loaded from memory counts as zero, and tensor cores and stores do nothing. What is not understood
raises an error. The syntax is that of ``cuobjdump -sass`` for compute capability 9.0; lanes that part meet again where
the code says so (BSSY, BSYNC).
"""

from __future__ import annotations

import re
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.machine_arithmetic import LANES, Arithmetic, Instruction, Mask, signed

PARAMETERS = 0x210  # where they begin in constant bank 0
NOTHING = frozenset(
    "NOP BAR HMMA HMNMX2 STS STG ST STSM MOVM F2FP LDGSTS LDGDEPBAR DEPBAR WARPSYNC MEMBAR FENCE CCTL ERRBAR".split()
)


@dataclass
class Kernel:
    instructions: list[Instruction] = field(default_factory=list)
    jump_table: bytes = b""  # constant bank 2

    @cached_property
    def index(self) -> dict[int, int]:
        return {instruction.address: i for i, instruction in enumerate(self.instructions)}


def read_kernels(cubin: Path, cuobjdump: str) -> dict[str, Kernel]:
    """The kernels of a .cubin file by their symbols."""
    text = subprocess.run([cuobjdump, "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
    kernels: dict[str, Kernel] = {}
    kernel = Kernel()
    for line in text.splitlines():
        if found := re.search(r"Function : (\S+)", line):
            kernel = kernels.setdefault(found[1], Kernel())
        elif found := re.match(r"\s+/\*([0-9a-f]{4,5})\*/\s+(?:@(!?U?P[\dT])\s+)?(\S+)\s*(.*?)\s*;", line):
            operands = tuple(part.strip() for part in found[4].split(",")) if found[4] else ()
            kernel.instructions.append(
                Instruction(int(found[1], 16), tuple(found[3].split(".")), operands, found[2] or "PT")
            )
    for symbol, table in jump_tables(cubin.read_bytes()):
        kernels[symbol].jump_table = table
    return kernels


def jump_tables(elf: bytes) -> Iterator[tuple[str, bytes]]:
    """The sections .nv.constant2.* of a cubin."""
    start = struct.unpack_from("<Q", elf, 40)[0]
    count, names = struct.unpack_from("<HH", elf, 60)
    sections = [struct.unpack_from("<IIQQQQIIQQ", elf, start + 64 * i) for i in range(count)]
    for section in sections:
        begin = sections[names][4] + section[0]
        name = elf[begin : elf.index(b"\0", begin)].decode()
        if name.startswith(".nv.constant2."):
            yield name.removeprefix(".nv.constant2."), elf[section[4] : section[4] + section[5]]


def constants(parameters: bytes, block: int, grid: tuple[int, int, int]) -> bytes:
    """Constant bank 0 of a launch: ``parameters``, and behind them some pointers."""
    bank = bytearray(8192)
    struct.pack_into("<6I", bank, 0, block, 1, 1, *grid)
    bank[PARAMETERS : PARAMETERS + len(parameters)] = parameters
    pointers = (PARAMETERS + len(parameters) + 7) // 8 * 8
    for i in range(8):
        struct.pack_into("<Q", bank, pointers + 8 * i, 0x700000000000 + i * 0x10000000)
    return bytes(bank)


class Warp(Arithmetic):
    """One warp of a launch; ``run()`` executes it to its end."""

    def __init__(self, kernel: Kernel, bank: bytes, first_thread: int, block: tuple[int, int, int]) -> None:
        super().__init__(bank, kernel.jump_table, first_thread, block)
        self.kernel = kernel

    def run(self, limit: int = 1_000_000) -> list[int]:
        """The issued instructions, as places in ``kernel.instructions``."""
        address = np.zeros(LANES, np.int64)
        alive = np.ones(LANES, bool)
        waits = np.full(LANES, -1)  # for the others of a barrier
        meet: dict[tuple[int, int], Mask] = {}  # of a barrier and a lane: who
        issued: list[int] = []

        def release() -> None:
            for lane in map(int, np.nonzero(alive & (waits >= 0))[0]):
                barrier = int(waits[lane])
                if barrier >= 0:
                    needed = meet[barrier, lane] & alive
                    if (waits[needed] == barrier).all():
                        waits[needed] = -1

        while alive.any():
            ready = alive & (waits < 0)
            if not ready.any() or len(issued) > limit:
                raise RuntimeError("The warp does not come to an end.")
            now = int(address[ready].min())
            together = ready & (address == now)
            place = self.kernel.index[now]
            instruction = self.kernel.instructions[place]
            issued.append(place)
            self.active = together & self.test(instruction.predicate)
            address[together] = now + 16
            name, operands = instruction.name, instruction.operands
            if name == "EXIT":
                alive &= ~self.active
                release()
            elif name == "BSSY":
                for lane in map(int, np.nonzero(self.active)[0]):
                    meet[int(operands[0][1:]), lane] = self.active.copy()
            elif name == "BSYNC":
                waits[self.active] = int(operands[0][1:])
                release()
            elif name == "BRA":
                condition = self.active & self.test(operands[0] if len(operands) > 1 else "PT")
                address[condition] = int(operands[-1], 16)
            elif name == "CALL":
                address[self.active] = int(operands[-1], 16)
            elif name == "RET":
                address[self.active] = self.get(operands[0].split()[0])[self.active]
            elif name == "BRX":
                register, offset = operands[0].split()
                target = now + 16 + signed(self.get(register)) + int(offset, 16)
                address[self.active] = target[self.active]
            elif name not in NOTHING and self.active.any():
                self.execute(instruction)
        return issued


@dataclass(frozen=True)
class Count:
    """What the warps of one block issue."""

    of_warps: list[int]
    until_first_barrier: list[int]
    by_name: Counter[str]

    @property
    def total(self) -> int:
        return sum(self.of_warps)


def count(kernel: Kernel, bank: bytes, threads: int, block: tuple[int, int, int]) -> Count:
    """Executes every warp of a block by itself: none waits for another's values."""
    by_name: Counter[str] = Counter()
    of_warps, firsts = [], []
    for first_thread in range(0, threads, LANES):
        names = [kernel.instructions[place].name for place in Warp(kernel, bank, first_thread, block).run()]
        by_name.update(names)
        of_warps.append(len(names))
        firsts.append(names.index("BAR") if "BAR" in names else len(names))
    return Count(of_warps, firsts, by_name)
