"""An instruction of the machine code, and the registers that its operands name (see machine_code.py)."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

Lanes = NDArray[np.int64]  # 32-bit values of the lanes of a warp, 0 to 2**32 - 1
Mask = NDArray[np.bool_]

LANES = 32
WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class Instruction:
    address: int
    opcode: tuple[str, ...]  # LDS.128 is ("LDS", "128")
    operands: tuple[str, ...]
    predicate: str = "PT"

    @property
    def name(self) -> str:
        return self.opcode[0]

    @cached_property
    def values(self) -> tuple[str, ...]:
        """The operands without the predicates that the instruction writes or reads."""
        return tuple(operand for operand in self.operands if not re.fullmatch(r"!?U?P[\dT]", operand))


def size_of(i: Instruction) -> int:
    """The bytes that a lane of a load or store moves."""
    return 16 if "128" in i.opcode else 8 if "64" in i.opcode else 2 if "U16" in i.opcode else 4


@cache
def plain(operand: str) -> str:
    """Without what says how it is read."""
    return re.sub(r"\.(reuse|64|H0_H0|U32)", "", operand)


@cache
def following(register: str, further: int) -> str:
    """The register so many behind this one."""
    prefix, number = re.fullmatch(r"(U?R)(\d+)", register).groups()  # type: ignore[union-attr]
    return f"{prefix}{int(number) + further}"


def signed(value: Lanes) -> Lanes:
    return (value ^ 0x80000000) - 0x80000000


def as_float(value: Lanes) -> NDArray[np.float32]:
    return value.astype(np.uint32).view(np.float32)


def of_float(value: NDArray[np.float32]) -> Lanes:
    return value.astype(np.float32).view(np.uint32).astype(np.int64)


class Registers:
    """Of one warp: a value for each lane, and what an operand stands for."""

    def __init__(
        self, bank: bytes, jump_table: bytes, first_thread: int, block: tuple[int, int, int]
    ) -> None:
        self.bank, self.jump_table, self.block = bank, jump_table, block
        self.thread = np.arange(first_thread, first_thread + LANES, dtype=np.int64)
        self.registers: dict[str, Lanes] = {}
        self.local: dict[str, Lanes] = {}
        self.predicates: dict[str, Mask] = {}
        self.active = np.ones(LANES, bool)

    def constant(self, bank: bytes, address: Lanes) -> Lanes:
        found = [struct.unpack_from("<I", bank, a)[0] if 0 <= a <= len(bank) - 4 else 0 for a in address]
        return np.array(found, np.int64)

    def get(self, operand: str) -> Lanes:
        operand = plain(operand)
        if operand in self.registers:
            return self.registers[operand]
        if operand[0] in "-~|" and not re.match(r"-[\d.]|-0x|-INF", operand):
            if operand[0] == "|":
                return np.abs(signed(self.get(operand.strip("|"))))
            value = self.get(operand[1:])
            return (-value if operand[0] == "-" else ~value) & WORD
        if re.fullmatch(r"U?R\d+", operand):  # nothing is there yet
            return np.zeros(LANES, np.int64)
        if operand in ("RZ", "URZ"):
            return np.zeros(LANES, np.int64)
        if found := re.fullmatch(r"c\[0x0\]\[(.*)\]", operand):
            return self.constant(self.bank, self.address(found[1]))
        if operand.startswith("SR_"):
            return self.special(operand[3:])
        if "0x" in operand or operand.lstrip("-").isdigit():
            return np.full(LANES, int(operand, 0) & WORD, np.int64)
        value = np.float32(operand.replace("QNAN", "nan"))
        return of_float(np.full(LANES, value, np.float32))

    def address(self, text: str) -> Lanes:
        """Of ``R4.X8+UR5+0x10``."""
        total = np.zeros(LANES, np.int64)
        for part in re.split(r"\+(?=-?\w)", text):
            name, _, factor = part.partition(".X")
            total = total + self.get(name) * int(factor or 1)
        return signed(total & WORD)

    def special(self, name: str) -> Lanes:
        fixed = dict(zip(("CTAID.X", "CTAID.Y", "CTAID.Z"), self.block, strict=True)) | {"CgaCtaId": 0}
        if name == "TID.X":
            return self.thread
        return np.full(LANES, fixed[name], np.int64)

    def float_of(self, operand: str) -> NDArray[np.float32]:
        negative = operand.startswith("-") and "R" in operand
        plain = operand.lstrip("-") if negative else operand
        value = np.abs(as_float(self.get(plain.strip("|")))) if "|" in plain else as_float(self.get(plain))
        return -value if negative else value

    def wide(self, operand: str) -> NDArray[np.object_]:
        """64 bits, of two registers."""
        operand = operand.replace(".reuse", "")
        low = self.get(operand).astype(object)
        if re.fullmatch(r"U?R\d+", operand):
            return low + (self.get(following(operand, 1)).astype(object) << 32)
        if found := re.fullmatch(r"c\[0x0\]\[(0x[0-9a-f]+)\]", operand):
            return low + (self.get(f"c[0x0][{int(found[1], 16) + 4:#x}]").astype(object) << 32)
        return low

    def test(self, operand: str) -> Mask:
        name = operand.lstrip("!")
        value = (
            np.ones(LANES, bool)
            if name in ("PT", "UPT")
            else self.predicates.get(name, np.zeros(LANES, bool))
        )
        return ~value if operand.startswith("!") else value

    def put(self, register: str, value: NDArray, further: int = 0) -> None:
        if register in ("RZ", "URZ"):
            return
        value = np.array([int(v) & WORD for v in value], np.int64) if value.dtype == object else value & WORD
        name = following(register, further)
        if name[0] == "U":
            self.registers[name] = np.full(LANES, value[np.argmax(self.active)], np.int64)
        else:
            self.registers[name] = np.where(self.active, value, self.get(name))

    def put_wide(self, register: str, value: NDArray[np.object_]) -> None:
        self.put(register, value)
        self.put(register, np.array([int(v) >> 32 for v in value], object), 1)

    def put_predicate(self, name: str, value: Mask) -> None:
        if name.startswith("U") and name != "UPT":
            self.predicates[name] = np.full(LANES, value[np.argmax(self.active)])
        elif name not in ("PT", "UPT"):
            self.predicates[name] = np.where(self.active, value, self.test(name))
