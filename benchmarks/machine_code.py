"""Executes the integer part of a kernel's machine code, to count what its warps issue and ask of memory.

No GPU is needed: control flow and addresses of the kernels depend on their parameters, the block and the thread alone,
so every value that is loaded from memory counts as zero, and tensor cores and stores do nothing. What is not understood
raises an error. The syntax is that of ``cuobjdump -sass`` for compute capability 8.0 and 9.0; lanes that part meet
again where the code says so (BSSY, BSYNC). The tests execute all of it, with memory and tensor cores
(tests/machine_execution.py).
"""

from __future__ import annotations

import re
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine_arithmetic import Arithmetic
from benchmarks.machine_registers import LANES, WORD, Instruction, Mask, signed, size_of

# By compute capability, where parameters begin in constant bank 0, and what the machine keeps of shared memory.
PARAMETERS, RESERVED = {8: 0x160, 9: 0x210}, {8: 0, 9: 0x400}
BUFFERS, BUFFER_APART = 0x700000000000, 0x10000000  # where tensors are said to lie in global memory
SECTOR = WAVEFRONT = 32  # bytes of global memory, words of shared memory


@dataclass
class Kernel:
    instructions: list[Instruction] = field(default_factory=list)
    jump_table: bytes = b""  # constant bank 2
    capability: int = 9

    @cached_property
    def index(self) -> dict[int, int]:
        return {instruction.address: i for i, instruction in enumerate(self.instructions)}


def read_kernels(cubin: Path, cuobjdump: str) -> dict[str, Kernel]:
    """The kernels of a .cubin file by their symbols."""
    text = subprocess.run([cuobjdump, "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
    kernels: dict[str, Kernel] = {}
    kernel = Kernel()
    capability = int(re.search(r"code for sm_(\d+)\d", text)[1])  # type: ignore[index]
    for line in text.splitlines():
        if found := re.search(r"Function : (\S+)", line):
            kernel = kernels.setdefault(found[1], Kernel(capability=capability))
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


def constants(
    kernel: Kernel,
    parameters: bytes,
    block: int,
    grid: tuple[int, int, int],
    tensors: Sequence[bool] = (True,) * 8,
) -> bytes:
    """Constant bank 0 of a launch: ``parameters``, and behind them pointers to those tensors that are there."""
    bank = bytearray(8192)
    struct.pack_into("<6I", bank, 0, block, 1, 1, *grid)
    first = PARAMETERS[kernel.capability]
    bank[first : first + len(parameters)] = parameters
    pointers = (first + len(parameters) + 7) // 8 * 8
    for i, is_there in enumerate(tensors):
        struct.pack_into("<Q", bank, pointers + 8 * i, BUFFERS + i * BUFFER_APART if is_there else 0)
    return bytes(bank)


class Warp(Arithmetic):
    """One warp of a launch, executed by ``steps()``."""

    # What does nothing here.
    nothing = frozenset("NOP BAR HMMA HMNMX2 F2FP LDGDEPBAR DEPBAR WARPSYNC MEMBAR FENCE CCTL ERRBAR".split())

    def __init__(self, kernel: Kernel, bank: bytes, first_thread: int, block: tuple[int, int, int]) -> None:
        super().__init__(bank, kernel.jump_table, first_thread, block)
        self.kernel = kernel
        self.wavefronts = 0  # of shared memory, which serves one a clock
        self.sectors = 0  # of global memory

    def steps(self, limit: int = 1_000_000) -> Iterator[str]:
        """The names of the issued instructions, each when it has been executed."""
        address = np.zeros(LANES, np.int64)
        alive = np.ones(LANES, bool)
        waits = np.full(LANES, -1)  # for the others of a barrier
        meet: dict[tuple[int, int], Mask] = {}  # of a barrier and a lane: who
        issued = 0

        def release() -> None:
            for lane in map(int, np.nonzero(alive & (waits >= 0))[0]):
                barrier = int(waits[lane])
                if barrier >= 0:
                    needed = meet[barrier, lane] & alive
                    if (waits[needed] == barrier).all():
                        waits[needed] = -1

        while alive.any():
            ready = alive & (waits < 0)
            if not ready.any() or issued > limit:
                raise RuntimeError("The warp does not come to an end.")
            now = int(address[ready].min())
            together = ready & (address == now)
            instruction = self.kernel.instructions[self.kernel.index[now]]
            issued += 1
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
            elif name not in self.nothing and self.active.any():
                self.execute(instruction)
            yield name

    @property
    def lanes(self) -> NDArray[np.int64]:
        """Those that take part in the instruction."""
        return np.nonzero(self.active)[0]

    def places(self, operand: str) -> NDArray[np.int64]:
        """The address in ``[R4+UR5+0x10]`` or ``desc[UR6][R2.64+0x10]``, of every lane."""
        text = operand[operand.rindex("[") + 1 : -1]
        if ".64" not in text:
            return self.address(text) & WORD
        total = np.zeros(LANES, object)
        for part in re.split(r"\+(?=-?\w)", text):
            total = total + (self.wide(part.removesuffix(".64")) if "R" in part else int(part, 16))
        return np.array([((int(v) + (1 << 63)) % (1 << 64)) - (1 << 63) for v in total], np.int64)

    def note_shared(self, places: NDArray[np.int64], size: int) -> None:
        """Counts the wavefronts of an access: words of one bank take turns, and so do half or quarter warps."""
        words = max(size // 4, 1)
        for at in np.split(places, range(LANES // words, len(places), LANES // words)):
            touched = np.unique((at[:, None] // 4 + np.arange(words)).ravel())
            self.wavefronts += int(np.bincount(touched % WAVEFRONT).max())

    def note_global(self, places: NDArray[np.int64], size: int) -> None:
        self.sectors += len(np.unique(places // SECTOR))

    def _lds(self, i: Instruction) -> None:
        self.note_shared(self.places(i.operands[1])[self.lanes], size_of(i))
        self._load(i)

    def _sts(self, i: Instruction) -> None:
        self.note_shared(self.places(i.operands[0])[self.lanes], size_of(i))

    def _ldsm(self, i: Instruction) -> None:
        self.note_shared(self.places(i.operands[1])[: 8 * int(i.opcode[-1])], 16)
        self._load(i)

    def _stsm(self, i: Instruction) -> None:
        self.note_shared(self.places(i.operands[0])[: 8 * int(i.opcode[-1])], 16)

    def _ldg(self, i: Instruction) -> None:
        self.note_global(self.places(i.operands[1])[self.lanes], size_of(i))
        self._load(i)

    def _stg(self, i: Instruction) -> None:
        self.note_global(self.places(i.operands[0])[self.lanes], size_of(i))

    def _ldgsts(self, i: Instruction) -> None:
        self.note_shared(self.places(i.operands[0])[self.lanes], size_of(i))
        copied = self.copied(i)
        self.note_global(self.places(i.operands[1])[copied], size_of(i))

    def copied(self, i: Instruction) -> NDArray[np.int64]:
        """The lanes whose asynchronous copy reads; the others write zeros."""
        wanted = self.test(i.operands[2]) if len(i.operands) > 2 else np.ones(LANES, bool)
        return np.nonzero(self.active & wanted)[0]

    def _shfl(self, i: Instruction) -> None:
        self.wavefronts += 1
        super()._shfl(i)

    def _movm(self, i: Instruction) -> None:
        self.wavefronts += 1


@dataclass(frozen=True)
class Count:
    """What the warps of one block issue, and ask of memory."""

    of_warps: list[int]
    until_first_barrier: list[int]
    by_name: Counter[str]
    wavefronts: int  # of shared memory
    sectors: int  # of global memory

    @property
    def total(self) -> int:
        return sum(self.of_warps)


def count(kernel: Kernel, bank: bytes, threads: int, block: tuple[int, int, int]) -> Count:
    """Executes every warp of a block by itself: none waits for another's values."""
    by_name: Counter[str] = Counter()
    of_warps, firsts, wavefronts, sectors = [], [], 0, 0
    for first_thread in range(0, threads, LANES):
        warp = Warp(kernel, bank, first_thread, block)
        names = list(warp.steps())
        by_name.update(names)
        of_warps.append(len(names))
        firsts.append(names.index("BAR") if "BAR" in names else len(names))
        wavefronts, sectors = wavefronts + warp.wavefronts, sectors + warp.sectors
    return Count(of_warps, firsts, by_name, wavefronts, sectors)
